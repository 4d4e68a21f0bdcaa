"""Quantise a GGUF with llama.cpp's own quantiser and its own defaults: python bench/quantise_gguf.py IN Q4_0 OUT."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    """Command line."""
    import llama_cpp

    kinds = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    draft = options.target.with_suffix(".part")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kinds[options.kind]
    parameters.nthread = os.cpu_count() or 1
    status = llama_cpp.llama_model_quantize(os.fsencode(options.source), os.fsencode(draft), parameters)
    if status:
        raise SystemExit(f"llama.cpp's quantiser failed with status {status}")
    draft.rename(options.target)


if __name__ == "__main__":
    main()
