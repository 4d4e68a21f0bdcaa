"""outsize itself, through its Python interface."""

from __future__ import annotations

import contextlib

from from_transformers import generate, import_everything
from measure import PROMPT_TOKENS, Clock, arguments


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument("--ram-bytes", type=int, required=True, help="outsize's budget for the whole process")
    options = parser.parse_args()
    from importlib.metadata import version

    import torch

    import outsize
    import outsize.run.sweep  # what a load imports, as for the other peers

    torch.set_num_threads(options.threads)
    import_everything(options.model)
    clock = Clock()
    context = PROMPT_TOKENS + options.new_tokens  # no peer sets memory aside for more
    model = outsize.load(options.model, ram=options.ram_bytes, no_gpu=True, context=context)
    clock.ready()
    with contextlib.closing(model.outsize):
        generate(model, clock, options.new_tokens)
        print(clock.report("outsize", version("outsize"), ram_bytes=options.ram_bytes))


if __name__ == "__main__":
    main()
