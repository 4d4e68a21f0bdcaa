from __future__ import annotations

import pytest
import torch
from checkpoints import ARCHITECTURES
from torch import nn
from torch.nn import functional

from outsize.models import tracing
from outsize.models.spec import ModelSpec
from outsize.models.tracing import parts
from outsize.models.tracing.measure import _LiveBytes
from outsize.models.tracing.spans import Turns


def surveyed(name: str) -> ModelSpec:
    model = ARCHITECTURES[name].make_model(0)
    config = model.config
    cls = type(model)
    tensors = tracing.config_tensors(config, cls)
    return tracing.survey(tracing.rehearse(config, cls, tensors, lambda a, b: True), name)


def test_a_block_is_divided_where_its_layers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST_BYTES", 0)
    block = surveyed("opt").blocks[0]
    names = [[t.name.removeprefix(f"{block.name}.") for t in part] for part in block.parts]
    assert len(names) > 1
    assert names[-1] == ["fc2.weight", "fc2.bias"]
    assert sorted(t.name for part in block.parts for t in part) == sorted(t.name for t in block.tensors)


def test_small_blocks_stay_whole() -> None:
    assert all(len(block.parts) == 1 for block in surveyed("opt").blocks)


def test_modules_outside_the_blocks_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST_BYTES", 0)
    assert all(len(m.parts) == 1 for m in surveyed("t5").modules if m.role != "block")


class Reaching(nn.Module):
    """A module that uses a layer's weight past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.linear(x, self.first.weight))


def test_weights_that_are_used_past_their_module_are_noticed() -> None:
    model = Reaching().to("meta")
    turns = Turns(model)
    with torch.inference_mode(), _LiveBytes(set(), turns):
        model(torch.empty(1, 4, device="meta"))
    turns.close()
    assert turns.strays == {"first.weight"}
    assert id(model.second) in turns.spans
    assert id(model.first) not in turns.spans


def test_a_unit_with_such_weights_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST_BYTES", 0)
    model = ARCHITECTURES["opt"].make_model(0)
    tensors = tracing.config_tensors(model.config, type(model))
    skeleton = tracing.rehearse(model.config, type(model), tensors, lambda a, b: True)
    unit = next(unit for unit in skeleton.units if unit.role == "block")
    turns = Turns(skeleton.model)
    turns.close()
    assert set(parts.divide(unit, turns).values()) == {0}  # nothing has computed
    for number, weight in enumerate(unit.weights):
        turns.spans[id(weight.slots[0].module)] = (number, number)
    assert set(parts.divide(unit, turns).values()) != {0}
    turns.strays.add(unit.weights[0].name)
    assert set(parts.divide(unit, turns).values()) == {0}
