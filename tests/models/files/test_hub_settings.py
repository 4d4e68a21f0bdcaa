"""Environment variables that cannot be: one UsageError that names the variable, and never shows its value."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.datasets import DEMO

from outsize.cli.main import main
from outsize.errors import UsageError
from outsize.models.files.hub import repository
from outsize.models.files.hub_settings import check_network, check_settings

NO_ADDRESSES = {
    "http://127.0.0.1:99999": "port",
    "http://127.0.0.1:0": "port",
    "http://127.0.0.1:-1": "port",
    "http://user:secret/with@host": "port",
    "http://[::1": "host",
    "http://": "host",
    "http:///path": "host",
    "https://no such host": "space",
    "http://..": "host",
    f"http://{'a' * 300}": "host",
    "127.0.0.1:8000": "begin with",
    "huggingface.co": "begin with",
    "/etc": "begin with",
    "http:host": "begin with",
    "ftp://host": "begin with",
    "http://\x01host": "printed",
}
ADDRESSES = (
    "http://127.0.0.1:8000",
    "https://huggingface.co",
    "http://[::1]:80",
    "https://me:secret@host/hub",
    "http://ü",
)


@pytest.mark.parametrize("value", NO_ADDRESSES)
def test_endpoints_that_cannot_be(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=f"HF_ENDPOINT.*{NO_ADDRESSES[value]}") as refused:
        check_settings({"HF_ENDPOINT": value})
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("HF_ENDPOINT", value)
    assert main(["plan", "some/model"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("value", ADDRESSES)
def test_endpoints_that_can_be(value: str) -> None:
    check_settings({"HF_ENDPOINT": value, "HF_HUB_ETAG_TIMEOUT": "30"})


def test_timeouts() -> None:
    with pytest.raises(UsageError, match="HF_HUB_ETAG_TIMEOUT"):
        check_settings({"HF_HUB_ETAG_TIMEOUT": "1e9"})


@pytest.mark.parametrize(("name", "value"), [("HF_ENDPOINT", "http://[::1"), ("HF_HUB_DOWNLOAD_TIMEOUT", "long")])
@pytest.mark.parametrize(
    "code", ["main(['serve', {!r}])", "main(['eval', {!r}, '--tasks', 'x'])", "outsize.load({!r})"]
)
def test_before_the_import_that_fails_over_it(code: str, name: str, value: str) -> None:
    script = f"import outsize; from outsize.cli.main import main; raise SystemExit({code.format(str(DEMO))})"
    command, environ = [sys.executable, "-c", script], {**os.environ, name: value}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == (2 if "main" in code else 1)
    assert re.match(rf"(outsize: |outsize\.errors\.UsageError: ){name} ", done.stderr.splitlines()[-1])


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:99999", "x y", "foo://host", "http://[::1", "http://", "host:port"]
)
def test_proxies_that_cannot_be(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        repository("some/model")


def test_socks_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed
    with pytest.raises(UsageError, match=r"ALL_PROXY.*socksio"):
        check_network({"ALL_PROXY": "socks5://host:1"})


def test_proxies_that_can_be() -> None:
    check_network({"https_proxy": "127.0.0.1:1", "HTTPS_PROXY": "unused x y"})
    check_network({"http_proxy": "", "HTTP_PROXY": "not asked for"})


def test_certificates_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    for path in (empty, tmp_path, tmp_path / "none"):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(UsageError, match="SSL_CERT_FILE cannot be used"):
            repository("some/model")
