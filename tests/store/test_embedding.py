from __future__ import annotations

from pathlib import Path

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
