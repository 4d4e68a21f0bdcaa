"""Models and machines made from numbers, for the tests of planning."""

from __future__ import annotations

from dataclasses import replace

from outsize.machine.machine import Device, Machine
from outsize.models.spec import CacheSpec, ModelSpec, ModuleSpec, TensorSpec, WorkspaceSpec

GIB = 1024**3
MIB = 1024**2


def weight(name, *shape, dtype="bfloat16", runtime=None, matmul=True):
    return TensorSpec(name, shape, dtype, runtime or dtype, matmul)


def block(name, hidden, inner, *, dtype="bfloat16", stack="", kv_hidden=None, cross=0):
    tensors = [weight(f"{name}.{part}.weight", hidden, hidden, dtype=dtype) for part in ("q", "k", "v", "o")]
    tensors.append(weight(f"{name}.up.weight", inner, hidden, dtype=dtype))
    tensors.append(weight(f"{name}.down.weight", hidden, inner, dtype=dtype))
    tensors.append(weight(f"{name}.norm.weight", hidden, dtype=dtype, matmul=False))
    size = 4 if dtype == "float32" else 2
    per_token = 2 * (hidden if kv_hidden is None else kv_hidden) * size
    return ModuleSpec(name, "block", stack, tuple(tensors), CacheSpec(per_token=per_token, cross_per_token=cross))


def decoder(blocks=4, hidden=256, vocab=1000, *, inner=None, dtype="bfloat16", tied=False, inners=None, positions=None):
    """A decoder-only model; ``inners`` gives every block its own inner size."""
    inners = inners or [inner or 4 * hidden] * blocks
    modules = [
        ModuleSpec(
            "embed", "embedding", "", (weight("embed.weight", vocab, hidden, dtype=dtype, matmul=False),), CacheSpec(),
            ("head",) if tied else (),
        ),
        *(block(f"layers.{i}", hidden, inner, dtype=dtype) for i, inner in enumerate(inners)),
        ModuleSpec("norm", "other", "", (weight("norm.weight", hidden, dtype=dtype, matmul=False),), CacheSpec()),
    ]  # fmt: skip
    if not tied:
        modules.append(
            ModuleSpec("head", "head", "", (weight("head.weight", vocab, hidden, dtype=dtype),), CacheSpec())
        )
    workspace = WorkspaceSpec(base=MIB // 64, linear=20 * hidden, square=0.0)
    return ModelSpec(
        "tests/decoder", "TestForCausalLM", "test", False, positions, vocab, tuple(modules), workspace, dtype=dtype
    )


def mixture(blocks=4, experts=8, per_token=2, *, hidden=1024, inner=512):
    """A decoder-only model whose blocks have routed experts each, which are most of it."""
    spec = decoder(blocks, hidden, inner=256)
    modules = []
    for module in spec.modules:
        modules.append(module)
        if module.role == "block":
            name = f"{module.name}.experts"
            up, down = weight(f"{name}.up", experts, 2 * inner, hidden), weight(f"{name}.down", experts, hidden, inner)
            modules.append(ModuleSpec(name, "experts", "", (up, down), CacheSpec(), (), experts, per_token))
    return replace(spec, id="tests/mixture", modules=tuple(modules))


def encoder_decoder(blocks=4, hidden=256, vocab=1000, *, dtype="float32"):
    """A model of two stacks with one shared embedding, which is the head too."""
    shared = ModuleSpec(
        "shared", "embedding", "", (weight("shared.weight", vocab, hidden, dtype=dtype, matmul=False),), CacheSpec(),
        ("encoder.embed", "decoder.embed", "head"),
    )  # fmt: skip
    norm = weight("norm.weight", hidden, dtype=dtype, matmul=False)
    modules = [
        shared,
        *(block(f"encoder.{i}", hidden, 4 * hidden, dtype=dtype, stack="encoder", kv_hidden=0) for i in range(blocks)),
        ModuleSpec("encoder.norm", "other", "encoder", (norm,), CacheSpec()),
        *(block(f"decoder.{i}", hidden, 6 * hidden, dtype=dtype, stack="decoder", cross=64) for i in range(blocks)),
        ModuleSpec("decoder.norm", "other", "decoder", (norm,), CacheSpec()),
    ]
    workspace = WorkspaceSpec(base=MIB // 64, linear=20 * hidden, square=1.0)
    return ModelSpec(
        "tests/both", "TestForConditionalGeneration", "both", True, None, vocab, tuple(modules), workspace, dtype=dtype
    )


def opt_30b():
    """Near facebook/opt-30b: 48 blocks of 7168, float16, the embedding tied to the head."""
    return decoder(48, 7168, 50272, dtype="float16", tied=True)


def bloom():
    """Near bigscience/bloom: 70 blocks of 14336, bfloat16, the embedding tied to the head."""
    return decoder(70, 14336, 250880, tied=True)


def gpu(index, size, *, free=None, rate=672e9, link=12e9, emulated=False, flops=60e12):
    return Device(
        f"gpu{index}", "gpu", size, size if free is None else free, rate, link_bytes_per_s=link, emulated=emulated,
        flops={"float16": flops},
    )  # fmt: skip


def machine(ram, *gpus, disk_rate=3e9, ram_rate=50e9, free=None, disk=2 * 10**12, flops=None):
    return Machine(
        "test",
        (
            *gpus,
            Device("ram", "ram", ram, ram if free is None else free, ram_rate, flops=flops or {"bfloat16": 350e9}),
            Device("disk", "disk", disk, disk, disk_rate),
        ),
    )
