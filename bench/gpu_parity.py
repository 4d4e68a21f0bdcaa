"""Are the answers right on GPUs? Small models of random weights, run by outsize over several homes and by transformers.

Each model is made on the spot in float32. Reference: transformers' own ``from_pretrained`` on the CPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

NAMES = ("llama", "gptj", "gpt_neox-sequential", "gpt_neo", "gpt2", "opt-350m", "bloom", "qwen3", "falcon-alibi", "t5")
# The most that each tier may hold, as a share of the weights; the homes that some block must then have.
HOMES: Mapping[str, tuple[Mapping[str, float], frozenset[str]]] = {
    "gpu": ({"ram": 0.0}, frozenset({"gpu0"})),
    "gpu+ram": ({"gpu0": 0.6, "ram": 0.6}, frozenset({"gpu0", "ram"})),
    "gpu+ram+disk": ({"gpu0": 0.4, "ram": 0.3}, frozenset({"gpu0", "ram", "disk"})),
}
TWO_GPUS = ({"gpu0": 0.35, "gpu1": 0.35, "ram": 0.15}, frozenset({"gpu0", "gpu1", "disk"}))
NEW_TOKENS = 8
TOLERANCE = 2e-3  # of the largest logit: float32 sums in another order


@dataclass(frozen=True)
class Verdict:
    """One check: what, whether it held, and what was seen."""

    what: str
    held: bool
    seen: str


@contextmanager
def slow_host() -> Iterator[None]:
    """A kept profile that says memory and disk are slow: planning would leave models this small in RAM."""
    from outsize.machine.detect import identity, this_machine
    from outsize.machine.profile import Profile, profile_path, save_profile

    before = os.environ.get("OUTSIZE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OUTSIZE_CACHE"] = folder
        disks = {this_machine(Path(tempfile.gettempdir())).disk.uuid: 1e3}
        save_profile(Profile(identity(), memory_bytes_per_s=1e5, disks=disks), profile_path())
        try:
            yield
        finally:
            if before is None:
                del os.environ["OUTSIZE_CACHE"]
            else:
                os.environ["OUTSIZE_CACHE"] = before


def reference(folder: Path, encoder_decoder: bool) -> tuple[list[int], Any]:
    """transformers' own greedy tokens and logits on the CPU."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return answers(auto.from_pretrained(folder).eval(), encoder_decoder)


def answers(model: Any, encoder_decoder: bool) -> tuple[list[int], Any]:
    """Greedy tokens and the logits of a plain forward pass, with inputs on the CPU."""
    import torch

    ids = torch.arange(3, 12).view(1, -1)  # [1, 9]
    mask = torch.ones_like(ids)
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with torch.inference_mode():
        tokens = model.generate(ids, attention_mask=mask, **greedy)[0].tolist()
        more = {"decoder_input_ids": ids[:, :4]} if encoder_decoder else {}
        return tokens, model(input_ids=ids, attention_mask=mask, **more).logits


def compare(folder: Path, encoder_decoder: bool, limits: Mapping[str, int], wanted: frozenset[str]) -> str:
    """Runs the model over the wanted homes; "" if all is right, else what is not."""
    import torch

    import outsize

    tokens, logits = reference(folder, encoder_decoder)
    with outsize.load(folder, weight_limits=limits, context=64) as model:
        homes = {group.tier for group in model.outsize.plan.groups}
        if not wanted <= homes:
            return f"planned for {', '.join(sorted(homes))}"
        ours, our_logits = answers(model, encoder_decoder)
        misplaced = "" if encoder_decoder else cache_beside_blocks(model)
    if our_logits.device.type != "cpu":
        return f"logits came back on {our_logits.device}"
    error = float((our_logits - logits).abs().max() / logits.abs().max())
    if ours != tokens:
        return f"tokens differ: {ours} for {tokens} (logits by {error:.1e})"
    if not error <= TOLERANCE or not torch.isfinite(our_logits).all():
        return f"logits differ by {error:.1e}"
    return misplaced


def cache_beside_blocks(model: Any) -> str:
    """Whether each block's keys lie where its weights are; "" if so."""
    import torch

    from outsize.engine.devices import Devices
    from outsize.models.tracing.cache_argument import cache_in

    with torch.inference_mode():
        cache = cache_in(model(input_ids=torch.arange(3, 9).view(1, -1), use_cache=True))
    devices = Devices(model.outsize.machine)
    roles = {module.name: module.role for module in model.outsize.spec.modules}
    computes = [device for name, device in model.outsize.plan.devices.items() if roles[name] == "block"]
    for index, (layer, compute) in enumerate(zip(cache.layers, computes, strict=True)):
        want = devices.torch_device(compute)
        if layer.keys.device != want:
            return f"the cache of block {index} lies on {layer.keys.device}, the block computes on {want}"
    return ""


def parity(names: tuple[str, ...], gpus: int, deadline: float) -> Iterator[Verdict]:
    """Every model over every kind of home that this many GPUs allow, until the deadline (monotonic seconds)."""
    import torch
    from checkpoints import ARCHITECTURES, write_checkpoint
    from transformers.utils import logging

    logging.disable_progress_bar()

    homes = dict(HOMES) | ({"two gpus+disk": TWO_GPUS} if gpus > 1 else {})
    for name in names:
        made = replace(ARCHITECTURES[name], dtype=torch.float32)
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_checkpoint(Path(scratch) / name, made.make_model())
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            for home, (shares, wanted) in homes.items():
                if time.monotonic() > deadline:
                    return
                limits = {tier: int(size * share) for tier, share in shares.items()}
                for gpu in range(1, gpus):
                    limits.setdefault(f"gpu{gpu}", 0)
                try:
                    wrong = compare(folder, made.encoder_decoder, limits, wanted)
                except Exception as error:  # noqa: BLE001  a check that breaks is a check that failed
                    wrong = f"{type(error).__name__}: {error}"
                yield Verdict(f"{name}: {home}", not wrong, wrong or f"{NEW_TOKENS} tokens and logits as on the CPU")


def driver_checks() -> Iterator[Verdict]:
    """What the driver says and what torch says, about the same GPU; real ones only."""
    import torch

    from outsize.engine.devices import Devices
    from outsize.machine.detect import this_machine

    machine = this_machine()
    devices = Devices(machine)
    for gpu in machine.gpus:
        seen = torch.cuda.get_device_properties(devices.torch_device(gpu.name))
        same = str(seen.uuid) in gpu.uuid and abs(seen.total_memory - gpu.capacity_bytes) < 2 << 30
        yield Verdict(f"{gpu.name} is {devices.torch_device(gpu.name)}", same, f"{seen.name}, {gpu.uuid}")
    taken = 2 << 30
    device = devices.torch_device("gpu0")
    torch.zeros(1, device=device)
    before = this_machine().gpus[0].free_bytes
    held = torch.empty(taken, dtype=torch.uint8, device=device)
    lost = before - this_machine().gpus[0].free_bytes
    del held
    torch.cuda.empty_cache()
    yield Verdict(
        "free now: 2 GiB taken by others are seen", taken <= lost < taken + (64 << 20), f"{lost / 2**30:.2f} GiB"
    )
