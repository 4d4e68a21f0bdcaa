"""Micro-batches side by side: what they read, what one that fails does to others, how all of it ends."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from requests_alone import generate_requests, score_requests

import outsize
from outsize.engine.request import GenerateRequest, ScoreRequest
from outsize.engine.scheduler import Job, Scheduler
from outsize.errors import ModelChanged, OutsizeError, UsageError
from outsize.planner.batches import MemoryUse, Room, Shape

NOTHING = MemoryUse((("ram", 0),), 0)
LIMITS: dict[str, dict[str, Any]] = {"disk": {"ram": 0}, "ram": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), ARCHITECTURES["llama"].make_model())


@pytest.fixture
def spilled(folder: Path) -> Iterator[Any]:
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model:
        yield model


def passing_bytes(model: Any) -> int:
    """Bytes that one sweep reads, with what direct reads take around them."""
    model(input_ids=torch.tensor([[5]]))
    begin = streamed(model)
    for _ in range(4):
        model(input_ids=torch.tensor([[5]]))
    return (streamed(model) - begin) // 4


def streamed(model: Any) -> int:
    """Bytes read so far, rows of embeddings left out: of models this small they are most."""
    return model.outsize._sweep.stream.stats.bytes_read


def busy(model: Any) -> bool:
    """Whether anything of a dataset is left behind."""
    sweep = model.outsize._sweep
    return sweep.context.scheduled or any(group.open and not group.settled for group in sweep.groups)


def test_micro_batches_share_a_sweep(spilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.engine.batching.MICRO_BATCH_TOKENS", 32)
    each = passing_bytes(spilled)
    before, read = spilled.outsize.stats, streamed(spilled)
    requests = score_requests(40, shared=0)
    assert sum(1 for _ in spilled.outsize.score(requests)) == 40
    after = spilled.outsize.stats
    assert after.forwards - before.forwards > 8
    assert after.sweeps - before.sweeps == 1
    assert streamed(spilled) - read <= 1.9 * each  # the ring had read ahead before, and does again


def test_a_token_of_each_costs_a_sweep(spilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.engine.batching.DECODE_TOKENS", 32)
    each = passing_bytes(spilled)
    before, read = spilled.outsize.stats, streamed(spilled)
    requests = [GenerateRequest(r.id, r.prompt, max_new_tokens=10) for r in generate_requests(30, shared=0)]
    assert sum(1 for _ in spilled.outsize.generate(requests)) == 30
    after = spilled.outsize.stats
    assert after.forwards - before.forwards >= 80
    assert 9 <= after.sweeps - before.sweeps <= 10
    assert streamed(spilled) - read <= 12 * each


def test_those_that_wait_for_room_join_later(spilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.engine.batching.MICRO_BATCH_TOKENS", 32)
    few = [ScoreRequest(str(i), (5 + i, 6, 7), ((8, 9),)) for i in range(40)]  # five times eight rows
    packer = spilled.outsize._scoring(few).packer
    memory_use = packer.memory_use(Shape(8, 4, scored=16))
    two = Room(tuple((tier, 2 * size + memory_use.workspace) for tier, size in memory_use.resting))
    assert two.fits([memory_use] * 2)
    assert not two.fits([memory_use] * 3)
    monkeypatch.setattr("outsize.engine.batching.room_of", lambda spec, plan: two)
    before, most = spilled.outsize.stats, []
    begin = Scheduler._begin

    def counted(self: Scheduler) -> Iterator[Job]:
        yield from begin(self)
        most.append(len(self.underway))

    monkeypatch.setattr(Scheduler, "_begin", counted)
    assert len({r.id for r in spilled.outsize.score(few) if not r.error}) == 40
    after = spilled.outsize.stats
    assert (after.sweeps - before.sweeps, after.forwards - before.forwards) == (3, 5)
    assert most == [2, 2, 1]
    assert not busy(spilled)


@pytest.mark.parametrize("home", LIMITS)
def test_an_iterator_that_is_closed_leaves_nothing_behind(folder: Path, home: str) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits=LIMITS[home], context=64, batch=4) as model:
        want = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        for requests in (generate_requests(12), generate_requests(12)):
            results = model.outsize.generate(requests)
            next(results)
            results.close()
            assert not busy(model)
        assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, want)
        results = model.outsize.score(score_requests())
        next(results)
        del results  # dropped instead of closed
        gc.collect()
        assert len(list(model.outsize.score(score_requests()))) == 12


def test_the_model_can_be_used_between_results(spilled: Any) -> None:
    want = spilled(input_ids=torch.tensor([[5, 6, 7]])).logits
    alone = {r.id: r for r in spilled.outsize.score(score_requests())}
    for result in spilled.outsize.score(score_requests()):
        assert not torch.is_inference_mode_enabled()
        assert torch.equal(spilled(input_ids=torch.tensor([[5, 6, 7]])).logits, want)
        assert result == alone[result.id]


def test_one_dataset_at_a_time(spilled: Any) -> None:
    results = spilled.outsize.score(score_requests())
    next(results)
    with pytest.raises(UsageError, match="a dataset is underway"):
        next(spilled.outsize.score(score_requests()))
    results.close()
    assert len(list(spilled.outsize.score(score_requests()))) == 12


def test_files_that_vanish_end_everything(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model:
        results = model.outsize.generate(generate_requests(12, new=30))
        threading.Timer(0.0, (folder / "model.safetensors").unlink).start()
        with pytest.raises(ModelChanged):
            list(results)
        assert not busy(model)


def test_a_closed_model_says_so(folder: Path) -> None:
    model: Any = outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64)
    model.outsize.close()
    with pytest.raises(OutsizeError, match="closed"):
        list(model.outsize.score(score_requests()))


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


@pytest.mark.parametrize("home", LIMITS)
def test_an_interrupt_ends_everything(folder: Path, home: str) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits=LIMITS[home], context=64, batch=4) as model:
        want = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        calls = []

        def interrupt(*_: Any) -> None:
            calls.append(0)
            if len(calls) == 2:
                raise Interrupted

        hook = model.model.layers[2].mlp.register_forward_hook(interrupt)
        with pytest.raises(Interrupted):
            list(model.outsize.generate(generate_requests(12)))
        hook.remove()
        assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, want)
        assert len(list(model.outsize.score(score_requests()))) == 12


def test_what_fails_together_is_tried_apart(spilled: Any) -> None:
    requests = score_requests(12)
    alone = {r.id: r for r in spilled.outsize.score(requests)}
    bad = requests[5].context[-1:]

    def refuse(module: Any, args: Any) -> None:
        if bool((args[0] == bad[0]).any()):
            raise ValueError("not this one")

    hook = spilled.model.embed_tokens.register_forward_pre_hook(refuse)
    results = {r.id: r for r in spilled.outsize.score(requests)}
    hook.remove()
    assert results["5"].error == "ValueError: not this one"
    for request in requests:
        said = results[request.id]
        touched = any(bad[0] in (*request.context, *c[:-1]) for c in request.continuations)
        assert bool(said.error) == touched
        if not touched:
            assert said.logprobs == pytest.approx(alone[request.id].logprobs, abs=1e-4)


def test_jobs_that_never_wait_run_one_after_the_other(folder: Path) -> None:
    with outsize.load(folder, no_gpu=True, context=64) as model:
        model(input_ids=torch.tensor([[5]]))
        done: list[str] = []

        def work(name: str) -> str:
            for _ in range(2):
                model(input_ids=torch.tensor([[5]]))
                done.append(name)
            return name

        scheduler = Scheduler(model.outsize._sweep, lambda uses: True)
        scheduler.add([Job(lambda name=name: work(name), NOTHING) for name in "abc"])  # type: ignore[misc]
        assert [job.value for job in scheduler.run()] == list("abc")
        assert done == list("aabbcc")
        assert model.outsize.stats.sweeps == model.outsize.stats.forwards == 7
