"""The wheel: built from the sources, installed into a new environment without a compiler, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, tree)
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(tree)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CFLAGS": "-O0"},  # a tenth of the time
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel; what it depends on comes from this one, because torch alone takes minutes."""
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    return folder / "bin"


@pytest.mark.skipif(shutil.which("cc") is None, reason="building needs a C compiler")
def test_the_wheel_runs_the_demo_without_a_compiler(dist: Path, tmp_path: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("outsize/kernels/cpu/_kernels") and name.endswith(".so") for name in names)
    assert {"outsize/models/specs/bloom.json", "outsize/machine/presets/2x-titan-rtx.json"} <= set(names)
    with tarfile.open(sdist) as packed:
        assert any(name.endswith("outsize/kernels/cpu/c/kernels.h") for name in packed.getnames())

    bin_folder = environment(tmp_path / "env", wheel)
    keep = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    env = {**keep, "PATH": str(bin_folder), "OUTSIZE_CACHE": str(tmp_path / "cache")}

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(str(bin_folder / "python"), "-c", "import outsize; print(outsize.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    loaded = "from outsize.kernels.cpu.library import kernels; print(kernels() is not None)"
    assert run(str(bin_folder / "python"), "-c", loaded).strip() == "True"
    assert "predicted" in run(str(bin_folder / "outsize"), "demo")
