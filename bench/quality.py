"""What int8 and int4 cost in quality: answers and perplexity of the bundled model, and errors of single layers.

    python bench/quality.py            the bundled model's 400 held-out prompts, then one layer of each of six shapes

The bundled model answers every held-out prompt greedily from native, int8 and int4 weights, as ``outsize.load`` runs
them; an answer counts when it is right to the last character. Perplexity is over the answers' tokens, given prompt and
answer. Layers are random, Gaussian and heavy-tailed (Student's t, 4 degrees of freedom), in the shapes of six published
models; inputs are Gaussian with one in 200 channels 20 times larger. Their figure is the error of the output as a part
of the output, both as root mean squares. Plain rounding stands beside the search for scales. The table goes to stdout,
and the last line there is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from report import machine
from safetensors.torch import load_file

import outsize
from outsize.kernels.quantize import quantise
from outsize.kernels.reference import dequantise
from outsize.models.formats import Packing

BUNDLED = Path(str(resources.files("outsize"))) / "demo_model"
FORMATS = ("native", "int8", "int4")
BATCH = 50
# hidden and inner sizes of t5-3b, gpt-j-6B, gpt-neox-20b, opt-30b, opt-66b and bloom
SHAPES = {
    "t5-3b": (1024, 16384),
    "gpt-j-6B": (4096, 16384),
    "gpt-neox-20b": (6144, 24576),
    "opt-30b": (7168, 28672),
    "opt-66b": (9216, 36864),
    "bloom": (14336, 57344),
}
ROWS = 512  # outputs of a layer that are computed: its error does not depend on how many
TOKENS = 16
OUTLIERS, OUTLIER_FACTOR = 200, 20.0
WAYS: dict[str, tuple[int, bool]] = {"int8": (8, True), "int4": (4, True), "int4 plain": (4, False)}


def answers(weights: str, items: Sequence[dict[str, Any]]) -> tuple[list[str], float]:
    """What the bundled model says to each prompt, and the perplexity of the right answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED, padding_side="left")
    said: list[str] = []
    loss, tokens = 0.0, 0
    with outsize.load(BUNDLED, weights=weights, no_gpu=True, batch=BATCH, context=256) as model:
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            batch = tokenizer([item["prompt"] for item in part], return_tensors="pt", padding=True)
            new = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
            said += tokenizer.batch_decode(new, skip_special_tokens=True)
            whole = tokenizer([item["prompt"] + item["answer"] for item in part], return_tensors="pt", padding=True)
            with torch.inference_mode():
                logits = model(**whole).logits.float()
            spoken = logits[:, :-1].log_softmax(-1).gather(2, whole["input_ids"][:, 1:, None])[..., 0]
            for row, item in zip(spoken, part, strict=True):
                count = len(tokenizer(item["prompt"] + item["answer"])["input_ids"]) - len(
                    tokenizer(item["prompt"])["input_ids"]
                )
                loss -= float(row[-count:].sum())
                tokens += count
    return said, math.exp(loss / tokens)


def bundled() -> dict[str, Any]:
    """Accuracy, perplexity and agreement with native of each format, on the held-out prompts."""
    items = [json.loads(line) for line in (BUNDLED / "heldout.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {}
    native: list[str] = []
    for weights in FORMATS:
        said, perplexity = answers(weights, items)
        native = native or said
        right = sum(text == item["answer"] for text, item in zip(said, items, strict=True))
        agree = sum(text == other for text, other in zip(said, native, strict=True))
        found[weights] = {"accuracy": right / len(items), "agree": agree / len(items), "perplexity": perplexity}
    return {"prompts": len(items), **found}


def weight_errors() -> dict[str, float]:
    """The squared error of the bundled model's own block weights, as a part of their square: plain and searched."""
    tensors = load_file(BUNDLED / "model.safetensors")
    blocks = [weight for name, weight in tensors.items() if ".layers." in name and weight.ndim == 2]
    return {way: sum(_errors(blocks, way)) / len(blocks) for way in WAYS}


def _errors(weights: Sequence[torch.Tensor], way: str) -> Iterator[float]:
    for weight in weights:
        off = restored(weight, way) - weight.float()
        yield float(off.square().sum() / weight.float().square().sum())


def restored(weight: torch.Tensor, way: str) -> torch.Tensor:
    """A weight, quantised and multiplied out again, in float32."""
    bits, search = WAYS[way]
    made = quantise(weight, bits, 128, search=search)
    packing = Packing(bits, 128, words=True, scale="bfloat16")
    return dequantise(made.words, made.scale, None, packing, tuple(weight.shape), torch.float32)


def layers() -> Iterator[dict[str, Any]]:
    """The relative output error of each way for random layers of each shape."""
    for model, (hidden, inner) in SHAPES.items():
        for inputs in (hidden, inner):
            for kind in ("gaussian", "heavy-tailed"):
                torch.manual_seed(0)
                raw = torch.randn(ROWS, inputs)
                if kind == "heavy-tailed":
                    raw = torch.distributions.StudentT(4.0).sample((ROWS, inputs))
                weight = (raw * 0.02).bfloat16()
                x = torch.randn(TOKENS, inputs)
                x[:, torch.randperm(inputs)[: inputs // OUTLIERS]] *= OUTLIER_FACTOR
                exact = x @ weight.float().t()  # [tokens, rows]
                row: dict[str, Any] = {"model": model, "inputs": inputs, "weights": kind}
                for way in WAYS:
                    off = x @ restored(weight, way).t() - exact
                    row[way] = float(off.square().mean().sqrt() / exact.square().mean().sqrt())
                yield row


def main() -> int:
    """Command line; 1 if a figure is not what is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON object to this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OUTSIZE_CACHE"] = cache
        model = bundled()
    print(f"{'weights':12}{'accuracy':>9}{'as native':>10}{'perplexity':>11}")
    for weights in FORMATS:
        row = model[weights]
        print(f"{weights:12}{row['accuracy']:9.2%}{row['agree']:10.2%}{row['perplexity']:11.4f}")
    errors = weight_errors()
    print("its weights' squared error: " + ", ".join(f"{way} {error:.2e}" for way, error in errors.items()))
    rows = list(layers())
    print(f"\n{'layer':14}{'inputs':>7}  {'weights':14}" + "".join(f"{way:>12}" for way in WAYS))
    for row in rows:
        figures = "".join(f"{row[way]:12.3%}" for way in WAYS)
        print(f"{row['model']:14}{row['inputs']:7}  {row['weights']:14}{figures}")
    checks = [
        {"what": "int8 answers as native", "want": 1.0, "have": model["int8"]["agree"]},
        {
            "what": "int4 accuracy, less native's",
            "want": -0.01,
            "have": model["int4"]["accuracy"] - model["native"]["accuracy"],
        },
        {
            "what": "plain rounding's squared error, times the search's",
            "want": 1.0,
            "have": errors["int4 plain"] / errors["int4"],
        },
    ]
    for check in checks:
        met = "met   " if check["have"] >= check["want"] else "MISSED"
        print(f"{met} {check['what']}: {check['have']:.4f} (wanted >= {check['want']:.2f})")
    result = {"schema": 1, "benchmark": "quality", "machine": machine(), "bundled": model, "weight_errors": errors}
    result |= {"layers": rows, "checks": checks}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if any(check["have"] < check["want"] for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
