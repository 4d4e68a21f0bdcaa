"""Mixtures of experts, expert by expert: transformers' own bits however they run, and nothing read but what is used.

test_parity.py has plain generation and beams, test_published_formats.py fp8 and mxfp4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, EXPERTS, LLAMA, Architecture, write_checkpoint
from engine.every_tier import load
from engine.test_planned_bytes import plan_of
from engine.test_service import Asked, Letters
from requests_alone import generate_requests, score_requests, scored_alone
from safetensors.torch import load_file, save_file

import outsize
from outsize.convert.cache import convert_model
from outsize.engine.answer import Failed, Wish
from outsize.engine.experts import RoutedExperts
from outsize.engine.request import GenerateRequest
from outsize.errors import ModelChanged, OutsizeError
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec
from outsize.planner.footprint import expert_slot_bytes
from outsize.planner.plan import Weights

pytestmark = pytest.mark.usefixtures("slow_drive")
Tensor = torch.Tensor
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe", "olmoe", "phimoe",
            "granitemoe")  # fmt: skip
IDS = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
# Sizes that int8 and int4 have groups for.
WIDE: Mapping[str, Any] = {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
CONVERTED = {
    "one by one": Architecture(
        "qwen3_moe",
        {**EXPERTS, **WIDE, "head_dim": 16, "moe_intermediate_size": 64, "num_experts": 8},
        dtype=torch.bfloat16,
    ),
    "fused": Architecture("granitemoe", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def generate(model: Any, ids: Tensor = IDS, new: int = 4, **more: Any) -> Tensor:
    made: Tensor = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, **more)
    return made


def experts_of(model: Any) -> list[RoutedExperts]:
    return list(model.outsize._sweep.experts.layers)


def idle(model: Any) -> bool:
    """Whether nothing of a pass is left behind."""
    layers = experts_of(model)
    pinned = [e for layer in layers[0].cache._layers for e in layer if e.pinned]
    return not pinned and not any(layer._coming for layer in layers) and not model.outsize._sweep.context.scheduled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture in float32: its answers do not depend on what is computed beside them."""
    return write_checkpoint(tmp_path_factory.mktemp("mixtral"), ARCHITECTURES["mixtral"].make_model())


@pytest.fixture
def spilled(folder: Path) -> Iterator[Any]:
    """Everything on disk, and room for two experts."""
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model:
        assert model.outsize.plan.expert_slots == 2
        yield model


@pytest.mark.parametrize("name", MIXTURES)
def test_an_assistant_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guesses are judged in one pass over several tokens."""
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    assistant = ARCHITECTURES["llama"].make_model(seed=1)
    want = generate(theirs(tmp_path), IDS[:1], new=6, assistant_model=assistant)
    with load(tmp_path, "disk", monkeypatch) as model:
        assert torch.equal(generate(model, IDS[:1], new=6, assistant_model=assistant), want)
        assert idle(model)


def test_a_dataset_fetches_each_expert_once_for_all(
    spilled: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outsize.engine.batching.MICRO_BATCH_TOKENS", 32)
    requests = score_requests(40, shared=0)
    predicted = spilled.outsize.predict(requests)
    before = spilled.outsize.stats
    results = {result.id: result for result in spilled.outsize.score(requests)}
    after = spilled.outsize.stats
    assert after.forwards - before.forwards > 8
    assert after.sweeps - before.sweeps == predicted.sweeps == 1
    count = sum(layer.group.experts for layer in experts_of(spilled))
    assert after.expert_hits + after.expert_misses == count
    assert after.expert_misses >= count - 2
    # Each once, some of the two that a layer ends with twice.
    reads = spilled.outsize._sweep.expert_stats.bytes_read
    assert reads <= 1.05 * sum(e.layout.nbytes for layer in experts_of(spilled)[0].cache._layers for e in layer)
    plain = theirs(folder)
    for request in requests[:10]:
        for continuation, logprob in zip(request.continuations, results[request.id].logprobs, strict=True):
            assert logprob == pytest.approx(scored_alone(plain, request.context, continuation)[0], abs=2e-5)
    assert idle(spilled)


@pytest.mark.parametrize("home", ["ram", "disk"])
def test_generations_of_a_dataset_share_sweeps(home: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.engine.batching.DECODE_TOKENS", 24)
    requests = [GenerateRequest(r.id, r.prompt, max_new_tokens=5) for r in generate_requests(12, shared=0)]
    with load(folder, home, monkeypatch, context=64, batch=4) as model:
        alone = {r.id: next(iter(model.outsize.generate([r]))).tokens for r in requests}
        predicted, before = model.outsize.predict(requests), model.outsize.stats
        assert {r.id: r.tokens for r in model.outsize.generate(requests)} == alone
        after = model.outsize.stats
        assert after.forwards - before.forwards > 2 * (after.sweeps - before.sweeps)
        assert after.sweeps - before.sweeps <= predicted.sweeps == 5
        assert idle(model)


@pytest.mark.parametrize("home", ["ram", "disk"])
def test_requests_that_come_and_go(home: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single tokens of some beside prompts of others; one leaves in the middle."""
    requests = generate_requests(5, new=6)
    long = GenerateRequest("long", tuple(range(3, 50)), max_new_tokens=4)
    with load(folder, home, monkeypatch, context=64, batch=4) as model:
        alone = {r.id: next(iter(model.outsize.generate([r]))).tokens for r in (*requests, long)}
        with model.outsize.serving(Letters(), prefix_bytes=0) as service:
            leaves = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=50)))
            asked = {r.id: Asked(service, Wish(r)) for r in requests}
            asked["0"].first()
            asked["long"] = Asked(service, Wish(long))
            leaves.first()
            service.cancel(leaves.ticket)
            assert leaves.all()[-1] == Failed("cancelled")
            for key, one in asked.items():
                assert one.tokens == alone[key]
        assert idle(model)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


