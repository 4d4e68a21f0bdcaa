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


def ensure_quantised_gguf(folder: Path, shape: str, kind: str) -> Path:
    """The GGUF of a shape in ``kind`` (Q8_0, Q4_0), made by llama.cpp's own quantiser from the BF16 one."""
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        source = ensure_gguf(folder, shape)
        print(f"making {path}", file=sys.stderr, flush=True)
        subprocess.run(
            [sys.executable, str(_HERE / "quantise_gguf.py"), str(source), kind, str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return path


def ensure_converted(folder: Path, shape: str, weights: str) -> Path:
    """A checkpoint in int8 or int4, converted by outsize from the native one."""
    path = folder / f"{shape}-{weights}"
    if not (path / "config.json").exists():
        source = ensure(folder, shape)
        print(f"converting {path}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "outsize", "convert", str(source), "--weights", weights, "--out", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
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
