"""The command line: finds the command, and turns what it raises into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import outsize
from outsize.cli import edge
from outsize.errors import UsageError
from outsize.models.files.hub_settings import check_settings

# Every command is a module of its own with ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only when
# it is asked for, so that none pays for what another needs. A new command is one line here.
COMMANDS = {
    "demo": ("outsize.cli.command_demo", "see a model split over memory and disk answer prompts; no network"),
    "run": ("outsize.cli.command_run", "generate text from a prompt"),
    "chat": ("outsize.cli.command_chat", "talk with an instruct model"),
    "serve": ("outsize.cli.command_serve", "answer many clients: OpenAI's interface, and a web page"),
    "plan": ("outsize.cli.command_plan", "say what fits where, and how fast it would be"),
    "score": ("outsize.cli.command_score", "score the choices of a whole dataset"),
    "batch": ("outsize.cli.command_batch", "generate text for a whole dataset of prompts"),
    "fewshot": ("outsize.cli.command_fewshot", "accuracy on a task, for each number of examples in the prompt"),
    "eval": ("outsize.cli.command_eval", "evaluate on tasks of lm-evaluation-harness"),
    "convert": ("outsize.cli.command_convert", "turn a model's weights into int8 or int4, once"),
    "verify": ("outsize.cli.command_verify", "check every tensor of a converted model"),
    "bench": ("outsize.cli.command_bench", "measure a model's speed beside what was predicted"),
    "probe": ("outsize.cli.command_probe", "measure this machine once, so that plans need not assume"),
    "doctor": ("outsize.cli.command_doctor", "say whether all is as it should be here"),
}


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is raised: it becomes one line like any other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"{self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Written without argparse's own way to pass over a full disk in silence."""
        (file or sys.stderr).write(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    0 done, 1 failed, 2 wrong usage, 3 does not fit, 4 damaged or untrustworthy model files, 130 interrupted, 141 the
    reader of standard output has left. Whatever ends a command ends it in one line on stderr.
    """
    try:
        edge.open_streams()
        edge.drop_empty_variables()
        code = _run(sys.argv[1:] if argv is None else list(argv))
    except BaseException as error:  # noqa: BLE001  the edge: panics of libraries in Rust are no Exceptions
        code = edge.tell(error)
    return edge.flush(code)


def _run(argv: list[str]) -> int:
    parser, commands = _parsers()
    name = next((word for word in argv if not word.startswith("-")), "")
    module: Any = None
    if name in COMMANDS:
        module = importlib.import_module(COMMANDS[name][0])
        module.add_arguments(commands[name])
    try:
        if module is not None and argv[0] == name:  # options may stand between MODEL and PROMPT
            args = commands[name].parse_intermixed_args(argv[1:])
        else:
            args = parser.parse_args(argv)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if module is None:
        parser.print_help()
        return 0
    check_settings(os.environ)  # some commands import transformers before they look for a model
    return int(module.run(args))


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands, which know no options yet."""
    parser = Parser(prog="outsize", description=(outsize.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"outsize {outsize.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    return parser, {
        name: commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, (_, text) in COMMANDS.items()
    }
