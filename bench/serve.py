"""Many clients of one server, on the bundled model: who is answered, how fast, and what the drive is read for.

python bench/serve.py                        64 clients, 2,000 requests, a fifth of the clients vanish; minutes
python bench/serve.py --requests 100         to see that it works
python bench/serve.py --hostile 5000         bodies that nobody should send, and nothing else

Twice: with all weights in memory, and with most of them on disk. Every answer that came is compared with the one that
its prompt got alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "outsize" / "demo_model"
WHERE = {"resident": [], "spilled": ["--weight-limit", "ram=0"]}
STREAMS = 16
TOKENS = 64
END = 2  # the bundled model's last token of an answer


@contextmanager
def server(*more: str) -> Iterator[tuple[str, int]]:
    """The address of a server with the bundled model, and its process id."""
    command = [
        sys.executable,
        "-m",
        "outsize",
        "serve",
        str(DEMO),
        "--no-gpu",
        "--port",
        "0",
        "--json",
        "--name",
        "demo",
    ]
    # Models this small are not worth sharing out; threads that wait for each other spin.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--context", "256", *more]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.terminate()


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99}
    return {name: round(ordered[int(share * (len(ordered) - 1))], 4) for name, share in at.items()} if ordered else {}


class Load:
    """Some clients, each with one request after the other, until there are no more."""

    def __init__(self, url: str, pid: int, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
        self.url, self.pid, self.rows, self.args = url, pid, rows, args
        self.rng = random.Random(1)
        self.alone: dict[str, str] = {}
        self.first: list[float] = []
        self.between: list[float] = []
        self.counts = dict.fromkeys(("answered", "vanished", "wrong", "lost"), 0)
        self.memory: list[int] = []

    async def run(self) -> dict[str, Any]:
        limits = httpx2.Limits(max_connections=self.args.clients, max_keepalive_connections=self.args.clients)
        async with httpx2.AsyncClient(base_url=self.url, timeout=600, limits=limits) as session:
            for row in self.rows:
                self.alone[row["prompt"]] = (await self.answer(session, row, vanish_after=None))[0]
            self.first, self.between = [], []
            coming = iter([self.rng.choice(self.rows) for _ in range(self.args.requests)])
            began = time.monotonic()
            await asyncio.gather(*(self.client(session, coming) for _ in range(self.args.clients)))
            seconds = time.monotonic() - began
            shared = await self.sharing(session)
            now = (await session.get("/v1/plan")).json()["now"]
        tenth = max(len(self.memory) // 10, 1)
        grown = statistics.median(self.memory[-tenth:]) - statistics.median(
            self.memory[tenth : 2 * tenth] or self.memory
        )
        return {
            **self.counts,
            "seconds": round(seconds, 1),
            "requests_per_s": round(self.args.requests / seconds, 2),
            "ttft_s": percentiles(self.first),
            "between_tokens_s": percentiles(self.between),
            "memory_grown_mib": round(grown / 2**20, 1),
            "memory_mib": round(max(self.memory) / 2**20, 1),
            "left_behind": now["underway"] + now["pending"],
            **shared,
        }

    async def client(self, session: httpx2.AsyncClient, coming: Iterator[dict[str, Any]]) -> None:
        for row in coming:
            vanish_after = self.rng.randrange(8) if self.rng.random() < self.args.vanish else None
            try:
                text, ended = await self.answer(session, row, vanish_after)
            except httpx2.HTTPError:
                self.counts["lost"] += 1
                continue
            self.memory.append(resident_bytes(self.pid))
            if not ended:
                self.counts["vanished"] += vanish_after is not None
                self.counts["lost"] += vanish_after is None
            else:
                self.counts["answered"] += 1
                self.counts["wrong"] += text != self.alone[row["prompt"]]

    async def answer(
        self, session: httpx2.AsyncClient, row: dict[str, Any], vanish_after: int | None
    ) -> tuple[str, bool]:
        """The text of a streamed answer, and whether it came to its end."""
        body = {"prompt": row["prompt"], "max_tokens": 24, "stream": True}
        text, last, chunks = "", time.monotonic(), 0
        async with session.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if vanish_after is not None and chunks >= vanish_after:
                    return text, False
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    return text, True
                now = time.monotonic()
                (self.between if chunks else self.first).append(now - last)
                text, last, chunks = text + json.loads(line[6:])["choices"][0]["text"], now, chunks + 1
        return text, False

    async def sharing(self, session: httpx2.AsyncClient) -> dict[str, Any]:
        """Bytes from the drive for a token of one stream, and of sixteen at once."""

        async def read() -> int:
            return int((await session.get("/v1/plan")).json()["now"]["disk_bytes"])

        async def stream(number: int) -> None:
            prompt = self.rows[number % len(self.rows)]["prompt"]
            body = {"prompt": prompt, "max_tokens": TOKENS, "logit_bias": {str(END): -100}}
            (await session.post("/v1/completions", json=body)).raise_for_status()

        async def together(count: int) -> float:
            before = await read()
            await asyncio.gather(*(stream(number) for number in range(count)))
            return (await read() - before) / TOKENS

        one, several = await together(1), await together(STREAMS)
        return {
            "bytes_per_token_of_1": int(one),
            f"bytes_per_token_of_{STREAMS}": int(several),
            "ratio": round(several / one, 3) if one else None,
        }


def hostile_bodies(count: int) -> dict[str, Any]:
    """What a server makes of them: statuses, and how much memory it takes."""
    hostile = runpy.run_path(str(ROOT / "tests" / "serve" / "hostile.py"))["hostile"]
    statuses: dict[int, int] = {}
    with server() as (url, pid), httpx2.Client(base_url=url, timeout=120) as session:
        memory = [resident_bytes(pid)]
        for path, body in hostile(2, count):
            response = session.post(path, content=body, headers={"content-type": "application/json"})
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            memory.append(resident_bytes(pid))
            if response.status_code >= 500:
                print(path, body[:500], response.text)
        alive = session.get("/health").json()["status"]
    return {
        "bodies": count,
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum(n for status, n in statuses.items() if status >= 500),
        "alive": alive,
        "memory_grown_mib": round((max(memory) - memory[0]) / 2**20, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--vanish", type=float, default=0.2, help="share of requests whose client leaves")
    parser.add_argument("--prompts", type=int, default=60, help="different prompts")
    parser.add_argument("--hostile", type=int, default=0, metavar="N", help="send so many hostile bodies instead")
    args = parser.parse_args()
    if args.hostile:
        found = hostile_bodies(args.hostile)
        print(json.dumps(found))
        return 0 if not found["server_errors"] and found["alive"] == "ok" else 1
    rows = [json.loads(line) for line in (DEMO / "heldout.jsonl").read_text().splitlines()][: args.prompts]
    results = {}
    for name, more in WHERE.items():
        with server(*more) as (url, pid):
            results[name] = asyncio.run(Load(url, pid, rows, args).run())
        print(f"{name}: {results[name]}", flush=True)
    print(json.dumps({"clients": args.clients, "requests": args.requests, "vanish": args.vanish, **results}))
    failed = any(found["wrong"] or found["lost"] or found["left_behind"] for found in results.values())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
