"""Files that change, vanish or fail under a running model: an error, never other tokens, never a dead process."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint

import outsize
from outsize.errors import DamagedModel, ModelChanged, OutsizeError
from outsize.options import LoadOptions

PROMPT = torch.tensor([[5, 6, 7, 8]])
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("original"), ARCHITECTURES["llama"].make_model())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x3f" * size)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


DAMAGE = (truncate, empty, remove, replace, overwrite, append)


def generate(model: Any, after: Callable[[], None] = lambda: None) -> Any:
    """Eight tokens; ``after`` runs once the second is there."""
    seen = 0

    def watch(ids: Any, scores: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            after()
        return scores

    return model.generate(PROMPT, max_new_tokens=8, min_new_tokens=8, do_sample=False, logits_processor=[watch])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_while_generating(folder: Path, damage: Callable[[Path], None]) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32) as model:
        with pytest.raises(ModelChanged, match=FILE):
            generate(model, lambda: damage(folder / FILE))
        with pytest.raises(DamagedModel):  # and it stays so
            generate(model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_in_memory_needs_no_file(folder: Path, damage: Callable[[Path], None]) -> None:
    with outsize.load(folder, no_gpu=True, context=32) as model:
        want = generate(model)
        assert torch.equal(generate(model, lambda: damage(folder / FILE)), want)


def test_a_drive_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with (
        outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32) as model,
        pytest.raises(DamagedModel, match=r"cannot be read: Input/output error; try: check the drive"),
    ):
        generate(model, lambda: monkeypatch.setattr(os, "preadv", broken))


def test_a_drive_that_fails_during_the_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DamagedModel, match="Input/output error"):
        generate(outsize.load(folder, no_gpu=True, context=32))


def test_a_file_system_without_direct_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32) as model:
        want = generate(model)
    preadv = os.preadv

    def fussy(descriptor: int, views: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(FILE) and direct(descriptor):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", fussy)
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32) as model:
        assert torch.equal(generate(model), want)


def direct(descriptor: int) -> bool:
    """Whether a descriptor was opened with O_DIRECT."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return bool(flags & os.O_DIRECT)


def test_a_changed_file_between_planning_and_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from outsize import api
    from outsize.engine import loader

    opening = api.prepare(str(folder), LoadOptions(no_gpu=True, context=32))
    append(folder / FILE)
    with pytest.raises(ModelChanged, match=FILE):
        generate(loader.open_model(opening))


def test_a_closed_model_says_so_and_holds_no_file(folder: Path) -> None:
    model = outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32)
    generate(model)
    model.outsize.close()
    held = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.startswith(str(folder))]
    with pytest.raises(OutsizeError, match="closed"):
        generate(model)
    model.outsize.close()


def test_nothing_is_written_to_the_models_folder(folder: Path) -> None:
    def state() -> dict[str, tuple[int, int, int]]:
        stats = {path.name: path.stat() for path in (folder, *folder.rglob("*"))}
        return {name: (s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats.items()}

    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    before = state()
    try:
        with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32) as model:
            generate(model)
        assert state() == before
    finally:
        folder.chmod(0o755)


SCRIPT = """
import os, sys, outsize, torch
folder = sys.argv[1]
model = outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=32)
seen = []
def watch(ids, scores):
    seen.append(1)
    if len(seen) == 2:
        os.truncate(os.path.join(folder, "model.safetensors"), 4096)
    return scores
try:
    model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=8, min_new_tokens=8, logits_processor=[watch])
except outsize.OutsizeError as error:
    print(type(error).__name__)
    sys.exit(error.exit_code)
"""


def test_a_truncated_file_does_not_kill_the_process(folder: Path) -> None:
    """Where a file is mapped, this is a SIGBUS that nothing can catch."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "ModelChanged\n"), done.stderr
