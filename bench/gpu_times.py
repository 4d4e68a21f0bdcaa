"""How fast is a real shape on GPU, RAM and disk, by outsize and by accelerate? One process per case.

    python bench/gpu_times.py outsize /data/opt-6.7b --gpu-bytes 7516192768 --tokens 20 --seconds 20

The last line on stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
PROMPT_TOKENS = 32


def gpu_free() -> int:
    """Bytes free on the first GPU, by the driver's word, without touching it."""
    from outsize.machine.detect import this_machine

    return this_machine().gpus[0].free_bytes


def open_outsize(arguments: argparse.Namespace) -> Any:
    """Through outsize.load, with the same limits."""
    import outsize

    limits = {} if arguments.ram_bytes is None else {"ram": arguments.ram_bytes}
    return outsize.load(arguments.model, gpu_memory=arguments.gpu_bytes, weight_limits=limits, context=256)


def open_accelerate(arguments: argparse.Namespace, folder: str) -> Any:
    """Through device_map: all on the GPU where there is no limit."""
    import torch
    from transformers import AutoModelForCausalLM

    if arguments.gpu_bytes is None:
        return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16, device_map={"": 0})
    memory = {0: arguments.gpu_bytes, "cpu": arguments.ram_bytes or 100 << 30}
    return AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.bfloat16, device_map="auto", max_memory=memory, offload_folder=folder
    )


def where(model: Any) -> dict[str, int]:
    """Bytes of weights per tier."""
    if hasattr(model, "outsize"):
        return {tier: usage.weights_bytes for tier, usage in model.outsize.plan.usage.items()}
    import torch

    found: dict[str, int] = {}
    for name, place in getattr(model, "hf_device_map", {"": 0}).items():
        module = model.get_submodule(name)
        tier = {"cpu": "ram", "disk": "disk"}.get(str(place), "gpu0")
        count = sum(p.numel() for p in module.parameters())
        found[tier] = found.get(tier, 0) + count * torch.bfloat16.itemsize
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["outsize", "accelerate"])
    parser.add_argument("model")
    parser.add_argument("--gpu-bytes", type=int, help="most of the GPU")
    parser.add_argument("--ram-bytes", type=int, help="most weights in RAM")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="no further token after so long")
    arguments = parser.parse_args()
    import torch
    import transformers  # noqa: F401  its import is nobody's load time
    from measure import Clock

    lowest = before = gpu_free()
    ids = torch.arange(1000, 1000 + PROMPT_TOKENS).view(1, -1)  # [1, tokens]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        clock = Clock()
        model = open_outsize(arguments) if arguments.engine == "outsize" else open_accelerate(arguments, folder)
        clock.ready()
        cold = ids if arguments.engine == "outsize" else ids.to("cuda:0")
        options: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(cold)}
        model.generate(cold, max_new_tokens=2, min_new_tokens=2, streamer=clock, **options)  # cold: loads and warms up
        lowest = min(lowest, gpu_free())
        warm = Clock()
        warm.ready()
        began = time.monotonic()
        count = arguments.tokens
        model.generate(
            cold, min_new_tokens=2, max_new_tokens=count, max_time=arguments.seconds, streamer=warm, **options
        )
        lowest = min(lowest, gpu_free())
        figures = json.loads(warm.report(arguments.engine, ""))
        figures |= {
            "seconds": time.monotonic() - began,
            "cold_first_token_s": json.loads(clock.report("", ""))["cold_first_token_s"],
            "weights_bytes": where(model),
            "gpu_bytes": before - lowest,
            "gpu_budget_bytes": arguments.gpu_bytes,
            "gpu_reserved_bytes": torch.cuda.max_memory_reserved(0),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
