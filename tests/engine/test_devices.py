"""Several devices without any: tensors without data on a pretended accelerator; operations refuse to mix devices."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from outsize import api, options
from outsize.engine import binding, devices
from outsize.engine.loader import open_model
from outsize.engine.placeholders import RowsOnDisk
from outsize.machine.describe import parse_machine
from outsize.machine.machine import Machine
from outsize.models.tracing.cache_argument import cache_in, with_cache
from outsize.options import LoadOptions

# Shares of the weights that a tier may hold: all on the GPUs, all tiers, and GPUs and disk.
SHARES: Mapping[str, Mapping[str, float]] = {
    "gpus": {"gpu0": 0.6, "gpu1": 4},
    "gpus, ram and disk": {"gpu0": 0.4, "gpu1": 0.25, "ram": 0.2},
    "gpu and disk": {"gpu0": 0, "gpu1": 0.5, "ram": 0},
}
# Rotary tables in the model and in its blocks, masks in blocks, ALiBi, a bias handed from block to block, tied weights.
NAMES = ("llama", "gptj", "gpt_neo", "bloom", "t5", "llama-tied")


class PretendedDevices(devices.Devices):
    """Emulated GPUs as devices of their own."""

    def __init__(self, machine: Machine) -> None:
        pretended = {gpu.name: torch.device("pretend", index) for index, gpu in enumerate(machine.gpus)}
        self._by_name = {"ram": devices.CPU, "disk": devices.CPU, **pretended}


def any_rows(self: RowsOnDisk, ids: torch.Tensor) -> torch.Tensor:
    """Which rows are read depends on data, and there is none."""
    return torch.zeros(*ids.shape, self.shape[1], dtype=self.dtype, device=ids.device)


def slow_without_gpus(text: str, **options: Any) -> Machine:
    """This machine with a drive and a memory so slow that even models this small want GPUs."""
    machine = parse_machine(text, **options)
    slow = {"ram": 1e5, "disk": 1e3}
    return replace(
        machine,
        devices=tuple(
            replace(d, bytes_per_s=slow[d.name], matmul_bytes_per_s={}) if d.name in slow else d
            for d in machine.devices
        ),
    )


@pytest.fixture(scope="module")
def accelerator() -> None:
    """A device type whose guards do nothing: torch knows it from here on."""
    _setup_privateuseone_for_python_backend("pretend")


@pytest.fixture
def pretend(accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor_at = binding.tensor_at
    monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "64MiB,64MiB")
    monkeypatch.setattr(options, "parse_machine", slow_without_gpus)
    monkeypatch.setattr(devices, "Devices", PretendedDevices)
    monkeypatch.setattr(RowsOnDisk, "look_up", any_rows)
    # A clone is a tensor without data; the view itself is not.
    monkeypatch.setattr(binding, "tensor_at", lambda *where: tensor_at(*where).clone())


class Unfilled(TorchFunctionMode):
    """torch.tensor fills its result where it is made, which a device without kernels cannot.

    A mode ends with its block. A function put in torch.tensor's place would stay: torch keeps a set of what obeys
    ``with torch.device(...)``, filled from its own names when it is first needed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor:
            return torch.zeros(np.shape(args[0]), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def without_data() -> ExitStack:
    """Tensors have a shape, a type and a device, and nothing else."""
    stack = ExitStack()
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), Unfilled(), torch.no_grad()):
        stack.enter_context(mode)
    return stack


def passes(model: Any, encoder_decoder: bool) -> list[Any]:
    """Outputs for a prompt and for one more token, with everything that is given to a model given on the CPU."""
    ids = torch.zeros(1, 5, dtype=torch.long)
    if encoder_decoder:
        first = model(input_ids=ids, decoder_input_ids=ids)
        return [first, model(input_ids=ids, decoder_input_ids=ids[:, :1], **with_cache(model, cache_in(first)))]
    first = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    mask = torch.ones(1, 6, dtype=torch.long)
    return [first, model(input_ids=ids[:, :1], attention_mask=mask, **with_cache(model, cache_in(first)))]


