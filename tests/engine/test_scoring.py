"""Log-likelihoods of a dataset are those of plain forward passes, one by one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from engine.every_tier import HOMES, load
from requests_alone import generated_alone, plain_model, score_requests, scored_alone, spoilt

import outsize
from outsize.engine.request import DatasetProgress, GenerateRequest, ScoreRequest

# Rounding of sums of up to nine log-probabilities, whose logits are some tens in these models.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}
# Plain caches, tied heads, ALiBi (two kinds), caches that cannot be shared, two stacks, a cap behind the head.
CASES = [("llama", home) for home in HOMES]
CASES += [(name, "disk") for name in ("llama-tied", "gpt2", "bloom", "mpt", "mistral", "gemma2", "opt", "deepseek_v3")]
CASES += [("t5", "disk"), ("bart", "ram and disk"), ("t5", "ram"), ("t5", "two GPUs, ram and disk")]


@pytest.mark.usefixtures("slow_drive")
@pytest.mark.parametrize(("name", "home"), CASES)
def test_as_one_by_one(name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    plain = plain_model(name, tmp_path)
    requests = [*score_requests(10), *(with_the_likeliest(r, plain) for r in score_requests(4, seed=1))]
    with load(tmp_path, home, monkeypatch, context=64, batch=4) as model:
        results = {r.id: r for r in model.outsize.score(requests)}
        for request in requests:
            result = results[request.id]
            assert not result.error
            assert result.tokens == tuple(len(c) for c in request.continuations)
            for continuation, logprob, greedy in zip(
                request.continuations, result.logprobs, result.greedy, strict=True
            ):
                want, likeliest = scored_alone(plain, request.context, continuation)
                assert logprob == pytest.approx(want, abs=TOLERANCE[ARCHITECTURES[name].dtype])
                assert greedy == likeliest or ARCHITECTURES[name].dtype != torch.float32
        assert sum(result.greedy[-1] for result in results.values()) >= 3


def with_the_likeliest(request: ScoreRequest, plain: Any) -> ScoreRequest:
    """With one more continuation, which the model itself would choose."""
    likeliest = generated_alone(plain, GenerateRequest("", request.context, max_new_tokens=3)) or (2,)  # its end
    return ScoreRequest(f"likely {request.id}", request.context, (*request.continuations, likeliest))


def test_scores_are_those_of_the_same_pass_alone(small: Any) -> None:
    request = ScoreRequest("a", (5, 6, 7, 8), ((9, 10, 11),))
    (result,) = small.outsize.score([request])
    with torch.inference_mode():
        logits = small(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits[0, 3:]
    logprobs = torch.log_softmax(logits.float(), dim=-1)[range(3), [9, 10, 11]]
    assert result.logprobs == pytest.approx((sum(logprobs.tolist()),), rel=1e-6)  # the head sees fewer rows


def test_what_rows_share_is_computed_once(small: Any) -> None:
    requests = score_requests(24, shared=30)
    alone = sum(len(r.context) + len(c) - 1 for r in requests for c in r.continuations)
    seen: list[DatasetProgress] = []
    assert len(list(small.outsize.score(requests, progress=seen.append))) == 24
    assert seen[-1].done == seen[-1].rows == 24
    assert [p.done for p in seen] == list(range(1, 25))
    assert seen[-1].tokens < alone / 2
    assert seen[-1].sweeps == 1
    assert seen[-1].disk_bytes > 0


def test_a_continuation_that_another_begins_with_costs_nothing(small: Any) -> None:
    requests = [ScoreRequest("a", (5, 6, 7), ((8,), (9,), (8, 10))), ScoreRequest("b", (5, 6), ((7,), (7, 8, 10, 11)))]
    work = small.outsize._scoring(requests)
    assert [(shape.rows, shape.tokens) for shape in work.shapes] == [(1, 5)]
    results = {r.id: r for r in small.outsize.score(requests)}
    for request in requests:
        for continuation, logprob in zip(request.continuations, results[request.id].logprobs, strict=True):
            assert logprob == pytest.approx(scored_alone(small, request.context, continuation)[0], abs=1e-5)


BAD = {
    "nothing to score": ScoreRequest("bad", (5,), ()),
    "the context is empty": ScoreRequest("bad", (), ((5,),)),
    "a continuation is empty": ScoreRequest("bad", (5,), ((6,), ())),
    "token 99 is none of the model's: they are 0..98": ScoreRequest("bad", (5,), ((99,),)),
    "token -1 is none": ScoreRequest("bad", (5, -1), ((9,),)),
    "129 tokens are more than the model's 128 positions": ScoreRequest("bad", (5,) * 120, ((6,) * 10,)),
}


@pytest.mark.parametrize("error", BAD)
def test_a_bad_request_fails_alone(error: str, small: Any) -> None:
    good = score_requests(4)
    results = {r.id: r for r in small.outsize.score([*good[:2], BAD[error], *good[2:]])}
    assert error in results.pop("bad").error
    assert len(results) == 4
    assert not any(r.error for r in results.values())


def test_logits_that_are_no_numbers_fail_alone(small: Any) -> None:
    requests = [ScoreRequest(str(i), (5, 6, 10 + i), ((8, 9),)) for i in range(6)]

    with spoilt(small):
        results = {r.id: r for r in small.outsize.score(requests)}
    assert [i for i, r in results.items() if r.error] == ["3"]
    assert results["3"].error.startswith("the model's logits are not finite")


def test_the_layer_where_numbers_are_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ARCHITECTURES["llama"].make_model()
    made.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    write_checkpoint(tmp_path, made)
    with load(tmp_path, "disk", monkeypatch, context=64, batch=4) as model:
        scored = list(model.outsize.score([ScoreRequest("a", (5, 6), ((7, 8),)), ScoreRequest("b", (), ((7,),))]))
        generated = list(model.outsize.generate([GenerateRequest(i, (5, 6, 7), max_new_tokens=2) for i in "ab"]))
    for result in (scored[1], *generated):
        assert "not finite, first in model.layers.1; try: check the weights" in result.error
    assert scored[0].id == "b"


@pytest.mark.parametrize("home", ["disk", "half"])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_nothing_is_read_past_the_last_sweep(
    name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    limit = 0 if home == "disk" else (folder / "model.safetensors").stat().st_size // 2
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": limit}, context=64, batch=4) as model:
        stream = model.outsize._sweep.stream
        assert len(list(model.outsize.score(score_requests(10)))) == 10
        time.sleep(0.05)  # for what the readers might still be at
        once = sum(extent.length for entry in stream._entries for extent in entry.layout.extents)
        assert stream.stats.bytes_read <= once * model.outsize.stats.sweeps


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_few_logits_at_a_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = score_requests()
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    with load(tmp_path, "disk", monkeypatch, context=64) as model:
        want = {r.id: r for r in model.outsize.score(requests)}
        monkeypatch.setattr("outsize.engine.dataset_job.logit_rows", lambda spec: 3)
        seen: list[int] = []
        hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        for result in model.outsize.score(requests):
            assert result.logprobs == pytest.approx(want[result.id].logprobs, abs=1e-5)
        hook.remove()
    assert (max(seen) <= 3) == (name == "llama")  # what Gemma does to logits is done to all of them


def test_nothing_at_all(small: Any) -> None:
    assert list(small.outsize.score([])) == []
    assert small.outsize.predict([]).sweeps == 0
