"""``outsize serve`` and the bundled model, as clients see them."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from chat_models import TALK
from cli.datasets import PROMPTS
from serve.conftest import serving
from serve.hostile import hostile

from outsize.cli.main import main

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture
def client(server: str) -> Any:
    with openai.OpenAI(base_url=server + "/v1", api_key="none is needed", max_retries=0) as made:
        yield made


def answers(row: dict[str, Any]) -> str:
    return str(row["answer"]).rstrip("\n")


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": TALK}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == " JIFT"
    assert answer.choices[0].finish_reason == "stop"
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert float(raw.headers["x-predicted-seconds"]) > 0
    again = raw.parse()
    assert again.choices[0].message.content == " JIFT"
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == 36  # all but the last, which must be computed
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " JIFT"


def test_completions_in_all_their_ways(client: openai.OpenAI, server: str) -> None:
    prompts = [row["prompt"] for row in PROMPTS[:3]]
    tokens = [httpx2.post(server + "/tokenize", json={"prompt": p}).json()["tokens"] for p in prompts]
    for given in (prompts, tokens):
        answer = client.completions.create(model="demo", prompt=given, max_tokens=16, n=2)
        assert [c.text for c in answer.choices] == [answers(row) for row in PROMPTS[:3] for _ in range(2)]
        assert [c.index for c in answer.choices] == list(range(6))
    drawn: Any = {"model": "demo", "prompt": prompts[0], "max_tokens": 8, "temperature": 30, "seed": 7}
    texts = {client.completions.create(**drawn).choices[0].text for _ in range(2)}
    assert len(texts) == 1
    assert texts != {client.completions.create(**{**drawn, "seed": 8}).choices[0].text}
    stopped = client.completions.create(model="demo", prompt=prompts[0], max_tokens=16, stop=["F"])
    assert stopped.choices[0].text == answers(PROMPTS[0]).partition("F")[0]
    biased = client.completions.create(model="demo", prompt=prompts[0], max_tokens=3, logit_bias={"70": 100})
    assert biased.choices[0].text == "bbb"
    echoed = client.completions.create(model="demo", prompt=tokens[0], max_tokens=16, echo=True)
    assert echoed.choices[0].text == prompts[0] + answers(PROMPTS[0])
    pieces = client.completions.create(model="demo", prompt=prompts[0], max_tokens=16, echo=True, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == prompts[0] + answers(PROMPTS[0])


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_scored(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "demo", "prompt": [5, 6, 7, 8], "max_tokens": 1, "echo": True, "logprobs": 1}
    if stream:
        found = [piece.choices[0].logprobs for piece in client.completions.create(**asked, stream=True)]
        token_logprobs = [one for part in found if part for one in part.token_logprobs or ()]
        offsets = [one for part in found if part for one in part.text_offset or ()]
        assert offsets == [0, 1, 2, 3, 4]
    else:
        logprobs = client.completions.create(**asked).choices[0].logprobs
        assert logprobs is not None
        token_logprobs = logprobs.token_logprobs or []
        assert logprobs.tokens is not None
        assert len(logprobs.tokens) == 5
        assert logprobs.top_logprobs is not None
        assert logprobs.top_logprobs[0] is None
        assert max(logprobs.top_logprobs[4].values()) == token_logprobs[4]  # greedy
    assert token_logprobs[0] is None
    assert all(one < 0 for one in token_logprobs[1:4])


def test_clients_share_sweeps_and_get_what_they_would_get_alone(server: str) -> None:
    def ask(row: dict[str, Any]) -> str:
        body = {"prompt": row["prompt"], "max_tokens": 16, "user": str(row["id"])}
        return str(httpx2.post(server + "/v1/completions", json=body, timeout=60).json()["choices"][0]["text"])

    rows = PROMPTS[20:36]
    alone = [ask(row) for row in rows[:4]]
    before = httpx2.get(server + "/v1/plan").json()["now"]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, rows))
    after = httpx2.get(server + "/v1/plan").json()["now"]
    assert together[:4] == alone
    assert sum(text == answers(row) for text, row in zip(together, rows, strict=True)) >= 15
    assert after["most_sharing"] > 4
    assert after["new_tokens"] - before["new_tokens"] > 2 * (after["sweeps"] - before["sweeps"])


def test_answers_keep_to_a_form(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"]}
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}},
    }
    answer = client.chat.completions.create(model="demo", messages=TALK, response_format=form, max_tokens=60)  # type: ignore[call-overload]
    assert json.loads(answer.choices[0].message.content).keys() == {"ab"}
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(model="demo", messages=TALK, response_format=wrong)  # type: ignore[call-overload]


def test_what_never_fits_is_refused_with_need_and_have(server: str) -> None:
    for body in ({"prompt": [5] * 10, "max_tokens": 10_000}, {"prompt": [5] * 5000}):
        response = httpx2.post(server + "/v1/completions", json=body)
        assert response.status_code == 400
        assert "256 positions" in response.json()["error"]["message"]
    long = httpx2.post(server + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a" * 300}]})
    assert long.status_code == 400
    assert "need fewer than 256 tokens" in long.json()["error"]["message"]


def test_the_state_is_told(server: str) -> None:
    assert httpx2.get(server + "/health").json() == {"status": "ok"}
    plan = httpx2.get(server + "/v1/plan").json()
    assert plan["schema"] == 1
    assert len(plan["plans"][0]["placement"]) > 8
    assert plan["now"]["loaded"]
    metrics = httpx2.get(server + "/metrics").text
    for name in ("outsize_sweeps_total", "outsize_underway", "outsize_first_token_seconds_count"):
        assert name in metrics
    for response in (httpx2.get(server + "/nowhere"), httpx2.get(server + "/v1/completions")):
        assert "message" in response.json()["error"]


def test_hostile_bodies_are_answered_with_4xx(server: str) -> None:
    statuses = []
    with httpx2.Client(base_url=server, timeout=60, headers={"content-type": "application/json"}) as session:
        for path, body in hostile(seed=1, count=200):
            response = session.post(path, content=body)
            statuses.append(response.status_code)
            assert response.status_code < 500, (path, body[:2000], response.text)
        for length in ("99999999999", "-1", "x", "9" * 30):
            with socket.create_connection(_address(server)) as raw:
                raw.sendall(f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
                assert raw.recv(100).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    assert statuses.count(200) > 10
    assert httpx2.get(server + "/health").json() == {"status": "ok"}


def test_another_address_needs_a_key(chat_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(chat_folder), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--api-key" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(chat_folder: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(chat_folder), "--port", str(_address(server)[1])]) == 2
    assert "cannot be had" in capsys.readouterr().err


def test_sigterm_lets_answers_end(chat_folder: Path, tmp_path: Path) -> None:
    key = "a key that must not be told"
    with serving(chat_folder, tmp_path, "--api-key", key) as (url, process):
        body = {"prompt": [40], "max_tokens": 60, "temperature": 50, "stream": True, "logit_bias": {"2": -100}}
        with httpx2.stream("POST", url + "/v1/completions", json=body, headers={"x-api-key": key}) as response:
            lines = response.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            process.send_signal(signal.SIGTERM)
            assert sum(line.startswith("data:") for line in lines) > 40
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert key not in out + said


def test_slow_headers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.scripted import scripted

    monkeypatch.setattr("outsize.serve.server.HEADERS_S", 0.2)
    with scripted() as (url, _), socket.create_connection(_address(url)) as raw:
        raw.settimeout(30)
        for letter in b"GET /health HT":
            try:
                raw.sendall(bytes([letter]))
            except OSError:
                break
            time.sleep(0.05)
        with suppress(ConnectionResetError):
            assert raw.recv(10) == b""


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
