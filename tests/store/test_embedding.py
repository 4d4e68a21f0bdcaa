from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outsize.models.spec import StoredTensor
from outsize.store.embedding import RowReader
from outsize.store.reader import DirectFiles


def test_rows_that_are_kept_are_read_once(tmp_path: Path) -> None:
    data = bytes(range(256)) * 64  # [64 rows, 256]
    (tmp_path / "matrix").write_bytes(data)
    matrix = StoredTensor("m", "uint8", (64, 256), "matrix", 0, len(data))
    files = DirectFiles(tmp_path, {"matrix": len(data)})
    reader = RowReader(files)

    def read(rows: list[int]) -> int:
        before = reader.bytes_read
        assert bytes(reader.read(matrix, rows)) == b"".join(data[256 * r : 256 * r + 256] for r in rows)
        return reader.bytes_read - before

    assert read([5, 6, 63]) == read([5, 6, 63]) > 0
    reader.keep(3 * 256)
    once = read([5, 6])
    assert once > 0
    assert read([5, 6]) == 0
    assert 0 < read([6, 7, 8]) <= 2 * once
    assert read([5, 6, 7]) == 0
    assert read([8]) > 0  # there was no room for it
    reader.keep(0)
    assert read([5]) > 0
    reader.close()
    files.close()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((70, 9), (1, 70)),  # transposed
        ((70, 9), (1, 9000)),  # each element of a row on a page of its own
        ((70, 9), (3000, 9000)),
        ((70, 9), (13, 1)),  # part of a wider matrix
        ((70, 9), (40, 2)),
        ((70, 9), (0, 1)),  # one row
        ((70, 9), (1, 0)),  # one column
        ((70, 9), (0, 9000)),
        ((70, 9), (1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_rows_of_a_strided_matrix(
    shape: tuple[int, int], strides: tuple[int, int], dtype: torch.dtype, tmp_path: Path
) -> None:
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.randint(0, 256, (span * dtype.itemsize,), dtype=torch.uint8)
    (tmp_path / "matrix").write_bytes(b"skipped" + bytes(storage.numpy()))
    view = storage.view(dtype).as_strided(shape, strides)
    matrix = StoredTensor("m", str(dtype).removeprefix("torch."), shape, "matrix", 7, len(storage), strides)
    files = DirectFiles(tmp_path, {"matrix": 7 + len(storage)})
    reader = RowReader(files)
    rows = [3, 69, 0, 3, 4, 41]
    expected = view[rows].contiguous().view(torch.uint8).numpy().tobytes()
    assert bytes(reader.read(matrix, rows)) == expected
    reader.keep(2 * shape[1] * dtype.itemsize)
    assert bytes(reader.read(matrix, rows)) == bytes(reader.read(matrix, rows)) == expected
    assert reader.bytes_read > 0
    reader.close()
    files.close()
