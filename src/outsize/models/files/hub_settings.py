"""Environment variables of Hugging Face and of the network, refused by name before a library fails over their values.

No message quotes a value: addresses may have passwords in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from outsize.errors import UsageError, said

ENDPOINT = "HF_ENDPOINT"
TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
WEB = ("http", "https")
PROXIES = (*WEB, "socks5", "socks5h")
CERTIFICATES = ("SSL_CERT_FILE", "SSLKEYLOGFILE")
MOST_PORT = 2**16 - 1


def check_settings(environ: Mapping[str, str]) -> None:
    """Raises UsageError for a variable that huggingface_hub cannot use; its import fails over some of them."""
    for name in TIMEOUTS:
        if environ.get(name) and not environ[name].strip().isdecimal():
            raise UsageError(f"{name} is no number", need="whole seconds", remedy=f"unset {name}")
    if environ.get(ENDPOINT):
        _check_address(ENDPOINT, environ[ENDPOINT], WEB)


def check_network(environ: Mapping[str, str]) -> None:
    """Raises UsageError for a proxy or certificates, named by the environment, that no request could use."""
    for scheme in ("http", "https", "all"):
        name = f"{scheme}_proxy" if f"{scheme}_proxy" in environ else f"{scheme}_proxy".upper()
        if value := environ.get(name):
            _check_address(name, value if "://" in value else f"http://{value}", PROXIES)
            if value.startswith("socks") and find_spec("socksio") is None:
                raise UsageError(f"{name} is a SOCKS proxy", need="the package socksio", remedy="pip install socksio")
    import ssl

    named = [name for name in CERTIFICATES if environ.get(name)]
    try:
        if named:
            ssl.create_default_context(cafile=environ.get("SSL_CERT_FILE") or None)
    except OSError as error:
        what = f"{' or '.join(named)} cannot be used: {error.strerror or said(error)}"
        raise UsageError(what, remedy=f"unset {' and '.join(named)}, or name a file that is right") from error


def _check_address(name: str, value: str, schemes: tuple[str, ...]) -> None:
    """Raises UsageError for a value that is no address of a scheme, a host and perhaps a port."""
    need = f"{schemes[0]}://HOST or {schemes[0]}://HOST:PORT"
    remedy = f"unset {name}" if name != ENDPOINT else f"unset {name} for huggingface.co, or {WEB[1]}://HOST"
    wrong = _fault_of(value, schemes)
    if wrong:
        raise UsageError(f"{name} is no address: {wrong}", need=need, remedy=remedy)


def _fault_of(value: str, schemes: tuple[str, ...]) -> str:
    """What is wrong with an address; "" if nothing is."""
    if not value.isprintable():
        return "it has a character that cannot be printed"
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        if ":" not in host:  # else IPv6
            host.encode("idna")
    except ValueError:  # UnicodeError too
        return "its host cannot be"
    if parts.scheme not in schemes or "://" not in value:
        return f"it does not begin with one of {', '.join(f'{scheme}://' for scheme in schemes)}"
    if not host or any(character.isspace() for character in host):
        return "it has no host, or one with a space"
    try:
        port = parts.port
    except ValueError:
        port = 0
    return "" if port is None or port else f"its port is none of 1 to {MOST_PORT}"
