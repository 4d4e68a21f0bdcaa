from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from outsize.errors import DamagedModel, OutsizeError, UnsupportedModel, UntrustedModel
from outsize.models.files import torch_pickle, torch_zip
from outsize.models.files.byte_source import LocalFile
from outsize.models.files.torch_pickle import read_pickle
from outsize.models.files.torch_zip import read_header
from outsize.models.spec import StoredTensor
from outsize.models.strided import elements


def read(path: Path, content: bytes | None = None) -> tuple[StoredTensor, ...]:
    if content is not None:
        path.write_bytes(content)
    with LocalFile(path, path.name) as source:
        return read_header(source)


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rewritten(content: bytes, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> bytes:
    """The same zip with entries changed (None: left out)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            entry = change(name, old.read(name))
            if entry is not None:
                new.writestr(name, entry)
    return buffer.getvalue()


def with_pickle(data: bytes) -> bytes:
    """A checkpoint with one float32 storage of two elements and that pickle."""
    return rewritten(saved({"a": torch.zeros(2)}), lambda name, old: data if name.endswith("data.pkl") else old)


def state() -> OrderedDict[str, Any]:
    shared = torch.randn(5, 7)
    result: OrderedDict[str, Any] = OrderedDict(
        bf16=torch.randn(3, 4).bfloat16(),
        fp16=torch.randn(9).half(),
        parameter=torch.nn.Parameter(torch.randn(2)),
        fp8=torch.ones(3).to(torch.float8_e4m3fn),
        u16=torch.ones(2, dtype=torch.uint16),
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 4),
        shared=shared,
        tied=shared,
        part=shared[2:4],
        row=torch.randn(4, 1).t(),
        flags=torch.tensor([True, False]),
        steps=3, large=1 << 40, rate=0.1, note="text", none=None, sizes=torch.Size([2]), pairs=[1, 2], more={},
    )  # fmt: skip
    result._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_torch_writes_is_found_where_it_lies(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "pytorch_model.bin"
    written = state()
    content = saved(written, pickle_protocol=protocol)
    found = {tensor.name: tensor for tensor in read(path, content)}
    tensors = {name: value for name, value in written.items() if isinstance(value, torch.Tensor)}
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        place = found[name]
        assert (place.shape, f"torch.{place.dtype}", place.file) == (tensor.shape, str(tensor.dtype), path.name)
        raw = tensor.detach().reshape(-1).view(torch.uint8).tolist()
        assert content[place.offset : place.offset + place.nbytes] == bytes(raw)
    assert found["shared"].offset == found["tied"].offset


def test_a_module_s_state_and_many_tensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert len(read(tmp_path / "m.bin", saved(module.state_dict()))) == 7
    many = {f"layer.{i}": torch.zeros(1) for i in range(1500)}  # memo slots and numbers of more than one byte
    assert len(read(tmp_path / "m.bin", saved(many))) == 1500


def test_an_ordered_dict_from_pairs() -> None:
    make = b"\x80\x02ccollections\nOrderedDict\n"
    assert read_pickle(make + b"](X\x01\x00\x00\x00aK\x01\x86e\x85R.", "m") == {"a": 1}
    with pytest.raises(DamagedModel):
        read_pickle(make + b"](K\x01\x85K\x02\x86e\x85R.", "m")


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "bomb",
    [
        Bomb(os.system, ("touch /tmp/never",)),
        Bomb(eval, ("1",)),
        Bomb(getattr, ("torch", "load")),
        Bomb(torch.load, ("x",)),
        Bomb(torch.nn.Linear, (2, 2)),
        torch.nn.Linear(2, 2),
        {1, 2},
        b"bytes",
        complex(1, 2),
        torch.zeros(2).to_sparse(),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_asks_for_more_than_tensors(tmp_path: Path, bomb: object, protocol: int) -> None:
    content = saved({"a": torch.zeros(2), "b": bomb}, pickle_protocol=protocol)
    with pytest.raises(
        UntrustedModel, match=r"m\.bin: its pickle .*; try: a copy of the model as safetensors"
    ) as caught:
        read(tmp_path / "m.bin", content)
    assert caught.value.exit_code == 4
    assert not Path("/tmp/never").exists()


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (b"cos\nsystem\n(X\x01\x00\x00\x00aR.", UntrustedModel),
        (b"ctorch\nSize\nK\x01R.", UntrustedModel),  # arguments are no tuple
        (b"ctorch\nFloatStorage\n)R.", UntrustedModel),  # a name, not a callable
        (b"K\x01)R.", UntrustedModel),
        (b"(ios\nsystem\n.", UntrustedModel),  # INST
        (b"(cos\nsystem\no.", UntrustedModel),
        (b"\x82\x01.", UntrustedModel),  # EXT1
        (b"ctorch\nSize\n)\x81.", UntrustedModel),  # NEWOBJ
        (b"K\x01}b.", UntrustedModel),  # BUILD on a number
        (b"\x96" + b"\xff" * 8 + b".", UntrustedModel),  # a bytearray of 2**64 bytes
        (b"", DamagedModel),
        (b".", DamagedModel),
        (b"t.", DamagedModel),
        (b"\x85.", DamagedModel),
        (b"h\x05.", DamagedModel),
        (b"X\xff\xff\xff\x7fa.", DamagedModel),
        (b"X\x01\x00\x00\x00\xff.", DamagedModel),
        (b"\x8a\xff" + b"\x01" * 255 + b".", DamagedModel),
        (b"}(K\x01u.", DamagedModel),  # a key without a value
        (b"}K\x01\x85K\x01s.", DamagedModel),  # a tuple for a key
        (b"K\x01K\x02a.", DamagedModel),
        (b"K\x01K\x01\x93.", DamagedModel),
        (b"K\x01Q.", DamagedModel),
        (b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.", DamagedModel),
        (b"ctorch\nSize\n)R.", DamagedModel),
        (b"c" + b"torch", DamagedModel),
    ],
)
def test_programs_that_describe_no_tensor(program: bytes, kind: type[DamagedModel]) -> None:
    with pytest.raises(DamagedModel) as caught:
        read_pickle(program, "m.bin")
    assert type(caught.value) is kind


def tensor_program(offset: bytes, shape: bytes, strides: bytes, storage: bytes = b"FloatStorage") -> bytes:
    key = b"(X\x07\x00\x00\x00storagectorch\n" + storage + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + offset + shape + strides + b"\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."


TWO = b"K\x02\x85"
ONE = b"K\x01\x85"
ZERO = b"K\x00\x85"
LARGE = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"  # 2**63 - 1


@pytest.mark.parametrize(
    ("program", "kind", "says"),
    [
        (tensor_program(b"K\x01", TWO, ONE), DamagedModel, "'a' does not fit its storage; need 12 bytes, have 8 bytes"),
        (tensor_program(b"K\x00", b"J\xff\xff\xff\x7f\x85", ONE), DamagedModel, "does not fit its storage"),
        (tensor_program(b"K\x00", TWO, ONE, b"DoubleStorage"), DamagedModel, "does not fit its storage"),
        (tensor_program(b"K\x00", ONE, ONE, b"HalfStorage"), DamagedModel, "does not fit its storage"),
        (tensor_program(b"K\x00", TWO, TWO), DamagedModel, "'a' does not fit its storage; need 12 bytes, have 8"),
        (tensor_program(b"K\x02", TWO, ZERO), DamagedModel, "need 12 bytes, have 8"),
        (tensor_program(LARGE, TWO, ZERO), DamagedModel, "does not fit its storage"),
        (tensor_program(b"K\x00", TWO, LARGE + b"\x85"), DamagedModel, "does not fit its storage"),
        (tensor_program(b"K\x00", TWO, b"J\xff\xff\xff\xff\x85"), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", TWO, b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", LARGE + b"\x85", ZERO), DamagedModel, "'a' is larger than any tensor can be"),
        (tensor_program(b"K\x00", LARGE * 2 + b"\x86", b"K\x00K\x00\x86"), DamagedModel, "larger than any tensor"),
        (tensor_program(b"K\x00", LARGE * 2 + b"\x86", LARGE * 2 + b"\x86"), DamagedModel, "larger than any tensor"),
        (tensor_program(b"J\xff\xff\xff\xff", TWO, ONE), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", b"J\xff\xff\xff\xff\x85", ONE), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", b"]", ONE), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", b"]", b"]"), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", TWO, b")"), DamagedModel, "its pickle is damaged"),
        (tensor_program(b"K\x00", TWO, ONE, b"QInt8Storage"), UntrustedModel, "QInt8Storage"),
        (tensor_program(b"K\x00", TWO, ONE, b"float32"), DamagedModel, "its pickle is damaged"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, program: bytes, kind: type[OutsizeError], says: str) -> None:
    with pytest.raises(kind, match=says):
        read(tmp_path / "m.bin", with_pickle(program))


def test_a_sound_program(tmp_path: Path) -> None:
    (tensor,) = read(tmp_path / "m.bin", with_pickle(tensor_program(b"K\x00", TWO, ONE)))
    assert (tensor.shape, tensor.nbytes) == ((2,), 8)


def test_strided_views_are_found_with_their_spans(tmp_path: Path) -> None:
    whole = torch.arange(1, 25).view(4, 6)
    views = {
        "transposed": whole.t(),
        "part": whole[1:3, 2:4],
        "steps": whole[::2, 1::3],
        "repeated": whole[0, :1].expand(5),
        "rows": whole[1:2].expand(3, 6),
        "deep": whole.view(2, 3, 4).permute(2, 0, 1)[1:, :, ::2],
        "windows": whole.as_strided((3, 4), (1, 2), 7),
        "whole": whole,
        "last": whole[3:, 5:],
        "none": whole[:, :0].t(),
    }
    content = saved(views)
    found = {tensor.name: tensor for tensor in read(tmp_path / "m.bin", content)}
    for name, view in views.items():
        place = found[name]
        assert place.shape == view.shape
        assert place.strides == (None if view.is_contiguous() else view.stride())
        raw = b"".join(elements(memoryview(content)[place.offset :][: place.nbytes], place))
        assert raw == view.contiguous().numpy().tobytes(), name
    assert (found["transposed"].nbytes, found["repeated"].nbytes, found["windows"].nbytes) == (24 * 8, 8, 9 * 8)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"model": {"a": torch.zeros(2)}}, "one level down, under 'model'"),
        ({"state_dict": OrderedDict(a=torch.zeros(2))}, "one level down"),
        ({"all": [torch.zeros(2)]}, "one level down"),
        ({"a": {"b": {"c": torch.zeros(2)}}}, "one level down"),
        ([torch.zeros(2)], "no dict of tensors"),
        (torch.zeros(2), "no dict of tensors"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, value: object, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says) as caught:
        read(tmp_path / "m.bin", saved(value))
    assert caught.value.remedy


def test_other_formats_are_told_apart(tmp_path: Path) -> None:
    old = saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedModel, match=r"before PyTorch 1\.6; try: load it"):
        read(tmp_path / "m.bin", old)
    sound = saved({"a": torch.zeros(2)})
    big = rewritten(sound, lambda name, data: b"big" if name.endswith("byteorder") else data)
    with pytest.raises(UnsupportedModel, match="byte order"):
        read(tmp_path / "m.bin", big)
    before_byteorder = rewritten(sound, lambda name, data: None if name.endswith("byteorder") else data)
    assert len(read(tmp_path / "m.bin", before_byteorder)) == 1
    with pytest.raises(UnsupportedModel, match="compressed"):
        read(tmp_path / "m.bin", rewritten(sound, lambda _, data: data, zipfile.ZIP_DEFLATED))
    no_pickle = rewritten(sound, lambda name, data: None if name.endswith("data.pkl") else data)
    with pytest.raises(DamagedModel, match=r"no data\.pkl"):
        read(tmp_path / "m.bin", no_pickle)
    no_storage = rewritten(sound, lambda name, data: None if name.endswith("data/0") else data)
    with pytest.raises(DamagedModel, match="lacks the entry 'data/0'"):
        read(tmp_path / "m.bin", no_storage)


def test_damaged_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.bin"
    sound = saved({"a": torch.arange(100.0)})
    for content in (b"", b"PK", pickle.dumps({}), sound[:-30], sound[: len(sound) // 2]):
        with pytest.raises(DamagedModel, match="truncated or no PyTorch checkpoint"):
            read(path, content)
    at = sound.index(b"data.pkl")
    with pytest.raises(DamagedModel, match="checksum"):
        read(path, sound[: at + 100] + b"\xff" + sound[at + 101 :])
    with pytest.raises(DamagedModel, match="no entry where"):
        read(path, b"XX" + sound[2:])
    with pytest.raises(DamagedModel, match="overlaps the next"):
        read(path, sound[:26] + b"\xff\xff" + sound[28:])
    twice = io.BytesIO(sound)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"")
    with pytest.raises(DamagedModel, match="two entries"):
        read(path, twice.getvalue())
    with monkeypatch.context() as patch:
        patch.setattr(torch_zip, "MOST_BYTES", 10)
        with pytest.raises(DamagedModel, match="too large"):
            read(path, sound)
    with monkeypatch.context() as patch:
        patch.setattr(torch_pickle, "MOST_BYTES", 10)
        with pytest.raises(DamagedModel, match="too large"):
            read(path, sound)
    with monkeypatch.context() as patch:
        patch.setattr(torch_zip, "LARGEST_DIRECTORY", 10)
        with pytest.raises(DamagedModel, match="directory is too large"):
            read(path, sound)


def test_an_entry_outside_the_file(tmp_path: Path) -> None:
    """The zip64 form of a directory entry can name any offset; the end of the file is found by itself."""
    sound = saved({"a": torch.zeros(2)})
    directory = sound.index(b"PK\x01\x02")
    for offset in (0xFFFFFF00, len(sound) - 10):
        changed = sound[: directory + 42] + struct.pack("<I", offset) + sound[directory + 46 :]
        with pytest.raises(DamagedModel):
            read(tmp_path / "m.bin", changed)


def test_a_directory_longer_than_the_tail_that_is_kept(tmp_path: Path) -> None:
    many = {f"layer.{i}": torch.zeros(1) for i in range(200)}
    assert len(read(tmp_path / "m.bin", saved(many))) == 200


def test_random_damage_of_the_zip_gives_our_errors_only(tmp_path: Path) -> None:
    sound = saved(state())
    directory = sound.index(b"PK\x01\x02")
    chance = random.Random(2)
    refused = 0
    for _ in range(600):
        content = bytearray(sound)
        for _ in range(chance.randrange(1, 4)):
            start = directory if chance.random() < 0.8 else 0
            content[chance.randrange(start, len(sound))] = chance.randrange(256)
        cut = chance.randrange(len(content)) if chance.random() < 0.2 else len(content)
        try:
            read(tmp_path / "m.bin", bytes(content[:cut]))
        except (DamagedModel, UnsupportedModel):
            refused += 1
    assert refused > 200


def test_random_damage_of_the_pickle_gives_our_errors_only() -> None:
    """By itself, because in the zip its checksum would be wrong first."""
    sound = zipfile.ZipFile(io.BytesIO(saved(state()))).read("archive/data.pkl")
    chance = random.Random(3)
    refused = 0
    for _ in range(2000):
        content = bytearray(sound)
        for _ in range(chance.randrange(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            read_pickle(bytes(content), "m.bin")
        except DamagedModel:
            refused += 1
    assert refused > 1000


def test_random_tensors_in_a_sound_pickle(tmp_path: Path) -> None:
    """Damage within the program's numbers, its checksum made right: what passes must lie within the file."""
    program = tensor_program(b"J\x00\x00\x00\x00", b"J\x02\x00\x00\x00\x85", b"J\x01\x00\x00\x00\x85")
    chance = random.Random(4)
    for _ in range(300):
        changed = bytearray(program)
        changed[chance.randrange(len(changed) - 40, len(changed))] = chance.randrange(256)
        content = with_pickle(bytes(changed))
        try:
            tensors = read(tmp_path / "m.bin", content)
        except (DamagedModel, UnsupportedModel):
            continue
        assert all(0 < tensor.offset <= len(content) - tensor.nbytes for tensor in tensors)
