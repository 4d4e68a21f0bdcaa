"""What an import may cost: the package and its planning half start without torch and its company."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import outsize

LOWER = ("models", "machine", "planner")
DOOR = "outsize.models.tracing."
HEAVY = {"accelerate", "huggingface_hub", "matplotlib", "numpy", "safetensors", "torch", "transformers"}


def modules_after(code: str) -> tuple[set[str], str]:
    """Run ``code`` in a new interpreter; the top-level modules that it loaded, and what it printed."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{code}\n"
        "import json\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


def exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def lower_modules() -> list[str]:
    """All modules of models, machine and planner except tracing, which the others import inside functions only."""
    root = Path(outsize.__file__).parent
    files = [path.relative_to(root.parent).with_suffix("") for floor in LOWER for path in (root / floor).rglob("*.py")]
    names = (".".join(path.parts).removesuffix(".__init__") for path in sorted(files))
    return [name for name in names if not f"{name}.".startswith(DOOR)]


def test_importing_outsize_loads_the_standard_library_and_nothing_else() -> None:
    loaded, _ = modules_after("import outsize")
    assert loaded - set(sys.stdlib_module_names) == {"outsize"}


def test_the_probe_of_this_file_sees_a_heavy_import() -> None:
    loaded, _ = modules_after("import numpy")
    assert loaded & HEAVY == {"numpy"}


@pytest.mark.parametrize("name", lower_modules())
def test_every_module_of_the_lower_floors_imports_without_torch(name: str) -> None:
    loaded, _ = modules_after(f"import {name}")
    assert not loaded & HEAVY


@pytest.mark.skipif(not exists("outsize.cli.main"), reason="the command line is not there yet")
def test_planning_a_shipped_spec_loads_no_torch() -> None:
    loaded, printed = modules_after(
        "from outsize.cli.main import main\n"
        "try:\n"
        "    code = main(['plan', 'bigscience/bloom', '--machine', '2x-titan-rtx', '--json'])\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "assert not code, code"
    )
    assert not loaded & HEAVY
    assert json.loads(printed)["model"]["parameters"] == 176_247_271_424


@pytest.mark.skipif(not exists("outsize.api"), reason="the interface in Python is not there yet")
def test_plan_stays_a_function_and_needs_no_torch() -> None:
    loaded, _ = modules_after(
        "import outsize\n"
        "import outsize.planner.plan\n"
        "assert callable(outsize.plan)\n"
        "plan = outsize.plan('bigscience/bloom', machine='2x-titan-rtx')\n"
        "assert type(plan) is outsize.planner.plan.Plan, plan"
    )
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", [name for name in outsize.__all__ if name != "__version__"])
def test_no_module_takes_the_name_of_something_public(name: str) -> None:
    # Importing a submodule sets it as an attribute of its package: outsize/plan/ would replace outsize.plan.
    assert not exists(f"outsize.{name}")
    assert name in dir(outsize)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'plans'"):
        outsize.plans  # noqa: B018
