"""Model files with random damage: understood or refused in one line, never anything else."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from outsize.errors import MOST_CHARACTERS, OutsizeError
from outsize.models.files.folder import open_folder
from outsize.models.files.packed_tensors import merge, shapes_in
from outsize.models.quantization import read_quantisation

INPUTS = 300  # of each kind
STATE = {f"layers.{i}.{n}.weight": torch.ones(8, 16, dtype=torch.bfloat16) for i in range(3) for n in ("q", "up")}
PACKED = {"a.weight_packed": torch.zeros(8, 2, dtype=torch.int32), "a.weight_scale": torch.ones(8, 1)}
PACKED["a.weight_shape"] = torch.tensor([8, 16])
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}
CONFIG = {"model_type": "llama", "hidden_size": 16, "quantization_config": QUANTIZATION}
INDEX = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(STATE, "model-00001-of-00001.safetensors")}
WORDS: list[Any] = [0, -1, 2**63, 2**64, 10**400, 0.5, float("nan"), True, None, "", "..", "/etc/passwd", "a" * 300]
WORDS += ["\x00", "\ud800", "x\ny", "\x1b[31m", "BF16", [], {}, [[]], [2**62] * 64, {"a": 1}, "re:("]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *places(inner, (*path, key))]]


def mutated(r: random.Random, value: Any) -> bytes:
    value = json.loads(json.dumps(value))
    for _ in range(r.choice((1, 1, 2, 3))):
        *above, key = r.choice(places(value) or [("x",)])
        at = value
        for step in above:
            at = at[step]
        if isinstance(at, dict) and r.random() < 0.2:
            at.pop(key, None)
        else:
            at[key] = copy.deepcopy(r.choice(WORDS))
    return json.dumps(value).encode("utf-8", "surrogatepass")


def with_header(r: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = mutated(r, json.loads(content[8 : 8 + length]))
    return struct.pack("<Q", r.choice((len(header),) * 9 + (0, 2**40, 2**64 - 1))) + header + content[8 + length :]


def damaged(r: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(r.choice((1, 2, 8))):
        at = r.randrange(len(changed))
        if r.random() < 0.7:
            changed[at] = r.randrange(256)
        else:
            del changed[at : at + r.choice((1, 8, 64))]
    return bytes(changed)


def files(kind: str, r: random.Random) -> dict[str, bytes]:
    plain = json.dumps({**CONFIG, "quantization_config": None}).encode()
    match kind:
        case "header":
            return {"config.json": plain, "model.safetensors": with_header(r, save(STATE))}
        case "index":
            index = mutated(r, INDEX)
            return {"config.json": plain, INDEX_NAME: index, "model-00001-of-00001.safetensors": save(STATE)}
        case "config":
            return {"config.json": mutated(r, CONFIG), "model.safetensors": save(PACKED)}
        case "packed":
            return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": with_header(r, save(PACKED))}
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    return {"config.json": plain, "pytorch_model.bin": damaged(r, buffer.getvalue())}


INDEX_NAME = "model.safetensors.index.json"


def use(folder: Path) -> None:
    found = open_folder(folder)
    quantisation = read_quantisation(found.config)
    if quantisation is not None:
        for tensor in merge(found.tensors, quantisation, shapes_in(found.path)):
            quantisation.scheme_of(tensor.name, ("Linear",))


@pytest.mark.parametrize("kind", ["header", "index", "config", "packed", "bin"])
def test_damage(kind: str, tmp_path: Path) -> None:
    for number in range(INPUTS):
        r = random.Random(f"{kind} {number}")
        for path in tmp_path.iterdir():
            path.unlink()
        for name, content in files(kind, r).items():
            (tmp_path / name).write_bytes(content)
        said = ""
        try:
            use(tmp_path)
        except OutsizeError as error:
            said = str(error)
        assert len(said) <= MOST_CHARACTERS
        assert said.isprintable()
