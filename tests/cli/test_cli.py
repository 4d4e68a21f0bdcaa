"""The frame around the commands: exit codes, one line per error, streams that end early."""

import os
import subprocess
import sys

import pytest

import outsize
from outsize.cli import command_plan, main
from outsize.errors import DamagedModel, DoesNotFit, OutsizeError, UsageError


def test_help_lists_the_commands(capsys):
    assert main.main([]) == 0
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in main.COMMANDS:
        assert name in shown


def test_the_version_is_the_packages(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"outsize {outsize.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["plan"],
        ["plan", "t5-3b", "--nonsense"],
        ["plan", "t5-3b", "--weights", "int3"],
        ["plan", "t5-3b", "--context", "many"],
        ["plan", "t5-3b", "--ram", "much"],
        ["plan", "t5-3b", "--machine", "nonsense"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(argv, capsys):
    assert main.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("outsize: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutsizeError("what"), 1),
        (UsageError("what"), 2),
        (DoesNotFit("what"), 3),
        (DamagedModel("what"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(error, code, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(command_plan, "run", fail)
    assert main.main(["plan", "t5-3b"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def run(*argv, **more):
    return subprocess.run([sys.executable, "-m", "outsize", *argv], capture_output=True, text=True, check=False, **more)


def test_it_runs_as_a_module():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"outsize {outsize.__version__}\n")


def test_a_reader_that_leaves_early_ends_it_without_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "outsize", "plan", "t5-3b", "--machine", "2x-titan-rtx", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 141  # as a shell says of SIGPIPE
    assert done.stderr == ""
