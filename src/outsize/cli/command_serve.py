"""``outsize serve``: one running model for many clients, in the forms of OpenAI's and Anthropic's interfaces."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
from dataclasses import replace
from typing import Any

from outsize import progress
from outsize.api import prepare
from outsize.cli import arguments
from outsize.cli.command_run import opened
from outsize.engine.loader import check_fits
from outsize.errors import UnsupportedModel, UsageError
from outsize.models.files.small_files import GENERATION_CONFIG, read_settings
from outsize.models.resolve import resolve_spec
from outsize.sizes import parse_size

CONTEXT = 4096
BATCH = 4
DRAIN_S = 30.0
KEY = "OUTSIZE_API_KEY"
SAMPLING = ("temperature", "top_p", "top_k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="(default: 8000; 0: any that is free)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"what clients must send (or {KEY}); needed for other addresses"
    )
    parser.add_argument("--name", metavar="NAME", help="what clients call the model (default: MODEL)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name of this server's, too"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a web page's origin that may ask, too"
    )
    parser.add_argument("--queue", type=int, default=512, metavar="N", help="most sequences that wait (default: 512)")
    parser.add_argument(
        "--prefix-cache", type=parse_size, metavar="SIZE", help="most memory for beginnings that requests share"
    )
    parser.add_argument("--model-sampling", action="store_true", help="draw as generation_config.json says, by default")
    parser.add_argument(
        "--drain", type=float, default=DRAIN_S, metavar="S", help="seconds for answers to end at SIGTERM (default: 30)"
    )
    arguments.add_request(parser, dataset=True)


def run(args: argparse.Namespace) -> int:
    server = _import()
    key = args.api_key or os.environ.get(KEY)
    trust = _trust(args, key)
    options = arguments.options(args)
    if args.context is None:
        positions = resolve_spec(args.model, args.revision).max_positions
        options = replace(options, context=min(CONTEXT, positions or CONTEXT))
    if args.batch is None:
        options = replace(options, batch=BATCH)
    sock = server.listen(args.host, args.port)
    try:
        with progress.bars(quiet=args.json) as bar:
            opening = prepare(args.model, options, on_download=bar("downloading"), on_convert=bar("converting"))
        check_fits(opening.spec, opening.plan)
        if not args.json:
            progress.note(progress.layers(opening.spec, opening.plan, unicode=progress.writes_unicode(sys.stderr)))
        with progress.bars(quiet=args.json) as bar, opened(opening, bar("loading")) as (model, tokenizer, _):
            return _serve(args, server, sock, trust, (opening, model, tokenizer))
    finally:
        sock.close()


def _serve(args: argparse.Namespace, server: Any, sock: Any, trust: Any, running: tuple[Any, Any, Any]) -> int:
    from outsize.engine.answer import Wish
    from outsize.engine.request import GenerateRequest
    from outsize.models.tracing.pretrained import load_tokenizer
    from outsize.serve.app import create_app
    from outsize.serve.backend import Backend

    opening, model, tokenizer = running
    if not model.can_generate():
        raise UnsupportedModel(f"{type(model).__name__} generates no text")
    defaults = {}
    if args.model_sampling:
        settings = read_settings(opening.folder.path, GENERATION_CONFIG)
        defaults = {name: settings.get(name) for name in SAMPLING} if settings.get("do_sample") else {}
    name = args.name or args.model
    with model.outsize.serving(tokenizer, prefix_bytes=args.prefix_cache, most_pending=args.queue) as service:
        service.submit([Wish(GenerateRequest("", (0,), max_new_tokens=1))], lambda number, event: None)  # loads
        backend = Backend(service, load_tokenizer(opening.folder.path), opening, name, defaults)
        host, port = sock.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def ready() -> None:
            if args.json:
                print(json.dumps({"schema": 1, "url": url, "model": name}), flush=True)
            else:
                progress.note(f"{name} at {url}/v1")

        came = server.serve(create_app(backend), trust, sock, args.drain, ready)
        if not args.json:
            progress.note("no more requests; ending what is left")
    return 130 if came == signal.SIGINT else 0


def _import() -> Any:
    try:
        from outsize.serve import server
    except ImportError as error:
        raise UsageError(f"serving needs the package {error.name}", remedy="pip install 'outsize[serve]'") from None
    return server


def _trust(args: argparse.Namespace, key: str | None) -> Any:
    """Who may ask. Raises UsageError for an address beyond this machine without a key."""
    from outsize.serve.guard import LOOPBACK, Trust

    local = args.host in LOOPBACK or args.host.startswith("127.")
    if not local and not key:
        raise UsageError(
            f"{args.host} can be reached from other machines",
            need="a key that clients must send",
            remedy=f"--api-key {secrets.token_urlsafe(24)}, or {KEY}",
        )
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip()):
        raise UsageError("the API key has characters that no header can hold")
    hosts = (*LOOPBACK, args.host, *args.allow_host) if local else tuple(args.allow_host)
    return Trust(key, tuple(name.lower() for name in hosts), tuple(args.allow_origin))
