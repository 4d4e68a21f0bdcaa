"""``outsize eval``: tasks of lm-evaluation-harness, all requests of a kind in as few sweeps as can be."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outsize.cli import arguments
from outsize.errors import OutsizeError, UsageError
from outsize.evals.fingerprint import fingerprint, tokenizer_fingerprint
from outsize.progress import note

BOOTSTRAP = 100_000  # the harness' own
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser, required=False)
    parser.add_argument("--tasks", metavar="NAME[,...]", help="tasks, groups, tags, patterns, or paths of YAML files")
    parser.add_argument("--list", action="store_true", help="print the names of all tasks, or of those like --tasks")
    parser.add_argument(
        "--include-path", action="append", default=[], type=Path, metavar="DIR", help="a folder of tasks of your own"
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in each prompt (default: the task's)")
    parser.add_argument("--limit", type=float, metavar="N", help="documents of each task, or below 1 a share of them")
    parser.add_argument("--gen-kwargs", metavar="NAME=VALUE[,...]", help="generation settings beside the task's")
    parser.add_argument("--apply-chat-template", action="store_true", help="prompts as conversations")
    parser.add_argument("--system-instruction", metavar="TEXT", help="what stands before every prompt")
    parser.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        help="examples as turns of the conversation (default with a chat template)",
    )
    parser.add_argument("--prefix-token", type=int, metavar="ID", help="the token that stands for an empty context")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of examples, samples and metrics (default: the harness')"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=BOOTSTRAP, metavar="N", help="resamplings for standard errors; 0 for none"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the results to files in a folder")
    parser.add_argument("--log-samples", action="store_true", help="write every document's answer too, to --out")
    parser.add_argument(
        "--use-cache", type=Path, metavar="DIR", help="keep answers, so that a run that was ended goes on from there"
    )
    parser.add_argument("--confirm-run-unsafe-code", action="store_true", help="run tasks that execute generated code")
    arguments.add_request(parser, dataset=True)


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("eval needs lm-evaluation-harness, the package lm_eval", remedy="pip install 'outsize[eval]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it says so itself where metrics fork processes
    if not sys.stderr.isatty() and "tqdm" not in sys.modules:
        os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads once: the harness' bars ask no terminal
    _check(args)
    if args.list:
        print(_listed(args))
        return 0
    with redirect_stdout(sys.stderr):  # whatever the harness and its tasks print, it is no answer
        results, model = _evaluate(args)
    from outsize.cli import eval_report

    about = {"model": args.model, "weights": args.weights or "native"}
    results["config"].update(model="outsize", model_args=about)
    print(eval_report.as_json(results, about, model.effort) if args.json else eval_report.table(results), flush=True)
    if not args.json:
        note(json.dumps(asdict(model.effort)))
    if args.out is not None:
        for file in eval_report.write_files(args.out, results, model.effort):
            note(f"wrote {file}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for options that make no sense, before anything is imported for them."""
    if args.list:
        return
    if args.model is None or not _names(args):
        raise UsageError(
            "what to evaluate, and on which tasks?", need="MODEL and --tasks", remedy="outsize eval --list"
        )
    if args.log_samples and args.out is None:
        raise UsageError("--log-samples writes to a folder", remedy="--out DIR")
    if args.fewshot_as_multiturn and not args.apply_chat_template:
        raise UsageError("turns are those of a conversation", remedy="--apply-chat-template")
    if args.limit is not None and args.limit <= 0:
        raise UsageError("a limit must be above 0", have=f"{args.limit:g}")
    if (args.num_fewshot or 0) < 0 or args.bootstrap < 0:
        raise UsageError("numbers of examples and of resamplings must not be below 0")
    for part in args.gen_kwargs.split(",") if args.gen_kwargs else ():
        if not part.partition("=")[1]:
            raise UsageError(f"--gen-kwargs does not understand {part!r}", need="NAME=VALUE[,...]")


def _names(args: argparse.Namespace) -> list[str]:
    return [name.strip() for name in (args.tasks or "").split(",") if name.strip()]


def _listed(args: argparse.Namespace) -> str:
    from outsize.evals.harness import tasks

    with redirect_stdout(sys.stderr):
        names = tasks.names(args.include_path, _names(args) or ["*"])
    return json.dumps({"schema": 1, "tasks": names}) if args.json else "\n".join(names)


def _evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The harness' results, and the model. Raises OutsizeError for tasks that cannot be loaded or computed."""
    import lm_eval
    from lm_eval.utils import setup_logging

    from outsize.evals.harness import OutsizeLM, tasks

    setup_logging(logging.WARNING)  # LMEVAL_LOG_LEVEL counts more
    manager, names = tasks.find(args.include_path, {"pretrained": args.model}, _names(args))
    model = _model(args, OutsizeLM)
    if args.apply_chat_template and model.tokenizer.chat_template is None:
        raise UsageError(f"the tokenizer of {args.model} has no chat template", remedy="no --apply-chat-template")
    several = tasks.load(manager, names)
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=several,
            task_manager=manager,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            use_cache=None if args.use_cache is None else str(_cache(args, model)),
            bootstrap_iters=args.bootstrap,
            log_samples=args.log_samples,
            system_instruction=args.system_instruction,
            apply_chat_template=args.apply_chat_template,
            fewshot_as_multiturn=_multiturn(args),
            gen_kwargs=args.gen_kwargs,
            confirm_run_unsafe_code=args.confirm_run_unsafe_code,
            **({} if args.seed is None else dict.fromkeys(SEEDS, args.seed)),
        )
    except tasks.FAILURES as error:
        raise OutsizeError(f"the harness cannot go on: {tasks.first_line(error)}") from error
    return results, model


def _model(args: argparse.Namespace, cls: Any) -> Any:
    return cls(
        args.model,
        weights=args.weights or "native",
        revision=args.revision,
        max_length=args.context,
        batch=args.batch,
        ram=args.ram,
        gpu_memory=args.gpu_memory,
        no_gpu=args.no_gpu,
        weight_limits=args.weight_limit,
        prefix_token_id=args.prefix_token,
        seed=args.seed or 0,
        verbose=not args.json,
    )


def _multiturn(args: argparse.Namespace) -> bool:
    chosen: bool | None = args.fewshot_as_multiturn
    return args.apply_chat_template if chosen is None else chosen


def _cache(args: argparse.Namespace, model: Any) -> Path:
    """The file of answers in ``--use-cache``: one for each model, weight format and way to make tokens of texts."""
    facts: Mapping[str, Any] = {
        "model": fingerprint(model.folder),
        "tokenizer": tokenizer_fingerprint(model.folder.path),
        "weights": args.weights or "native",
        "tokens": model.max_length,
        "prefix": model.prefix_token_id,
    }
    try:
        args.use_cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{args.use_cache} cannot be a folder ({error.strerror})", remedy="--use-cache DIR") from error
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder: Path = args.use_cache
    return folder / f"answers-{key}"
