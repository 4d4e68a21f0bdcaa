"""Whatever the architecture, the kind of its files and the homes of its weights: transformers' own numbers, to the bit.

The reference is ``from_pretrained`` on the same folder. Each architecture runs from RAM, from disk, from both, and from
two emulated GPUs, RAM and disk at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, FORMATS, Architecture, Format, write_checkpoint
from engine.every_tier import HOMES, load
from torch.utils._pytree import tree_leaves

from outsize.machine.describe import parse_machine
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec
from outsize.models.tracing.cache_argument import cache_in
from outsize.planner.planner import make_request, plan_one

pytestmark = pytest.mark.usefixtures("slow_drive")
OLD_LAYOUTS = tuple(name for name, arch in ARCHITECTURES.items() if arch.prefix or arch.ignored)
BEAMS = {"greedy": 1, "beams": 2}


@dataclass(frozen=True)
class Case:
    """A checkpoint and what transformers makes of it."""

    arch: Architecture
    folder: Path
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    tokens: dict[str, torch.Tensor]
    cache_bytes: int  # that transformers' own greedy generation held at its end
    parameters: int


def reference(arch: Architecture, folder: Path) -> Case:
    auto = arch.auto or ("AutoModelForSeq2SeqLM" if arch.encoder_decoder else "AutoModelForCausalLM")
    model = getattr(transformers, auto).from_pretrained(folder, experts_implementation="eager")
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if not arch.encoder_decoder:
        ids[0, :2], mask[0, :2] = 0, 0  # one prompt is shorter: padded on the left
    inputs = {"input_ids": ids, "attention_mask": mask}
    tokens, cache_bytes = {}, 0
    if model.can_generate():
        for name, beams in BEAMS.items():
            out = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, num_beams=beams, return_dict_in_generate=True
            )
            tokens[name] = out.sequences
            cache_bytes = cache_bytes or held(cache_in(out))
    stored_buffers = sum(b.numel() for name, b in model.named_buffers() if name in model.state_dict())
    if arch.encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    parameters = model.num_parameters() + stored_buffers
    return Case(arch, folder, inputs, logits(model, inputs), tokens, cache_bytes, parameters)


def held(cache: Any) -> int:
    """Bytes that a cache's tensors keep alive."""
    parts = [cache]
    if isinstance(cache, transformers.EncoderDecoderCache):
        parts = [cache.self_attention_cache, cache.cross_attention_cache]
    tensors = [t for part in parts for layer in part.layers for t in tree_leaves(vars(layer))]
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor) and t.dim())


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out["logits" if "logits" in out else "last_hidden_state"]


def check(case: Case, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(case.folder, home, monkeypatch, auto_class=case.arch.auto)
    try:
        assert torch.equal(logits(model, case.inputs), case.logits)
        prompt = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
        for name, tokens in case.tokens.items():
            beams = BEAMS[name]
            made = model.generate(**prompt, max_new_tokens=4, do_sample=False, num_beams=beams)
            assert torch.equal(made, tokens), name
    finally:
        model.outsize.close()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    arch = ARCHITECTURES[request.param]
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), arch.make_model())
    return reference(arch, folder)


@pytest.mark.parametrize("home", ["ram", "disk", "two GPUs, ram and disk"])
def test_an_architecture_from_every_tier(case: Case, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, home, monkeypatch)


def test_the_facts_about_an_architecture(case: Case) -> None:
    """Every weight once, all of them, nothing that the model ignores; the cache that generate() really allocates."""
    folder = open_folder(case.folder)
    spec = folder_spec(folder, case.arch.auto)
    assert spec.weight_bytes == sum(t.nbytes for t in folder.tensors)
    assert spec.parameters == case.parameters
    plan = plan_one(spec, parse_machine("2x-titan-rtx"), make_request(spec, context=32))
    assert sum(group.rest_bytes for group in plan.groups) == sum(module.runtime_bytes for module in spec.modules)
    assert len(spec.blocks) >= 3
    runtime = str(case.arch.dtype).removeprefix("torch.")
    assert all(t.runtime == runtime for m in spec.blocks for t in m.tensors if t.matmul)
    assert {m.stack for m in spec.modules} == ({"encoder", "decoder"} if case.arch.encoder_decoder else {""})
    if case.tokens:
        batch, length = case.tokens["greedy"].shape
        growing = [replace(m.cache, fixed=0) for m in spec.modules]  # fixed: a few bytes of counters
        want = batch * sum(cache.bytes_for(length - 1, encoder_tokens=9) for cache in growing)
        assert case.cache_bytes == want  # the last token is never fed back


@pytest.mark.parametrize("number", range(len(OLD_LAYOUTS)), ids=OLD_LAYOUTS.__getitem__)
def test_older_layouts(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names without the base model's prefix, keys that the model ignores, every kind of file, in turn."""
    arch = ARCHITECTURES[OLD_LAYOUTS[number]]
    form: Format = FORMATS[(number + 2) % 4]
    write_checkpoint(tmp_path, arch.make_model(), form, without_prefix=arch.prefix, ignored=arch.ignored)
    check(reference(arch, tmp_path), tuple(HOMES)[(number + 2) % 4], monkeypatch)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("opt", "ram and disk"),  # as the hub has it: .bin
        ("t5", "two GPUs, ram and disk"),  # one tensor under four names
    ],
)
def test_every_kind_of_file(
    name: str, home: str, form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = ARCHITECTURES[name]
    write_checkpoint(tmp_path, arch.make_model(), form)
    check(reference(arch, tmp_path), home, monkeypatch)


@pytest.mark.parametrize(
    ("name", "stored", "asked"),
    [
        ("llama", "float32", "bfloat16"),
        ("llama-tied", "bfloat16", "float32"),
        ("bloom", "bfloat16", "float16"),
        ("t5", "float32", "bfloat16"),
        ("opt", "float16", None),  # a configuration without a data type: what the tensors have
    ],
)
@pytest.mark.parametrize("home", ["disk", "two GPUs, ram and disk"])
def test_a_configuration_that_asks_for_another_data_type(
    name: str, stored: str, asked: str | None, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = ARCHITECTURES[name]
    model = arch.make_model().to(getattr(torch, stored))
    write_checkpoint(tmp_path, model, config_changes={"dtype": asked, "torch_dtype": asked})
    check(reference(arch, tmp_path), home, monkeypatch)


@pytest.mark.parametrize("home", ["disk", "two GPUs, ram and disk"])
def test_tied_weights_that_are_stored_twice(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.save of a whole state dict writes them: equal bytes are one weight, others are two."""
    arch = ARCHITECTURES["llama-tied"]
    model = arch.make_model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.all_tied_weights_keys.clear()
    write_checkpoint(tmp_path / "equal", model, state=state)
    state["lm_head.weight"] += 1
    write_checkpoint(tmp_path / "different", model, state=state)
    for folder in (tmp_path / "equal", tmp_path / "different"):
        check(reference(arch, folder), home, monkeypatch)
