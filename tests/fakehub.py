"""A small hub on this host: what huggingface_hub asks for, from a dict of files, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "c0ffee" + "0" * 34
LARGE = 10_000  # bytes from which a file counts as LFS and has a sha256
API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^/?]+))?(?:\?.*)?$")
FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)")


class FakeHub:
    """Serves ``models[id][file name] -> bytes`` at ``url``; counts ``requests`` and ``bytes_sent``.

    Faults: ``status`` answers everything with that code (``error_code`` as its X-Error-Code, ``retry_after`` as its
    Retry-After); ``sha`` is what it calls the commit; ``fail_next`` the next
    so many file requests with 500; ``cut_next`` closes the next so many bodies half-way; ``short_next`` lets the next
    so many ranges seem complete at half their length; ``hang_s`` waits before each answer; ``ignore_ranges`` sends
    whole files; ``headers`` go with every answer; ``spoil`` flips the last byte of the files named, for so many times.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.bytes_sent = 0
        self.status = 0
        self.error_code = ""
        self.retry_after = ""
        self.sha = COMMIT
        self.fail_next = 0
        self.cut_next = 0
        self.short_next = 0
        self.hang_s = 0.0
        self.ignore_ranges = False
        self.headers: dict[str, str] = {}
        self.spoil: dict[str, int] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def add_folder(self, model_id: str, folder: Path) -> None:
        """Serve the files of a folder."""
        self.models[model_id] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is no fault of this server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        threading.Event().wait(hub.hang_s)  # not time.sleep, which tests of retries replace
        if hub.status:
            return self.fail(hub.status, hub.error_code)
        wanted = FILE.match(self.path) or API.match(self.path)
        if wanted is None or wanted["id"] not in hub.models:
            return self.fail(404, "RepoNotFound")
        if wanted["revision"] not in (None, "main", COMMIT):
            return self.fail(404, "RevisionNotFound")
        files = hub.models[wanted["id"]]
        if wanted.re is API:
            described = describe(wanted["id"], files)
            if hub.sha != COMMIT:
                described["sha"] = hub.sha
            return self.send(200, json.dumps(described).encode(), {}, body)
        if wanted["name"] not in files:
            return self.fail(404, "EntryNotFound")
        return self.send_file(wanted["name"], files[wanted["name"]], body)

    def send_file(self, name: str, content: bytes, body: bool) -> None:
        hub = self.hub
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{checksum(content)}"', "Accept-Ranges": "bytes"}
        if body and hub.fail_next:
            hub.fail_next -= 1
            return self.fail(500, "")
        if body and hub.spoil.get(name, 0):
            hub.spoil[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or hub.ignore_ranges:
            return self.send(200, content, headers, body)
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        part = content[first : last + 1]
        if body and hub.short_next:
            hub.short_next -= 1
            part = part[: len(part) // 2]
        return self.send(206, part, headers, body)

    def fail(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code, "Retry-After": self.hub.retry_after}
        self.send(status, b"", {name: value for name, value in headers.items() if value}, False)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in {**headers, **hub.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            if hub.cut_next and status in (200, 206) and "ETag" in headers:
                hub.cut_next -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            hub.bytes_sent += len(content)
            try:
                self.wfile.write(content)
            except OSError:  # the reader had enough
                self.close_connection = True


def describe(model_id: str, files: dict[str, bytes]) -> dict[str, Any]:
    """What the hub says of a model, blobs included."""
    siblings = []
    for name, content in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        if len(content) >= LARGE:
            entry["lfs"] = {"sha256": checksum(content), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    return {"_id": "0", "id": model_id, "modelId": model_id, "sha": COMMIT, "private": False, "tags": [],
            "downloads": 0, "siblings": siblings}  # fmt: skip


def git_sha1(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
