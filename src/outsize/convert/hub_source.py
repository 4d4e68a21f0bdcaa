"""A checkpoint on the hub that is converted without ever being on this machine as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from outsize.convert.source import identify_commit
from outsize.errors import ModelChanged
from outsize.models.files import safetensors, torch_zip
from outsize.models.files.byte_source import LocalFile
from outsize.models.files.download import fetch_file, is_small_file
from outsize.models.files.folder import CONFIG, ModelFolder, inside
from outsize.models.files.hub import Repository
from outsize.models.spec import StoredTensor
from outsize.store.reader import DirectFiles

SCRATCH = "source"


class HubSource:
    """Each file is downloaded when it is needed, into the unfinished folder, and removed when it is not any more.

    A download that was cut short goes on where it ended. See source.Source.
    """

    scratch = SCRATCH

    def __init__(self, folder: ModelFolder, repository: Repository, partial: Path) -> None:
        self.identity = identify_commit(repository.model_id, repository.commit)
        self.config = dict(folder.config)
        # Two: a file may still be needed for the next shard while the one after it comes.
        self.extra_bytes = 2 * max(file.size for file in folder.files)
        self._folder = folder
        self._repository = repository
        self._cache = partial / SCRATCH
        self._opened: dict[str, DirectFiles] = {}
        self._placed: dict[str, StoredTensor] = {}

    def begin(self, file: str) -> None:
        """As in Source: downloads it, and reads its own header: offsets seen from afar are taken by rule."""
        if file in self._opened:
            return
        stated = self._repository.files[file]
        path = fetch_file(self._repository, stated, cache=self._cache)
        read = safetensors.read_header if self._folder.format == "safetensors" else torch_zip.read_header
        with LocalFile(inside(path.parent, file), file) as local:
            found = {tensor.name: tensor for tensor in read(local)}
        for tensor in self._folder.tensors:
            if tensor.file != file:
                continue
            here = found.get(tensor.name)
            if here is None or (here.dtype, here.shape, here.strides) != (tensor.dtype, tensor.shape, tensor.strides):
                raise ModelChanged(f"{file}: {tensor.name} is not what its header said before", remedy="run it again")
            self._placed[tensor.name] = here
        self._opened[file] = DirectFiles(path.parent, {file: stated.size})

    def place(self, tensor: StoredTensor) -> StoredTensor:
        """As in Source."""
        return self._placed[tensor.name]

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """As in direct_files.Files."""
        return self._opened[file].read_into(file, offset, view, needed)

    def check(self, files: Iterable[str]) -> None:
        """As in Source."""
        for file in files:
            self._opened[file].check([file])

    def end(self, file: str) -> None:
        """As in Source: removes it."""
        if file in self._opened:
            self._opened.pop(file).close()
        for path in self._cache.glob(f"models--*/snapshots/*/{file}"):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def small_files(self) -> dict[str, bytes]:
        """As in Source."""
        names = [name for name, file in self._repository.files.items() if name != CONFIG and is_small_file(file)]
        small = {}
        for name in sorted(names):
            path = fetch_file(self._repository, self._repository.files[name], cache=self._cache)
            small[name] = inside(path.parent, name).read_bytes()
        return small

    def close(self) -> None:
        """As in Source. What was downloaded stays for the next run, unless it was done with."""
        for files in self._opened.values():
            files.close()
        self._opened.clear()
