"""A dataset by outsize, through its Python interface."""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from pathlib import Path

from dataset_requests import Span, arguments, prompts, report
from from_transformers import import_everything


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument("--ram-bytes", type=int, required=True, help="outsize's budget for the whole process")
    options = parser.parse_args()
    import torch

    import outsize.engine.scoring
    import outsize.engine.sweep  # noqa: F401  what a load imports, as for the other peers
    from outsize.engine.loader import open_model
    from outsize.engine.request import GenerateRequest, ScoreRequest
    from outsize.evals.dataset_model import dataset_of, prepare_dataset
    from outsize.models.files.folder import open_folder
    from outsize.options import LoadOptions

    torch.set_num_threads(options.threads)
    import_everything(options.model)
    folder = open_folder(Path(options.model))
    made = prompts(
        folder.config["vocab_size"], options.measured or options.prompts, options.prompt_tokens, options.shared
    )
    new = options.measured_tokens or options.new_tokens
    if options.task == "score":
        requests = [ScoreRequest(str(i), tuple(p), (tuple(c),)) for i, (p, c) in enumerate(made)]
    else:
        requests = [GenerateRequest(str(i), tuple(p), max_new_tokens=new) for i, (p, _) in enumerate(made)]
    opening = prepare_dataset(folder, dataset_of(requests), LoadOptions(ram=options.ram_bytes, no_gpu=True))
    span = Span.begin()
    model = open_model(opening)
    with contextlib.closing(model.outsize), torch.inference_mode():
        model(input_ids=torch.tensor([[5]]), use_cache=False)  # the first sweep is the load
        model(input_ids=torch.tensor([[5]]), use_cache=False)  # and the second fills the ring for the next
        load = span.end()
        predicted = model.outsize.predict(requests)
        model.generation_config.eos_token_id = None  # random weights may well say end-of-text at once
        before, span = model.outsize.stats, Span.begin()
        run = model.outsize.score if options.task == "score" else model.outsize.generate
        results = list(run(requests))
        work, after = span.end(), model.outsize.stats
        failed = sum(1 for result in results if result.error)
        streamed = model.outsize.plan.predicted.disk_bytes_per_token
        print(
            report(
                "outsize",
                version("outsize"),
                load,
                work,
                computed=len(results) - failed,
                new_tokens=new if options.task == "generate" else 0,
                sweeps=after.sweeps - before.sweeps,
                forwards=after.forwards - before.forwards,
                streamed_bytes=streamed,
                batch=opening.plan.request.batch,
                predicted_sweeps=predicted.sweeps,
                predicted_seconds=predicted.seconds,
                micro_batches=predicted.micro_batches,
                logprobs=[r.logprobs[0] for r in sorted(results, key=lambda r: int(r.id))[:32]]
                if options.task == "score"
                else [],
            )
        )


if __name__ == "__main__":
    main()
