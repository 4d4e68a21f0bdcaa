"""The forms of answers, from a model that says what it is told; read by OpenAI's and Anthropic's own clients."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from serve.scripted import Scripted, scripted

from outsize.serve.guard import Trust

pytestmark = pytest.mark.xdist_group("serve")
KEY = "a secret of 32 letters: abcdefgh"
CALL = 'Wait. <tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>'
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "something_new"},
]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Scripted]]:
    with scripted(Trust(key=KEY, hosts=("127.0.0.1",))) as both:
        yield both


@pytest.fixture
def client(running: tuple[str, Scripted]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running[0] + "/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture
def claude(running: tuple[str, Scripted]) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running[0], api_key=KEY, max_retries=0) as made:
        yield made


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=user("hello"), n=2, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert [choice.message.content for choice in answer.choices] == ["hell", "hell"]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [(one.token, one.logprob) for one in logprobs.content[0].top_logprobs] == [("h", -0.5), ("?", -1.0)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


def test_chat_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="scripted", messages=user("hello"), stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "hello"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_the_asynchronous_client(running: tuple[str, Scripted]) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=running[0] + "/v1", api_key=KEY) as several:
            asked = [several.chat.completions.create(model="scripted", messages=user(f"number {i}")) for i in range(8)]
            return [one.choices[0].message.content for one in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [f"number {i}" for i in range(8)]


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "scripted", "messages": user(CALL), "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(**asked) as pieces:
            answer: Any = pieces.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Wait."
    assert choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Graz"}


def test_thoughts(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "messages": user("<think>so</think>yes")}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "yes"
    assert message.model_extra == {"reasoning_content": "so"}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "so"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["hello", CALL, CALL[6:]])
def test_responses(client: openai.OpenAI, stream: bool, text: str) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
    asked: Any = {"model": "scripted", "input": text, "instructions": "be brief", "tools": tools}
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            answer: Any = events.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
    else:
        answer = client.responses.create(**asked)
    assert answer.output_text == ("hello" if text == "hello" else "Wait." if text == CALL else "")
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [call.name for call in calls] == ([] if text == "hello" else ["weather"])
    assert answer.usage.input_tokens == len(text)


@pytest.mark.parametrize("stream", [False, True])
def test_messages(claude: anthropic.Anthropic, stream: bool) -> None:
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
    text = "<think>so</think>" + CALL
    asked: Any = {"model": "scripted", "max_tokens": 200, "messages": user(text), "tools": tools, "system": "be brief"}
    if stream:
        with claude.messages.stream(**asked) as events:
            answer: Any = events.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.content[1].text == "Wait."
    assert answer.content[2].input == {"city": "Graz"}
    assert answer.stop_reason == "tool_use"
    assert answer.usage.output_tokens == len(text)


def test_results_of_tools_go_back(claude: anthropic.Anthropic) -> None:
    messages: Any = [
        *user("weather?"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "x"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "sunny"}]},
    ]
    answer: Any = claude.messages.create(model="scripted", max_tokens=20, messages=messages)
    assert answer.content[0].text == "sunny"
    assert answer.stop_reason == "end_turn"


def test_what_is_wrong_is_told_in_each_form(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' is not here"):
        client.chat.completions.create(model="other", messages=user("x"))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="scripted", messages=user("x"), temperature=-1)
    picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model="scripted", messages=picture)
    with pytest.raises(openai.InternalServerError, match="it failed"):
        client.chat.completions.create(model="scripted", messages=user("fail"))
    with pytest.raises(openai.APIError, match="it failed"):
        list(client.chat.completions.create(model="scripted", messages=user("fail"), stream=True))
    with pytest.raises(anthropic.NotFoundError, match="not here"):
        claude.messages.create(model="other", max_tokens=5, messages=user("x"))
    with pytest.raises(openai.AuthenticationError, match="key"):
        client.with_options(api_key="wrong").models.list()


def test_a_client_that_leaves_ends_its_work(running: tuple[str, Scripted]) -> None:
    url, service = running
    before = service.cancelled
    for stream in (False, True):
        body = {"messages": user("wait"), "stream": stream}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": KEY}, timeout=0.3)
    for _ in range(500):
        if service.cancelled >= before + 2:
            break
        time.sleep(0.01)
    assert service.cancelled >= before + 2


def test_a_silent_stream_says_that_it_is_alive(running: tuple[str, Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.serve.backend.PING_S", 0.05)
    body = {"messages": user("wait"), "stream": True}
    with httpx2.stream("POST", f"{running[0]}/v1/chat/completions", json=body, headers={"x-api-key": KEY}) as response:
        assert response.headers["x-predicted-seconds"] == "1.500"
        lines = response.iter_lines()
        assert sum(line == ": ping" for line, _ in zip(lines, range(12), strict=False)) >= 3


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", {}, 200),
        ("/v1/models", {}, 401),
        ("/metrics", {}, 401),
        ("/nowhere", {}, 401),
        ("/v1/models", {"Authorization": f"Bearer {KEY}"}, 200),
        ("/v1/models", {"Authorization": f"Bearer {KEY}x"}, 401),
        ("/v1/models", {"Authorization": "Basic bWU6YSBzZWNyZXQgb2YgMzIgbGV0dGVyczogYWJjZGVmZ2g="}, 200),
        ("/v1/models", {"Authorization": "Basic !!!"}, 401),
        ("/v1/models", {"x-api-key": KEY, "Host": "evil.example"}, 403),
        ("/health", {"Host": "evil.example"}, 403),
        ("/v1/models", {"x-api-key": KEY, "Origin": "http://evil.example"}, 403),
        ("/v1/models", {"x-api-key": KEY, "Origin": "null"}, 403),
    ],
)
def test_who_may_ask(running: tuple[str, Scripted], path: str, headers: dict[str, str], status: int) -> None:
    assert httpx2.get(running[0] + path, headers=headers).status_code == status


def test_tokens_and_text(running: tuple[str, Scripted]) -> None:
    with httpx2.Client(base_url=running[0], headers={"x-api-key": KEY}) as session:
        made = session.post("/tokenize", json={"prompt": "ab"}).json()
        assert made == {"tokens": [97, 98], "count": 2, "max_model_len": 4096}
        assert session.post("/tokenize", json={"messages": user("ab")}).json()["tokens"] == [97, 98]
        assert session.post("/tokenize", json={}).status_code == 400
        assert session.post("/detokenize", json={"tokens": [97, 98]}).json()["prompt"] == "ab"
        assert session.post("/detokenize", json={"tokens": [1 << 25]}).status_code == 400
        assert session.get("/v1/models/scripted").json()["id"] == "scripted"
        assert "outsize_new_tokens_total" in session.get("/metrics").text


def test_the_page_may_load_nothing_but_itself(running: tuple[str, Scripted]) -> None:
    response = httpx2.get(running[0] + "/", headers={"x-api-key": KEY})
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "://" not in response.text  # no other host
    assert httpx2.get(running[0] + "/").headers["www-authenticate"].startswith("Basic")  # a browser asks for the key
