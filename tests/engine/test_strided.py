"""Checkpoints whose tensors are saved as strided views: transposed, sliced, expanded, several in one storage.

The reference is ``from_pretrained`` of the same weights saved row-major: that is how they are laid out here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, write_checkpoint
from engine.every_tier import load
from engine.test_budget import MIB, least, run
from quantised import SCHEMES, Scheme, write_quantised
from safetensors.torch import load_file

import outsize
from outsize.convert.cache import convert_model
from outsize.convert.checksums import verify
from outsize.models.files.folder import open_folder
from outsize.models.spec_json import spec_from_json, spec_to_json
from outsize.models.survey_cache import folder_spec
from outsize.planner import footprint

pytestmark = pytest.mark.usefixtures("slow_drive")
Tensor = torch.Tensor
State = dict[str, Tensor]
IDS = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(1))


def transposed(weight: Tensor) -> Tensor:
    """The last dimension outermost in memory; of a vector, every third element."""
    if weight.dim() < 2:
        return torch.stack([weight, weight + 1, weight + 2], -1)[..., 0]
    return weight.transpose(0, -1).contiguous().transpose(0, -1)


def columns(weight: Tensor) -> Tensor:
    """A slice of a wider tensor."""
    return torch.cat([weight + 1, weight, weight + 2], -1).narrow(-1, weight.shape[-1], weight.shape[-1])


def every_second(weight: Tensor) -> Tensor:
    """Every second element of every second row."""
    wide = weight.repeat_interleave(2, -1)
    wide[..., 1::2] = 7
    return wide[..., ::2] if weight.dim() < 2 else wide.repeat_interleave(2, 0)[1::2, ..., ::2]


def scattered(weight: Tensor) -> Tensor:
    """As ``transposed``, each element pages away from its neighbours in a row."""
    if weight.dim() < 2:
        return weight
    storage = torch.zeros(weight.shape[1], 9000 // weight.element_size() + weight.shape[0], dtype=weight.dtype)
    storage[:, 5 : 5 + weight.shape[0]] = weight.t()
    return storage.t()[5 : 5 + weight.shape[0]]


VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (transposed, columns, every_second, scattered)
}


def with_views(state: Mapping[str, Tensor], kind: str) -> State:
    """The same state dict with every tensor as a view of that kind."""
    if kind == "one storage":  # of one contiguous run of each tensor after the other, at any offset
        flat = torch.cat(
            [torch.zeros(3, dtype=next(iter(state.values())).dtype), *(t.flatten() for t in state.values())]
        )
        made, start = {}, 3
        for name, tensor in state.items():
            made[name] = flat[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
        return made
    if kind == "side by side":  # matrices of one height are columns of one storage: views that interlace
        made = dict(state)
        for height in {t.shape[0] for t in state.values() if t.dim() == 2}:
            alike = {name: t for name, t in state.items() if t.dim() == 2 and t.shape[0] == height}
            parts = torch.cat(list(alike.values()), 1).split([t.shape[1] for t in alike.values()], 1)
            made.update(zip(alike, parts, strict=True))
        return made
    if kind == "expanded":  # not the head: of equal logits, the first is a matter of chance
        whole = ("lm_head", "wte", "embed")
        return {n: t if any(w in n for w in whole) else t[:1].expand(t.shape) for n, t in state.items()}
    return {name: VIEWS[kind](tensor) for name, tensor in state.items()}


KINDS = (*VIEWS, "one storage", "side by side", "expanded")


def write(folder: Path, model: Any, kind: str, changes: Mapping[str, Any] | None = None) -> Path:
    """The model's checkpoint with views of that kind, in ``folder``; the same row-major in ``folder/plain``."""
    state = {n: t.detach() for n, t in model.state_dict().items() if n not in model.all_tied_weights_keys}
    views = with_views(state, kind)
    write_checkpoint(folder / "plain", model, state=views, config_changes=changes)
    write_checkpoint(folder, model, "bin", state={}, config_changes=changes)
    torch.save(views, folder / "pytorch_model.bin")
    assert any(t.strides is not None for t in open_folder(folder).tensors) == (kind != "one storage")
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def check(folder: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain")
    with load(folder, home, monkeypatch) as model:
        assert torch.equal(logits(model), logits(theirs))
        made = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(made, theirs.generate(IDS, max_new_tokens=3, do_sample=False))


ALL_TIERS = "two GPUs, ram and disk"
CASES = [
    *(("gptj", kind, home) for kind in KINDS for home in ("disk", ALL_TIERS)),
    *((name, kind, ALL_TIERS) for name in ("opt", "llama-tied") for kind in ("transposed", "scattered")),
    ("gptj", "transposed", "ram"),
    ("llama-tied", "transposed", "ram and disk"),
    ("llama-tied", "transposed", "disk"),  # the head's rows are looked up, and it is streamed
]


@pytest.mark.parametrize(("name", "kind", "home"), CASES)
def test_every_kind_of_view_from_every_tier(
    name: str, kind: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(write(tmp_path, ARCHITECTURES[name].make_model(), kind), home, monkeypatch)


@pytest.mark.parametrize("home", ["ram", "disk"])
def test_views_that_are_used_in_another_data_type(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    check(write(tmp_path, ARCHITECTURES["gptj"].make_model(), "transposed", changes), home, monkeypatch)


@pytest.mark.parametrize("name", ["gptj", "llama-tied"])
def test_the_compiled_kernels_get_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bf12 where it has a use: the same as from a checkpoint that is row-major."""
    monkeypatch.delenv("OUTSIZE_KERNELS")
    folder = write(tmp_path, ARCHITECTURES[name].make_model(), "transposed")
    for home in ("ram", "ram and disk"):
        with load(folder, home, monkeypatch) as strided, load(folder / "plain", home, monkeypatch) as plain:
            assert torch.equal(logits(strided), logits(plain))


@pytest.mark.parametrize("kind", ["transposed", "columns", "expanded"])
def test_planned_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is the spans; what rests in memory is the elements; a ring slot has room for both."""
    folder = write(tmp_path, ARCHITECTURES["gptj"].make_model(), kind)
    stored = open_folder(folder).tensors
    spec, plain = folder_spec(open_folder(folder)), folder_spec(open_folder(folder / "plain"))
    assert spec.weight_bytes == sum(t.nbytes for t in stored)
    assert spec_from_json(spec_to_json(spec)) == spec
    for module, same in zip(spec.modules, plain.modules, strict=True):
        assert footprint.resident_bytes(module, "native") == footprint.resident_bytes(same, "native")
        assert footprint.rest_bytes(module, "int8") == footprint.rest_bytes(same, "int8")
        assert footprint.slot_bytes(module, "int8") == footprint.slot_bytes(same, "int8")
        by_name = {t.name: t for t in stored}
        strided = [t for t in module.tensors if by_name[t.name].strides is not None]
        assert footprint.converted_bytes(module, "native") == sum(t.runtime_bytes for t in strided)
    with load(folder, "disk", monkeypatch) as model:
        logits(model)
        plan = model.outsize.plan
        passing = {group.module for group in plan.groups if group.streamed}
        streamed = [module for module in spec.modules if module.name in passing]
        read = sum(group.rest_bytes for group in plan.groups if group.streamed)
        assert read == sum(footprint.rest_bytes(module, "native") for module in streamed)
        assert plan.ring_slot_bytes == max(footprint.slot_bytes(module, "native") for module in streamed)
    with load(folder, "ram", monkeypatch) as model:
        logits(model)
        assert sum(group.rest_bytes for group in model.outsize.plan.groups) == sum(p.nbytes for p in model.parameters())
        assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("stored", ["equal", "different"])
def test_tied_weights_stored_row_major_and_transposed(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal elements are one weight, however they lie; others are two, though they lie in the same bytes."""
    model = ARCHITECTURES["llama-tied"].make_model()
    state = dict(model.state_dict())
    embedding = state["model.embed_tokens.weight"]
    if stored == "equal":
        state["lm_head.weight"] = transposed(embedding)
    else:
        state["lm_head.weight"] = embedding.view(32, 99).t()
    model.all_tied_weights_keys.clear()
    write_checkpoint(tmp_path / "plain", model, state=state)
    write_checkpoint(tmp_path, model, "bin", state={})
    torch.save(state, tmp_path / "pytorch_model.bin")
    names = {t.name for m in folder_spec(open_folder(tmp_path)).modules for t in m.tensors}
    assert ("lm_head.weight" in names) == (stored == "different")
    check(tmp_path, "disk", monkeypatch)


@pytest.mark.parametrize("kind", ["transposed", "side by side", "expanded"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_conversion_gives_the_bytes_of_a_row_major_checkpoint(kind: str, weights: str, tmp_path: Path) -> None:
    folder = write(tmp_path, ARCHITECTURES["gptj"].make_model(), kind)
    copies = [convert_model(str(source), weights, out=tmp_path / source.name / "out").folder
              for source in (folder, folder / "plain")]  # fmt: skip
    first, second = (load_file(copy / "model.safetensors") for copy in copies)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(name.endswith("_packed") for name in first)
    verify(copies[0])


@pytest.mark.parametrize("home", ["ram", "disk"])
@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=str)
def test_packed_weights_that_are_stored_as_views(
    scheme: Scheme, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "plain", tmp_path / "strided"):
        write_quantised(folder, ARCHITECTURES["llama"].make_model(), scheme)
    state = load_file(tmp_path / "plain" / "model.safetensors")
    (tmp_path / "strided" / "model.safetensors").unlink()
    torch.save(with_views(state, "transposed"), tmp_path / "strided" / "pytorch_model.bin")
    with load(tmp_path / "plain", home, monkeypatch) as plain, load(tmp_path / "strided", home, monkeypatch) as strided:
        assert torch.equal(logits(strided), logits(plain))


def test_a_hostile_tensor_that_repeats_a_few_bytes_for_ever(tmp_path: Path) -> None:
    """It does not fit any machine, and is refused as such before anything is read."""
    model = ARCHITECTURES["llama-tied"].make_model()
    write_checkpoint(tmp_path, model, "bin", state={}, config_changes={"vocab_size": 1 << 50})
    huge = torch.zeros(1, dtype=torch.bfloat16).expand(1 << 50, 32)
    other = torch.zeros(2, dtype=torch.bfloat16)[1:].expand(1 << 50, 32)
    state = {**model.state_dict(), "model.embed_tokens.weight": huge, "lm_head.weight": other}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(outsize.DoesNotFit):
        outsize.load(tmp_path, no_gpu=True)


@pytest.mark.slow
def test_the_process_stays_within_the_budget(tmp_path: Path) -> None:
    """Some 120 MB, all transposed: the copies that are laid out are in the plan."""
    config = transformers.LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=16,
        max_position_embeddings=2048, dtype=torch.bfloat16,
    )  # fmt: skip
    write(tmp_path, transformers.LlamaForCausalLM(config).to(torch.bfloat16), "transposed")
    budget = least(tmp_path, context=128) + 20 * MIB
    code, said = run(tmp_path, ram=budget, context=128)
    assert code == 0
    assert said["streamed"] > 0
    assert said["peak"] <= budget