@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize("homes", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_no_operation_mixes_devices(name: str, homes: str, tmp_path: Path) -> None:
    made = ARCHITECTURES[name]
    folder = write_checkpoint(tmp_path, made.make_model())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    limits = {tier: int(size * share) for tier, share in SHARES[homes].items()}
    opening = api.prepare(str(folder), LoadOptions(context=64, weight_limits=limits))
    assert any(group.device.startswith("gpu") for group in opening.plan.groups)
    with without_data():
        model: Any = open_model(opening)
        outputs = passes(model, made.encoder_decoder)
        model.outsize.close()
    assert [output.logits.device.type for output in outputs] == ["cpu", "cpu"]


def test_the_cache_lies_beside_its_block(tmp_path: Path, pretend: None) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    size = (folder / "model.safetensors").stat().st_size
    limits = {"gpu0": int(size * 0.4), "gpu1": int(size * 0.25), "ram": size}
    opening = api.prepare(str(folder), LoadOptions(context=64, weight_limits=limits))
    computes = [d for name, d in opening.plan.devices.items() if name.startswith("model.layers.")]
    with without_data():
        model: Any = open_model(opening)
        first, _ = passes(model, encoder_decoder=False)
        caches = [str(layer.keys.device) for layer in cache_in(first).layers]
        model.outsize.close()
    assert caches == [c.replace("gpu", "pretend:").replace("ram", "cpu") for c in computes]
    assert len(set(caches)) > 1


def test_outputs_of_every_make_go_where_the_inputs_came_from(accelerator: None) -> None:
    meta, cpu = torch.device("meta"), devices.CPU
    there = torch.empty(2, device=meta)
    assert devices.move_outputs(there, meta) is there
    assert devices.move_outputs("words", cpu) == "words"
    with FakeTensorMode():
        far = torch.empty(2, device="pretend:0")
        assert devices.move_outputs((far, "cache"), cpu)[0].device == cpu
        filled = {"logits": far, "past_key_values": "cache", "hidden_states": (far, far)}
        moved = devices.move_outputs(filled, cpu)
        assert moved["logits"].device == cpu
        assert [t.device for t in moved["hidden_states"]] == [cpu, cpu]
        assert moved["past_key_values"] == "cache"


def with_groups_on_gpus(opening: Any) -> Any:
    """A plan whose blocks compute on the CPU, but for one Linear layer of each: resident or streamed on a GPU."""
    groups: list[Any] = []
    split = 0
    for group in opening.plan.groups:
        name = next((t for t in group.tensors if t.endswith(("up_proj.weight", "fc1.weight", "wi.weight"))), None)
        if group.residency == "cached" or name is None:
            groups.append(group)
            continue
        together = tuple(t for t in group.tensors if t.rpartition(".")[0] == name.rpartition(".")[0])
        rest = tuple(t for t in group.tensors if t not in together)
        split += 1
        resident = split % 2 == 0
        gpu = replace(
            group,
            tensors=together,
            tier="gpu0" if resident else "disk",
            device="gpu0" if resident else "gpu1",
            residency="resident" if resident else "streamed",
            in_place=False,
        )
        groups += [replace(group, tensors=rest), gpu] if rest else [gpu]
    plan = replace(opening.plan, groups=tuple(groups), ring_slots=3, ring_slot_bytes=1 << 20)
    return replace(opening, plan=plan)


@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize("ram", [0, 1 << 30], ids=["disk", "ram"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_group_computes_on_a_device_of_its_own(name: str, ram: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    opening = with_groups_on_gpus(
        api.prepare(str(folder), LoadOptions(context=64, weight_limits={"gpu0": 0, "gpu1": 0, "ram": ram}))
    )
    assert {group.device for group in opening.plan.groups} == {"ram", "gpu0", "gpu1"}
    with without_data():
        model: Any = open_model(opening)
        outputs = passes(model, encoder_decoder=False)
        model.outsize.close()
    assert [output.logits.device.type for output in outputs] == ["cpu", "cpu"]


@pytest.mark.parametrize("ram", [0, 1 << 30], ids=["disk", "ram"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_groups_on_gpus_give_the_same_logits(
    name: str, ram: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "64MiB,64MiB")
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    theirs = ARCHITECTURES[name].make_model()
    folder = write_checkpoint(tmp_path, theirs)
    opening = with_groups_on_gpus(
        api.prepare(str(folder), LoadOptions(context=64, weight_limits={"gpu0": 0, "gpu1": 0, "ram": ram}))
    )
    model: Any = open_model(opening)
    ids = torch.arange(2, 12).view(1, -1)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(ids).logits, theirs(ids).logits)
    model.outsize.close()
