"""What a running model takes besides matmuls and reading: small models run for a few seconds, as any model does.

Each figure is what remains of measured seconds once the cost model, with that figure at zero, has had its say: so it
holds whatever the other rates leave out, and predictions of like runs come true.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import outsize
from outsize.machine.machine import Machine, Overheads
from outsize.paths import outsize_cache
from outsize.planner.sweep_cost import SweepCost, Turn
from outsize.probe.timed_generation import Timed, fastest_of_two, random_prompt

DEMO = Path(str(resources.files("outsize"))) / "demo_model"  # eight blocks of 0.4 MB: all stay in the caches
# Four blocks of 100 MB each in bfloat16: nothing stays.
LARGE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 16,
    "max_position_embeddings": 4096, "vocab_size": 1024, "tie_word_embeddings": False,
}  # fmt: skip
FEW_BLOCKS = 2  # of the demo model, to tell the blocks' seconds from the loop's
TOKENS = 24
SHORT, PROMPT, LONG = 16, 1024, 2048  # tokens of prompts
START_S = 60.0  # most that a start may take


def measure_overheads(machine: Machine, say: Callable[[str], None]) -> dict[str, float]:
    """The overheads of this machine by name, as ``Overheads`` has them; its other rates should be measured already."""
    found: dict[str, float] = {}
    base = outsize_cache(os.environ)
    base.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=base) as scratch:
        say("small models, as they run")
        found |= _small(machine, Path(scratch) / "few")
        say("a model with large blocks")
        found |= _large(replace(machine, overheads=replace(Overheads(), **found)), Path(scratch) / "large")
    say("starting")
    found |= _starts()
    return found


def _small(machine: Machine, folder: Path) -> dict[str, float]:
    """Of the demo model's blocks, and of the loop around them: from two models that differ in blocks alone."""
    write_few(folder)
    none = replace(machine, overheads=replace(Overheads(), block_s=0, small_block_s=0, token_s=0, handover_s=0))
    rests = {}
    for path in (folder, DEMO):
        with running(path) as model:
            blocks = len(model.outsize.spec.blocks)
            rests[blocks] = _rest(none, model, fastest_of_two(model, SHORT, TOKENS))
    (few, least), (many, most) = sorted(rests.items())
    block_s = max(most - least, 0.0) / (many - few)
    with running(DEMO, weight_limits={"ram": 0}) as model:
        groups = sum(group.streamed for group in model.outsize.plan.groups)
        streamed = _rest(none, model, fastest_of_two(model, SHORT, TOKENS))
    return {
        "small_block_s": block_s,
        "token_s": max(most - many * block_s, 0.0),
        "handover_s": max(streamed - most, 0.0) / groups,
    }


def _large(machine: Machine, folder: Path) -> dict[str, float]:
    """Of large blocks, of a long cache, and of a prompt."""
    write_large(folder)
    found = {}
    with running(folder) as model:
        fastest_of_two(model, SHORT, 2)  # the first sweep is the load
        blocks = len(model.outsize.spec.blocks)
        none = replace(machine, overheads=replace(machine.overheads, block_s=0, small_block_s=0))
        found["block_s"] = max(_rest(none, model, fastest_of_two(model, SHORT, TOKENS)), 0.0) / blocks
        known = replace(machine.overheads, block_s=found["block_s"], activation_traffic=0.0)
        cached = replace(machine, overheads=replace(known, kv_traffic=0))
        long = fastest_of_two(model, LONG, TOKENS // 2)
        cache = sum(module.cache.bytes_for(long.past, encoder_tokens=0) for module in model.outsize.spec.modules)
        found["kv_traffic"] = max(_rest(cached, model, long), 0.0) * machine.ram.bytes_per_s / cache
        matmuls = _cost(replace(machine, overheads=known), model).sweep_s([Turn(1, PROMPT, 0, 1, first=True)])
        rest = max(fastest_of_two(model, PROMPT, 2).first_s - matmuls, 0.0)
        activations = blocks * int(model.outsize.spec.workspace.linear) * (PROMPT - 1)
        found["activation_traffic"] = rest * machine.ram.bytes_per_s / activations
    with running(folder, weight_limits={"ram": 0}) as model:
        fastest_of_two(model, SHORT, 2)
        streamed = fastest_of_two(model, SHORT, TOKENS // 2)
        reading = model.outsize.plan.predicted.disk_bytes_per_token / machine.disk.bytes_per_s
        found["stream_share"] = min(reading / streamed.token_s, 1.0)
    return found


def _starts() -> dict[str, float]:
    """Until a load can compute: in a new process, and in one that has imported what it needs."""
    code = (
        "import time; began = time.monotonic(); from outsize.probe.overheads import start; start();"
        "print(time.monotonic() - began)"  # imports included
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=START_S, check=True
    )
    cold = float(done.stdout.split()[-1])
    return {"cold_start_s": cold, "warm_start_s": min(start(), cold)}


def start() -> float:
    """Seconds from the load's begin to the first token of the demo model, which computes for next to nothing."""
    began = time.monotonic()
    with running(DEMO) as model:
        model.generate(random_prompt(model, 1), max_new_tokens=1, do_sample=False)
        return time.monotonic() - began


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Any]:
    """A model, loaded without GPUs, and closed at the end."""
    with outsize.load(folder, no_gpu=True, **options) as model:
        yield model


def _cost(machine: Machine, model: Any) -> SweepCost:
    plan = model.outsize.plan
    return SweepCost.of(model.outsize.spec, machine, plan)


def _rest(machine: Machine, model: Any, found: Timed) -> float:
    """A token's measured seconds less those that the cost model gives to this machine."""
    return found.token_s - _cost(machine, model).sweep_s([Turn(1, 1, found.past, 1)])


def write_few(folder: Path) -> None:
    """The demo model with its first blocks alone."""
    folder.mkdir()
    config = json.loads((DEMO / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": FEW_BLOCKS}))
    weights = load_file(DEMO / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if _block(name) < FEW_BLOCKS}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _block(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else 0


def write_large(folder: Path) -> None:
    """A model of ordinary numbers in the shape of ``LARGE``."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE))
    hidden, inner, vocab = (LARGE[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    for i in range(LARGE["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"model.layers.{i}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"model.layers.{i}.mlp.down_proj": (hidden, inner)}
        shapes |= {f"model.layers.{i}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    pattern = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    weights = {}
    for name, shape in shapes.items():
        weight = torch.empty(shape, dtype=torch.bfloat16)
        flat = weight.view(-1)
        for begin in range(0, flat.numel(), len(pattern)):
            part = flat[begin : begin + len(pattern)]
            part.copy_(pattern[: len(part)])
        weights[f"{name}.weight"] = weight
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
