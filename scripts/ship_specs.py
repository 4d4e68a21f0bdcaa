"""Writes the specs that come with the package, from the configurations of the six first models.

python scripts/ship_specs.py FOLDER    (FOLDER holds t5-3b.json, gpt-j-6B.json, ...)
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from outsize.models import tracing
from outsize.models.spec_json import spec_to_json

IDS = {
    "t5-3b": "t5-3b",
    "gpt-j-6B": "EleutherAI/gpt-j-6B",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
    "opt-30b": "facebook/opt-30b",
    "opt-66b": "facebook/opt-66b",
    "bloom": "bigscience/bloom",
}


def main() -> None:
    """One JSON file for each of the six."""
    target = Path(__file__).parent.parent / "src" / "outsize" / "models" / "specs"
    for stem, model_id in IDS.items():
        config = tracing.read_config(json.loads((Path(sys.argv[1]) / f"{stem}.json").read_text()))
        cls = tracing.model_class(config)
        tensors = tracing.config_tensors(config, cls)
        spec = tracing.survey(tracing.rehearse(config, cls, tensors, lambda a, b: True), model_id)
        (target / f"{stem.lower()}.json").write_text(spec_to_json(replace(spec, origins={})))
        sys.stderr.write(f"{model_id}: {spec.parameters:,} parameters in {len(spec.blocks)} blocks\n")


if __name__ == "__main__":
    main()
