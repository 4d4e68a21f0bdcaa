"""Recorded loads, replayed: what transformers does to a checkpoint's tensors, done again on real bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from outsize.models.spec import StoredTensor
from outsize.models.tracing.recording import Call, RecordingTensor, Source, copies, replay, sources

LEFT = StoredTensor("left", "float32", (4, 6), "f", 0, 96)
RIGHT = StoredTensor("right", "float32", (4, 6), "f", 96, 96)
REAL = {LEFT: torch.arange(24.0).view(4, 6), RIGHT: torch.arange(24.0).view(4, 6) * -1}


def record(stored: StoredTensor, same: bool = False) -> Any:
    return RecordingTensor.of(stored, lambda a, b: same)


OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
    "plain": (lambda a, b: a, False),
    "on a device": (lambda a, b: a.to("cpu").detach(), False),
    "rows": (lambda a, b: a[1:3], False),
    "transposed": (lambda a, b: a.t(), False),
    "cast": (lambda a, b: a.to(torch.bfloat16), True),
    "cast of rows": (lambda a, b: a[1:].to(torch.float16), True),
    "side by side": (lambda a, b: torch.cat([a, b], dim=1), True),
    "experts": (lambda a, b: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1), True),
    "rows of a copy": (lambda a, b: torch.cat([a, b])[2:], True),
    "one of several": (lambda a, b: a.chunk(3, dim=1)[1], False),
    "scaled": (lambda a, b: a * 2 + b, True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_replay_does_it_again(name: str) -> None:
    operation, makes_memory = OPERATIONS[name]
    noted = operation(record(LEFT), record(RIGHT))
    want = operation(REAL[LEFT], REAL[RIGHT])
    assert noted.shape == want.shape
    assert noted.dtype == want.dtype
    have = replay(noted.expression, REAL.__getitem__)
    assert torch.equal(have, want)
    assert copies(noted.expression) is makes_memory
    shares = have.untyped_storage().data_ptr() == REAL[LEFT].untyped_storage().data_ptr()
    assert shares is not makes_memory


def test_what_is_done_in_place_leaves_the_source_as_it_is() -> None:
    noted = record(LEFT)
    weight = torch.nn.Parameter(noted, requires_grad=False)
    with torch.no_grad():
        weight.div_(4)
    want, before = REAL[LEFT] / 4, REAL[LEFT].clone()
    assert torch.equal(replay(weight.expression, REAL.__getitem__), want)  # type: ignore[attr-defined]
    assert torch.equal(REAL[LEFT], before)


def test_what_is_no_operation_leaves_no_trace() -> None:
    assert record(LEFT).detach().clone().to(torch.float32).detach().expression != Source(LEFT)  # a clone is one
    assert record(LEFT).detach().to(torch.float32).to("cpu").expression == Source(LEFT)


def test_sources_come_in_order_and_as_often_as_they_are_read() -> None:
    noted = torch.stack([record(RIGHT), record(LEFT), record(RIGHT)])
    assert list(sources(noted.expression)) == [RIGHT, LEFT, RIGHT]
    assert isinstance(noted.expression, Call)


def test_answers_that_are_no_tensors() -> None:
    assert record(LEFT).numel() == 24
    assert torch.ops.aten.is_same_size.default(record(LEFT), record(RIGHT)) is True


def test_equality_is_asked_of_the_bytes() -> None:
    assert torch.equal(record(LEFT), record(LEFT))
    assert torch.equal(record(LEFT, same=True), record(RIGHT, same=True))
    assert not torch.equal(record(LEFT), record(RIGHT))
    assert not torch.equal(record(LEFT, same=True), record(RIGHT, same=True).to(torch.float16))
    assert not torch.equal(record(LEFT, same=True)[1:], record(RIGHT, same=True))
    assert not torch.equal(torch.cat([record(LEFT), record(RIGHT)]), torch.cat([record(LEFT), record(RIGHT)]))
    assert not torch.equal(record(LEFT), torch.empty(4, 6, device="meta"))


def test_it_says_what_it_is() -> None:
    assert "left" in repr(record(LEFT))
