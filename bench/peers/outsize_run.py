"""outsize itself, through its Python interface."""

from __future__ import annotations

import contextlib

from from_transformers import generate, import_everything
from measure import Clock, arguments


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument("--ram-bytes", type=int, required=True, help="outsize's budget for the whole process")
    parser.add_argument("--weights", default="native")
    options = parser.parse_args()
    from importlib.metadata import version

    import torch

    import outsize
    import outsize.engine.sweep  # what a load imports, as for the other peers

    torch.set_num_threads(options.threads)
    import_everything(options.model)
    clock = Clock()
    context = options.prompt_tokens + options.new_tokens  # no peer sets memory aside for more
    model = outsize.load(options.model, weights=options.weights, ram=options.ram_bytes, no_gpu=True, context=context)
    if options.warm:
        generate(model, Clock(), 2)
    clock.ready()
    before = model.outsize.stats
    with contextlib.closing(model.outsize):
        generate(model, clock, options.new_tokens, options.prompt_tokens, made_up=options.forced)
        predicted = model.outsize.plan.predicted
        more = {"predicted_token_s": predicted.token_s, "predicted_first_token_s": predicted.first_token_s}
        if model.outsize.plan.expert_slots:
            after = model.outsize.stats
            more["experts"] = {
                "hits": after.expert_hits - before.expert_hits,
                "misses": after.expert_misses - before.expert_misses,
                "bytes_read": after.expert_bytes - before.expert_bytes,
                "slots": model.outsize.plan.expert_slots,
                "predicted_hit_rate": model.outsize.plan.predicted.expert_hit_rate,
            }
        bf12 = any(group.format == "bf12" for group in model.outsize.plan.groups)
        print(clock.report("outsize", version("outsize"), ram_bytes=options.ram_bytes, bf12=bf12, **more))


if __name__ == "__main__":
    main()
