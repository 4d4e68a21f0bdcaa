"""Tokens generated for a dataset are those of plain ``generate``, one by one, drawn ones included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint
from engine.every_tier import HOMES, load
from requests_alone import generate_requests, generated_alone, plain_model, spoilt

from outsize.engine.request import DatasetProgress, GenerateRequest
from outsize.errors import UsageError

CASES = [("llama", home) for home in HOMES]
CASES += [(name, "disk") for name in ("gpt_neox-sequential", "bloom", "mpt", "gemma2", "gpt2")]
CASES += [("t5", "disk"), ("bart", "ram and disk"), ("t5", "two GPUs, ram and disk")]


class Letters:
    """A tokenizer: each token is a letter."""

    def decode(self, tokens: list[int] | tuple[int, ...], **_: Any) -> str:
        return "".join(chr(ord("A") + token) for token in tokens)


@pytest.mark.usefixtures("slow_drive")
@pytest.mark.parametrize(("name", "home"), CASES)
def test_as_one_by_one(name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = generate_requests()
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    with load(tmp_path, home, monkeypatch, context=64, batch=4) as model:
        results = {r.id: r for r in model.outsize.generate(requests)}
        plain = plain_model(name, tmp_path)
        for request in requests:
            assert not results[request.id].error
            assert results[request.id].tokens == generated_alone(plain, request)


def test_a_row_draws_the_same_in_any_company(small: Any) -> None:
    requests = generate_requests(8)
    together = {r.id: r for r in small.outsize.generate(requests)}
    for request in requests:
        (alone,) = small.outsize.generate([request])
        assert alone == together[request.id]
    other = GenerateRequest("o", requests[1].prompt, max_new_tokens=12, temperature=5.0, seed=1)
    again = GenerateRequest("o", requests[1].prompt, max_new_tokens=12, temperature=5.0, seed=2)
    assert list(small.outsize.generate([other])) != list(small.outsize.generate([again]))


def test_rows_end_where_they_end(small: Any) -> None:
    prompt = (5, 6, 7)
    (free,) = small.outsize.generate([GenerateRequest("a", prompt, max_new_tokens=12)], tokenizer=Letters())
    assert (free.finish, len(free.tokens)) == ("length", 12)
    assert free.text == Letters().decode(free.tokens)
    stop = free.text[4:6]
    requests = [
        GenerateRequest("stop", prompt, max_new_tokens=12, stop=("never", stop)),
        GenerateRequest("three", prompt, max_new_tokens=3),
        GenerateRequest("twelve", prompt, max_new_tokens=12),
    ]
    results = {r.id: r for r in small.outsize.generate(requests, tokenizer=Letters())}
    cut = free.text.index(stop)
    assert results["stop"].finish == "stop"
    assert results["stop"].text == free.text[:cut]
    assert results["stop"].tokens == free.tokens[: cut + 2]
    assert results["three"].tokens == free.tokens[:3]
    assert results["twelve"].tokens == free.tokens


def test_the_end_of_the_sequence(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (free,) = small.outsize.generate([GenerateRequest("a", (5, 6, 7), max_new_tokens=12)])
    monkeypatch.setattr(small.generation_config, "eos_token_id", [free.tokens[2], 2])
    requests = [GenerateRequest("a", (5, 6, 7), max_new_tokens=12), GenerateRequest("b", (8, 9), max_new_tokens=12)]
    results = {r.id: r for r in small.outsize.generate(requests)}
    first = free.tokens.index(free.tokens[2])
    assert (results["a"].finish, results["a"].tokens) == ("eos", free.tokens[:first])


BAD = {
    "the prompt is empty": GenerateRequest("bad", ()),
    "max_new_tokens must be at least 1, not 0": GenerateRequest("bad", (5,), max_new_tokens=0),
    "a temperature must not be below 0": GenerateRequest("bad", (5,), temperature=-1.0),
    "token 99 is none of the model's": GenerateRequest("bad", (99,)),
    "128 positions: at most 9 new ones fit": GenerateRequest("bad", (5,) * 120, max_new_tokens=10),
}


@pytest.mark.parametrize("error", BAD)
def test_a_bad_request_fails_alone(error: str, small: Any) -> None:
    good = generate_requests(4)
    results = {r.id: r for r in small.outsize.generate([*good, BAD[error]])}
    assert error in results.pop("bad").error
    assert len(results) == 4
    assert not any(r.error for r in results.values())


def test_logits_that_are_no_numbers_fail_alone(small: Any) -> None:
    requests = [GenerateRequest(str(i), (5, 6, 10 + i), max_new_tokens=4) for i in range(6)]
    want = {r.id: r for r in small.outsize.generate(requests)}

    with spoilt(small):
        results = {r.id: r for r in small.outsize.generate(requests)}
    for i, result in results.items():
        assert result.error.startswith("the model's logits are not finite") if i == "3" else not result.error
        assert result.tokens == (() if i == "3" else want[i].tokens)


def test_stop_strings_need_a_tokenizer(small: Any) -> None:
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        list(small.outsize.generate([GenerateRequest("a", (5,), stop=("x",))]))


def test_what_is_predicted_is_what_happens(small: Any) -> None:
    requests = [GenerateRequest(r.id, r.prompt, max_new_tokens=6) for r in generate_requests(10)]
    predicted = small.outsize.predict(requests)
    seen: list[DatasetProgress] = []
    assert len(list(small.outsize.generate(requests, progress=seen.append))) == 10
    assert seen[-1].sweeps == predicted.sweeps == 6
    assert seen[-1].done == 10
