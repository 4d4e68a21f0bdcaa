"""Checkpoints that the benchmarks read: made when missing, removed when asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def default_folder() -> Path:
    """``bench/work``, which git ignores."""
    return _HERE / "work"


def ensure(folder: Path, shape: str) -> Path:
    """The safetensors checkpoint of a shape, made now if it is not there."""
    path = folder / shape
    if not (path / "config.json").exists():
        _make("make_checkpoint.py", shape, path)
    return path


def ensure_gguf(folder: Path, shape: str) -> Path:
    """The GGUF of a shape, made now if it is not there."""
    path = folder / f"{shape}.gguf"
    if not path.exists():
        _make("make_gguf.py", shape, path)
    return path


def _make(script: str, shape: str, path: Path) -> None:
    print(f"making {path}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, str(_HERE / script), shape, str(path)], check=True, stdout=subprocess.DEVNULL)


def remove(path: Path) -> None:
    """Delete a checkpoint folder or file."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def stored_bytes(path: Path) -> int:
    """Bytes of weights files: what has to be read once."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
