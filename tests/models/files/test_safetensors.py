from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from outsize.errors import DamagedModel, ModelChanged
from outsize.models.files.byte_source import LocalFile
from outsize.models.files.parse_json import MOST_BYTES, parse_json_object
from outsize.models.files.safetensors import TORCH_NAMES, read_header
from outsize.models.spec import StoredTensor


def read(path: Path, content: bytes | None = None) -> tuple[StoredTensor, ...]:
    if content is not None:
        path.write_bytes(content)
    with LocalFile(path, path.name) as source:
        return read_header(source)


def packed(header: dict[str, Any] | bytes, data: int = 0, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data)


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), data: int = 8) -> bytes:
    return packed({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data)


def test_what_safetensors_writes_is_found_where_it_lies(tmp_path: Path) -> None:
    skip = {"F8_E8M0"}  # no arithmetic in torch to fill it with
    written = {
        torch_name: torch.ones(3, 2).to(getattr(torch, torch_name))
        for name, torch_name in TORCH_NAMES.items()
        if name not in skip
    } | {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    path = tmp_path / "model.safetensors"
    save_file(written, path, {"format": "pt"})
    content = path.read_bytes()
    found = {tensor.name: tensor for tensor in read(path)}
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        place = found[name]
        assert (place.shape, f"torch.{place.dtype}", place.file) == (tensor.shape, str(tensor.dtype), path.name)
        assert content[place.offset : place.offset + place.nbytes] == bytes(
            tensor.reshape(-1).view(torch.uint8).tolist()
        )
    assert [t.offset for t in read(path)] == sorted(t.offset for t in found.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1234", "truncated"),
        (packed({}, length=2**63), "not a safetensors file"),
        (packed({}, length=100), "truncated within its header.*need 108 bytes, have 10 bytes"),
        (packed(b"[]"), "not a JSON object"),
        (packed(b"{"), "not valid JSON"),
        (packed(b"[" * 100_000), "not valid JSON"),
        (packed(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
        (packed(b"\xff{}"), "not valid JSON"),
        (packed(b'{"a": {}, "a": {}}'), "'a' twice"),
        (packed(b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'), "lacks a dtype"),
        (packed({"a": 1}), "lacks a dtype"),
        (packed({"a": {"dtype": "F32", "shape": []}}), "lacks a dtype"),
        (one(offsets=[0]), "lacks a dtype"),
        (one(dtype="F4"), "unknown data type 'F4'; need one of BOOL"),
        (one(dtype=["F32"]), "unknown data type"),
        (one(shape=2), "a shape that is none"),
        (one(shape=[-2]), "a shape that is none"),
        (one(shape=[True, 2]), "a shape that is none"),
        (one(shape=[2.0]), "a shape that is none"),
        (one(shape=[1] * 65), "a shape that is none"),
        (one(offsets=[8, 0]), "offsets that are none"),
        (one(offsets=[-8, 0]), "offsets that are none"),
        (one(offsets=["0", "8"]), "offsets that are none"),
        (one(shape=[3]), r"does not fill its place; need 12 bytes for F32 \[3\], have 8 bytes"),
        (one(shape=[2**62, 2**62]), "does not fill its place"),
        (one(offsets=[8, 16], data=16), "leaves a hole before it"),
        (one(data=4), "truncated; need .* bytes, have .* bytes; try: download"),
        (one(data=9), "bytes that belong to no tensor"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DamagedModel, match=rf"(?s)m\.safetensors: .*{says}") as caught:
        read(tmp_path / "m.safetensors", content)
    assert caught.value.exit_code == 4


def test_overlaps_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [4]}
    both = {"a": {**entry, "data_offsets": [0, 4]}, "b": {**entry, "data_offsets": [2, 6]}}
    with pytest.raises(DamagedModel, match="'b' overlaps"):
        read(tmp_path / "m.safetensors", packed(both, 6))


def test_a_large_file_of_json_is_not_parsed() -> None:
    with pytest.raises(DamagedModel, match="too large"):
        parse_json_object(b" " * (MOST_BYTES + 1), "index")


def test_files_that_are_none(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedModel, match="not a regular file"):
        LocalFile(tmp_path / "pipe", "pipe")
    with pytest.raises(DamagedModel, match="cannot be opened"):
        LocalFile(tmp_path / "nothing", "nothing")
    (tmp_path / "short").write_bytes(b"12345678")
    with LocalFile(tmp_path / "short", "short") as source:
        assert source.read(2, 3) == b"345"
        (tmp_path / "short").write_bytes(b"12")
        with pytest.raises(ModelChanged, match="became shorter"):
            source.read(0, 8)
    source = LocalFile(tmp_path / "short", "short")
    source.close()
    with pytest.raises(DamagedModel, match="cannot be read"):
        source.read(0, 1)


def test_random_damage_gives_our_errors_only(tmp_path: Path) -> None:
    sound = save({f"layer.{i}": torch.zeros(i, 3) for i in range(6)})
    path = tmp_path / "m.safetensors"
    chance = random.Random(1)
    refused = 0
    for _ in range(2000):
        content = mutated(sound, chance, within=len(sound) - 90)
        try:
            read(path, content)
        except DamagedModel:
            refused += 1
    assert refused > 1000


def mutated(content: bytes, chance: random.Random, within: int) -> bytes:
    """A few bytes changed, or the end cut off, or a piece left out or doubled."""
    kind = chance.randrange(4)
    at = chance.randrange(within)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + chance.randrange(20) :]
    if kind == 2:
        return content[: at + 5] + content[at:]
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 5)):
        changed[chance.randrange(within)] = chance.randrange(256)
    return bytes(changed)
