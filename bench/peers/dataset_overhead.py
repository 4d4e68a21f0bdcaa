"""The scheduler's own cost: 64 micro-batches of a resident model through it, and one after another without it."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--micro-batches", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch

    import outsize
    from outsize.engine.scheduler import Job, Scheduler
    from outsize.planner.batches import MemoryUse

    torch.set_num_threads(options.threads)
    ids = torch.randint(300, 50000, (options.micro_batches, options.rows, options.tokens))
    with contextlib.closing(outsize.load(options.model, no_gpu=True, context=options.tokens).outsize) as engine:
        model = engine._sweep.model

        def work(number: int) -> float:
            return float(model(input_ids=ids[number], use_cache=False, logits_to_keep=1).logits[0, -1, 0])

        def alone() -> None:
            with torch.inference_mode():
                for number in range(options.micro_batches):
                    work(number)

        def together() -> None:
            scheduler = Scheduler(engine._sweep, lambda uses: True)
            nothing = MemoryUse((("ram", 0),), 0)
            scheduler.add([Job(lambda n=n: work(n), nothing) for n in range(options.micro_batches)])
            for _ in scheduler.run():
                pass

        alone()
        ratios, seconds = [], []
        for _ in range(options.rounds):  # in turn, so that a drift of the machine meets both
            began = time.monotonic()
            alone()
            middle = time.monotonic()
            together()
            ratios.append((time.monotonic() - middle) / (middle - began))
            seconds.append(middle - began)
        print(
            json.dumps(
                {
                    "micro_batches": options.micro_batches,
                    "alone_s": statistics.median(seconds),
                    "over_alone": statistics.median(ratios),
                    "ratios": ratios,
                }
            )
        )


if __name__ == "__main__":
    main()