@pytest.mark.parametrize("where", ["in the block", "in an expert"])
def test_a_pass_that_ends_in_the_middle(where: str, spilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = logits(spilled)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 6:
            raise Interrupted

    hook = None
    if where == "in the block":
        hook = spilled.model.layers[2].mlp.register_forward_hook(interrupt)
    else:
        outputs = RoutedExperts._outputs
        monkeypatch.setattr(RoutedExperts, "_outputs", lambda *args: (interrupt(), outputs(*args))[1])
    runs: list[Callable[[], Any]] = [
        lambda: [logits(spilled) for _ in range(6)],
        lambda: list(spilled.outsize.generate(generate_requests(12))),
        lambda: list(spilled.outsize.score(score_requests(12))) + [logits(spilled) for _ in range(6)],
    ]
    for run in runs:
        calls.clear()
        with pytest.raises(Interrupted):
            run()
        assert torch.equal(logits(spilled), want)
        assert not any(layer._coming for layer in experts_of(spilled))
    if hook is not None:
        hook.remove()
    monkeypatch.undo()
    assert len(list(spilled.outsize.score(score_requests()))) == 12
    assert idle(spilled)


def test_gradients_may_be_on(folder: Path, spilled: Any) -> None:
    assert torch.equal(spilled(IDS).logits, theirs(folder)(IDS).logits)


@pytest.mark.parametrize("room", ["for all others", "for a few"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "granitemoe"])
def test_some_layers_experts_on_a_gpu(name: str, room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, with biases, fused: each goes there once, however many prompts come."""
    monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "64MiB")
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())
    spec = folder_spec(open_folder(tmp_path))
    routed = [module for module in spec.modules if module.experts]
    others = sum(m.runtime_bytes for m in spec.modules if not m.experts)
    slots = sum(m.experts * expert_slot_bytes(m, "native") for m in routed[2:])  # of two layers
    enough = room == "for all others"
    limits = {"gpu0": 2 * routed[0].runtime_bytes + 100, "ram": others + (3 * slots // 2 if enough else slots // 4)}
    plain = theirs(tmp_path)
    with outsize.load(tmp_path, weight_limits=limits, context=32, batch=2) as model:
        plan = model.outsize.plan
        assert {"gpu0"} < {group.tier for group in plan.groups if group.experts}
        left = sum(group.experts for group in plan.groups if group.tier != "gpu0")
        assert (plan.expert_slots >= left) == enough
        assert torch.equal(generate(model), generate(plain))
        for seed in range(3):
            ids = torch.randint(3, 99, (2, 15), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(logits(model, ids), logits(plain, ids))
        there = [layer for layer in experts_of(model) if layer.group.tier == "gpu0"]
        before = model.outsize.stats.expert_bytes
        for layer in there:
            assert len(layer._on_device) == layer.group.experts
            assert not any(e.state == "ready" for e in layer.cache._layers[layer.layer])
        logits(model, ids)
        others_read = model.outsize.stats.expert_bytes - before
        of_others = [layer for layer in experts_of(model) if layer not in there]
        most = sum(e.layout.nbytes for layer in of_others for e in layer.cache._layers[layer.layer])
        assert others_read == 0 if enough else 0 < others_read <= most


def test_a_token_reads_its_experts_less_those_that_are_there(tmp_path: Path) -> None:
    sizes = {"hidden_size": 192, "moe_intermediate_size": 192, "num_experts": 8, "num_hidden_layers": 3}
    write_checkpoint(tmp_path, Architecture("qwen3_moe", {**EXPERTS, **sizes, "head_dim": 48}).make_model())
    spec = folder_spec(open_folder(tmp_path))
    one = 3 * 192 * 192 * 4
    others = sum(m.runtime_bytes for m in spec.modules if not m.experts)
    with outsize.load(tmp_path, no_gpu=True, weight_limits={"ram": others + 7 * one}, context=64) as model:
        plan = model.outsize.plan
        assert {g.tier for g in plan.groups if g.experts} == {"disk"}
        assert {g.tier for g in plan.groups if not g.experts} == {"ram"}
        assert 7 <= plan.expert_slots < 12
        generate(model, IDS[:1])
        before, used = model.outsize.stats, sum(sum(layer.uses) for layer in experts_of(model))
        generate(model, torch.tensor([[7]]), new=40)
        after = model.outsize.stats
        uses = sum(sum(layer.uses) for layer in experts_of(model)) - used
        hits, misses = after.expert_hits - before.expert_hits, after.expert_misses - before.expert_misses
        read = after.bytes_read - before.bytes_read
        assert hits + misses == uses == 40 * 3 * 2
        assert hits > 0
        assert read == after.expert_bytes - before.expert_bytes  # all else stays in memory
        assert read == pytest.approx((uses - hits) * one, rel=0.02)
        assert plan.predicted.expert_hit_rate == pytest.approx(plan.expert_slots / 24)
        assert plan.predicted.disk_bytes_per_token == pytest.approx((1 - plan.expert_slots / 24) * 6 * one, rel=1e-3)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.03), ("int4", 0.4)])
@pytest.mark.parametrize("name", CONVERTED)
def test_converted_experts(
    name: str, weights: Weights, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte as planned; near the native model, the same from memory and from disk."""
    whole = CONVERTED[name].make_model()
    source = write_checkpoint(tmp_path / "source", whole)
    native = folder_spec(open_folder(source))
    copy = open_folder(convert_model(str(source), weights).folder)
    assert copy.path is not None
    spec = folder_spec(copy)
    assert spec.formats == {weights}
    assert all(t.packing is not None for m in spec.modules if m.experts for t in m.tensors)
    on_disk, converted = plan_of(native, weights, ram=0), plan_of(spec, "native", ram=0)
    assert on_disk.usage["disk"].weights_bytes == spec.weight_bytes == sum(tensor.nbytes for tensor in copy.tensors)
    assert [g.rest_bytes for g in on_disk.groups] == [g.rest_bytes for g in converted.groups]
    assert (on_disk.expert_slots, on_disk.expert_slot_bytes) == (converted.expert_slots, converted.expert_slot_bytes)
    found = []
    for home in ("ram", "disk"):
        with load(copy.path, home, monkeypatch) as model:
            found.append(logits(model))
            cache = experts_of(model)[0].cache
            sizes = {e.layout.nbytes for layer in cache._layers for e in layer}
            assert max(sizes) <= model.outsize.plan.expert_slot_bytes
    assert torch.equal(found[0], found[1])
    want = logits(whole)
    error = (found[0] - want).norm(dim=-1) / want.norm(dim=-1)  # of few tokens that another expert got, more
    assert 0 < error.median() < most


@pytest.mark.parametrize("name", ["olmoe", "granitemoe"])
def test_experts_under_the_names_that_transformers_has_for_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused, as it saves them where it is told to."""
    whole = ARCHITECTURES[name].make_model()
    write_checkpoint(tmp_path, whole, state=whole.state_dict())
    assert any(tensor.name.endswith("experts.gate_up_proj") for tensor in open_folder(tmp_path).tensors)
    with load(tmp_path, "disk", monkeypatch) as model:
        assert len(experts_of(model)) == 4
        assert torch.equal(logits(model), logits(theirs(tmp_path)))


@pytest.mark.parametrize(
    ("name", "home"), [("mixtral", "disk"), ("olmoe", "two GPUs, ram and disk"), ("granitemoe", "disk")]
)
def test_experts_that_are_stored_in_another_type_than_they_compute_in(
    name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    write_checkpoint(tmp_path, ARCHITECTURES[name].make_model(), config_changes=changes)
    plain = theirs(tmp_path)
    with load(tmp_path, home, monkeypatch) as model:
        assert model.dtype == torch.bfloat16
        assert torch.equal(logits(model), logits(plain))
        assert torch.equal(generate(model), generate(plain))


@pytest.mark.parametrize("name", ["mixtral", "granitemoe"])
def test_experts_that_are_stored_as_strided_views(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one each is laid out when it is used; where all are one view, they move as a whole."""
    whole = ARCHITECTURES[name].make_model()
    write_checkpoint(tmp_path / "plain", whole)
    state = {
        key: tensor.transpose(0, -1).contiguous().transpose(0, -1) if "experts" in key or "block_sparse" in key
        else tensor for key, tensor in whole.state_dict().items()
    }  # fmt: skip
    monkeypatch.setattr(Tensor, "contiguous", lambda tensor: tensor)
    write_checkpoint(tmp_path / "strided", whole, "bin", state=state)
    monkeypatch.undo()
    assert any(tensor.strides is not None for tensor in open_folder(tmp_path / "strided").tensors)
    want = logits(theirs(tmp_path / "plain"))
    with load(tmp_path / "strided", "disk", monkeypatch) as model:
        assert torch.equal(logits(model), want)


def test_closed_and_loaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for home in ("disk", "ram", "disk"):
        model = load(folder, home, monkeypatch)
        found.append(logits(model))
        module = experts_of(model)[0].module
        model.outsize.close()
        assert "forward" not in module.__dict__
        with pytest.raises(OutsizeError, match="closed"):
            logits(model)
        model.outsize.close()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_files_that_change_meanwhile(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["mixtral"].make_model())
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64) as model:
        logits(model)
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(ModelChanged, match=r"model\.safetensors"):
            logits(model)
        with pytest.raises(OutsizeError):
            list(model.outsize.score(score_requests()))


def changed(name: str, change: Callable[[dict[str, Tensor], str], None], folder: Path, **config: Any) -> Path:
    """A checkpoint whose tensors were changed; the change is told the name of the second layer's third expert."""
    write_checkpoint(folder, ARCHITECTURES[name].make_model(), config_changes=config)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    (one,) = {
        key.rpartition(".")[0].rpartition(".")[0] for key in tensors if "layers.1." in key and "experts.2." in key
    }
    change(tensors, one)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def nothing(tensors: dict[str, Tensor], one: str) -> None:
    """The configuration is what is wrong."""


def drop(tensors: dict[str, Tensor], one: str) -> None:
    for key in [key for key in tensors if key.startswith(f"{one}.")]:
        del tensors[key]


def drop_a_matrix(tensors: dict[str, Tensor], one: str) -> None:
    del tensors[next(key for key in tensors if key.startswith(f"{one}."))]


def cut(tensors: dict[str, Tensor], one: str) -> None:
    key = next(key for key in tensors if key.startswith(f"{one}."))
    tensors[key] = tensors[key][:-1].clone()


def of_another_type(tensors: dict[str, Tensor], one: str) -> None:
    key = next(key for key in tensors if key.startswith(f"{one}."))
    tensors[key] = tensors[key].to(torch.float16)


HOSTILE: Mapping[str, tuple[Callable[[dict[str, Tensor], str], None], dict[str, Any], str]] = {
    "an expert is missing": (drop, {}, r"layers\.1\.\S+ has the wrong shape; need \([45], .*have \([34], "),
    "a matrix is missing": (drop_a_matrix, {}, r"layers\.1\.\S+ (has the wrong shape|cannot be .*Expected 3 .* got 4)"),
    "two of different shapes": (cut, {}, r"layers\.1\.\S+ cannot be put together: stack expects each .* equal size"),
    "two of different types": (of_another_type, {}, "several data types"),
    "fewer than the configuration says": (
        nothing,
        {"num_experts": 6, "num_local_experts": 6},
        r"need \(6, .*have \([45], ",
    ),
    "more than the configuration says": (
        nothing,
        {"num_experts": 3, "num_local_experts": 3},
        r"need \(3, .*have \([45], ",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_checkpoints_whose_experts_do_not_fit_together(name: str, what: str, tmp_path: Path) -> None:
    change, config, word = HOSTILE[what]
    changed(name, change, tmp_path, **config)
    with pytest.raises(OutsizeError, match=word) as error:
        (outsize.plan if name == "mixtral" else outsize.load)(str(tmp_path), no_gpu=True)
    assert len(str(error.value).splitlines()) == 1
