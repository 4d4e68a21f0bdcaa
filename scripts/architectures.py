"""Writes docs/architectures.md from the results of a sweep over transformers' architectures.

    python scripts/architectures.py RESULTS.json [RESULTS.json ...]

Each file is a list of {"kind", "type", "cls", "float32": {...}, "bfloat16": {...}}; a result has "bad", a list of what
differs from transformers, or "skip", why transformers itself does not build or run the model. Later files replace
entries of earlier ones.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import transformers

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
KINDS = {
    "causal": "causal language models",
    "seq2seq": "encoder-decoder",
    "vlm": "multimodal",
    "speech": "speech",
    "encoder": "encoders",
}
DTYPES = ("float32", "bfloat16")


def main(files: list[str]) -> None:
    """Writes the page."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in files:
        for entry in json.loads(Path(file).read_text()):
            found[entry["kind"], entry["type"], entry["cls"]] = entry
    lines = [
        "# Architectures",
        "",
        "<!-- written by scripts/architectures.py -->",
        "",
        f"Architectures in the auto classes of transformers {transformers.__version__}, small, with random weights,",
        "run with all weights streamed, with half of them in memory and on two emulated GPUs. One holds if",
        "logits equal those of transformers to the bit, in float32 and in bfloat16, the tokens of greedy and beam",
        "search too, with an image or a sound where it takes one; if compiled kernels give logits in float32 within",
        "1e-4 of the largest; and if `outsize plan` counts its parameters exactly. Routed experts are compared with",
        'those of `experts_implementation="eager"`.',
        "",
        "| class | hold | of | |",
        "|---|---|---|---|",
    ]
    left: list[str] = []
    not_run: list[str] = []
    for kind, words in KINDS.items():
        mine = [entry for entry in found.values() if entry["kind"] == kind]
        possible = [entry for entry in mine if any("skip" not in entry[d] for d in DTYPES)]
        bad = [entry for entry in possible if any(entry[d].get("bad") for d in DTYPES)]
        held = len(possible) - len(bad)
        if mine:
            share = f"{held / len(possible):.1%}" if possible else ""
            lines.append(f"| {words} | {held} | {len(possible)} | {share} |")
        left += [f"- `{entry['cls']}`: {reason(entry)}" for entry in bad]
        not_run += [
            f"- `{entry['cls']}`: {cleaned(entry[DTYPES[0]]['skip'])}" for entry in mine if entry not in possible
        ]
    lines += ["", "## Not yet", "", *(left or ["None."]), ""]
    lines += ["## Not compared", "", "transformers itself does not build or run these, or differs from itself:", ""]
    lines += [*sorted(set(not_run)), ""]
    PAGE.write_text("\n".join(lines))


def reason(entry: dict[str, Any]) -> str:
    """The first difference, without paths of the run."""
    dtypes = [d for d in DTYPES if entry[d].get("bad")]
    alone = "" if len(dtypes) == len(DTYPES) else f"{dtypes[0]} alone: "
    return f"{alone}{cleaned(entry[dtypes[0]]['bad'][0])}"


def cleaned(text: str) -> str:
    """One short line without places in files."""
    text = re.sub(r"^plan: exit \d: outsize: |^transformers: ", "", " ".join(text.split()))
    return re.sub(r" (@|\[/|<-) ?.*$", "", re.sub(r"/\S+/", "/", text))[:160]


if __name__ == "__main__":
    main(sys.argv[1:])
