"""What is planned for int8 and int4 of a native checkpoint: what converting writes, and what a run allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from quantised import SCHEMES, Scheme, write_quantised

import outsize
from outsize.convert.cache import convert_model
from outsize.kernels.weights import PackedWeight
from outsize.machine.describe import parse_machine
from outsize.models.files.folder import open_folder
from outsize.models.spec import ModelSpec
from outsize.models.survey_cache import folder_spec
from outsize.planner import footprint
from outsize.planner.plan import Plan, Weights
from outsize.planner.planner import make_request, plan_one


def plan_of(spec: ModelSpec, weights: Weights, **limits: int) -> Plan:
    machine = parse_machine("ram=64GiB,disk=1TiB@1GB/s")
    return plan_one(spec, machine, make_request(spec, context=32, weight_limits=tuple(limits.items())), weights)


def allocated(model: Any, spec: ModelSpec) -> int:
    """Bytes of all weights that a model holds, each once."""
    held = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    total = 0
    for weight in (held[tensor.name] for module in spec.modules for tensor in module.tensors):
        parts = (weight.values, weight.scale, weight.zero_point) if isinstance(weight, PackedWeight) else (weight,)
        total += sum(part.nbytes for part in parts if part is not None)
    return total


def check_run(folder: Path, spec: ModelSpec) -> None:
    with outsize.load(folder, no_gpu=True, context=32) as model:
        ids = torch.arange(5, 10)[None]
        model(input_ids=ids, **({"decoder_input_ids": ids} if spec.encoder_decoder else {}))
        ram = sum(group.rest_bytes for group in model.outsize.plan.groups)
        assert {group.tier for group in model.outsize.plan.groups} == {"ram"}
        assert ram == allocated(model, spec)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", ["opt", "t5", "llama-tied", "gpt_neox", "marian"])
def test_of_a_native_checkpoint(name: str, weights: Weights, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", ARCHITECTURES[name].make_model())
    native = folder_spec(open_folder(source))
    copy = open_folder(convert_model(str(source), weights).folder)
    spec = folder_spec(copy)
    assert spec.formats == {weights}
    on_disk, converted = plan_of(native, weights, ram=0), plan_of(spec, "native", ram=0)
    assert on_disk.usage["disk"].weights_bytes == spec.weight_bytes == sum(tensor.nbytes for tensor in copy.tensors)
    assert [g.rest_bytes for g in on_disk.groups] == [g.rest_bytes for g in converted.groups]
    assert (on_disk.ring_slots, on_disk.ring_slot_bytes) == (converted.ring_slots, converted.ring_slot_bytes)
    assert on_disk.predicted == converted.predicted
    resident = sum(footprint.resident_bytes(module, weights) for module in native.modules)
    assert resident == sum(footprint.resident_bytes(module, "native") for module in spec.modules)
    assert copy.path is not None
    check_run(copy.path, spec)


def test_of_a_checkpoint_that_is_used_in_another_type_than_it_is_stored_in(tmp_path: Path) -> None:
    changes = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    model = ARCHITECTURES["llama"].make_model()
    source = write_checkpoint(tmp_path / "source", model, config_changes=changes)
    native = folder_spec(open_folder(source))
    copy = open_folder(convert_model(str(source), "int4").folder)
    spec = folder_spec(copy)
    assert plan_of(native, "int4", ram=0) == plan_of(spec, "int4", ram=0)
    assert copy.path is not None
    check_run(copy.path, spec)


@pytest.mark.parametrize("scheme", [*SCHEMES[:2], Scheme(8, None, symmetric=False, form="int-quantized")], ids=str)
def test_of_a_folder_of_others(scheme: Scheme, tmp_path: Path) -> None:
    folder = open_folder(write_quantised(tmp_path, ARCHITECTURES["llama"].make_model(), scheme))
    spec = folder_spec(folder)
    plan = plan_of(spec, "native", ram=0)
    assert plan.usage["disk"].weights_bytes == spec.weight_bytes == sum(tensor.nbytes for tensor in folder.tensors)
    check_run(tmp_path, spec)
