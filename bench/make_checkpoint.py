"""Make a checkpoint of random weights in a real shape, named and split as a published one, in little memory.

    python bench/make_checkpoint.py opt-6.7b /data/opt-6.7b
    python bench/make_checkpoint.py /path/to/config.json /data/mine --dtype float16 --format bin --shard-bytes
    2000000000

Names and shapes come from transformers' own model on the meta device, so every causal architecture that it knows can be
made. The last line on stdout is a JSON object: folder, bytes, shards, seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from noise import Noise, item_bytes, settle
from shapes import config_of
from torch_zip import write_torch_zip

Tensors = list[tuple[str, tuple[int, ...]]]
_SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def meta_model(config_dict: dict[str, Any], dtype: str) -> Any:
    """A transformers model on the meta device: names and shapes without a byte of weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(config_dict)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    return model


def stored_tensors(model: Any, without_prefix: bool) -> Tensors:
    """Names and shapes as ``save_pretrained`` would store them: of tied tensors the first name only.

    Raises SystemExit for a tensor that holds no floats: its values cannot be random.
    """
    seen: set[int] = set()
    tensors: Tensors = []
    prefix = f"{model.base_model_prefix}."
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if not tensor.is_floating_point():
            raise SystemExit(f"{name} is {tensor.dtype}: only floating-point tensors can be made up")
        tensors.append((name.removeprefix(prefix) if without_prefix else name, tuple(tensor.shape)))
    return tensors


def bytes_of(shape: tuple[int, ...], item: int) -> int:
    """Bytes of one tensor."""
    count = item
    for extent in shape:
        count *= extent
    return count


def split(tensors: Tensors, item: int, limit: int) -> list[Tensors]:
    """Split as transformers does: in order, at most ``limit`` bytes a shard, a larger tensor alone in its shard."""
    shards: list[Tensors] = [[]]
    filled = 0
    for name, shape in tensors:
        size = bytes_of(shape, item)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    return shards


def write_safetensors(path: Path, tensors: Tensors, noise: Noise) -> None:
    """One safetensors file, sorted by name as the safetensors library sorts it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    item, offset = item_bytes(noise.dtype), 0
    tensors = sorted(tensors)
    for name, shape in tensors:
        end = offset + bytes_of(shape, item)
        header[name] = {"dtype": _SAFETENSORS_DTYPES[noise.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            for piece in noise.tensor(name, shape):
                file.write(piece)
        file.flush()
        settle(file.fileno())


def write_bin(path: Path, tensors: Tensors, noise: Noise) -> None:
    """One ``torch.save`` file."""
    with path.open("wb") as file:
        write_torch_zip(
            file, [(name, shape, partial(noise.tensor, name, shape)) for name, shape in tensors], noise.dtype
        )
        file.flush()
        settle(file.fileno())


def shard_names(count: int, format_: str) -> Iterator[str]:
    """File names in the published layout."""
    stem, suffix = ("pytorch_model", "bin") if format_ == "bin" else ("model", "safetensors")
    if count == 1:
        yield f"{stem}.{suffix}"
        return
    for number in range(1, count + 1):
        yield f"{stem}-{number:05d}-of-{count:05d}.{suffix}"


def write_index(folder: Path, format_: str, weight_map: dict[str, str], total: int) -> None:
    """The index that says which shard holds which tensor."""
    name = "pytorch_model.bin.index.json" if format_ == "bin" else "model.safetensors.index.json"
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def add_tokenizer(folder: Path, source: str, vocab_size: int) -> None:
    """Copy the tokenizer files of another folder, or make up one word per token (``t0 t1 t2 …``)."""
    if source != "make":
        patterns = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "spiece.model")
        found = [path for pattern in patterns for path in Path(source).glob(pattern)]
        if not found:
            raise SystemExit(f"{source}: no tokenizer files there")
        for path in found:
            shutil.copy(path, folder)
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(folder)


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the whole folder and say what was written."""
    began = time.monotonic()
    config_dict = config_of(arguments.shape)
    # A config without a data type means float32, as in transformers.
    dtype: str = arguments.dtype or config_dict.pop("dtype", None) or config_dict.pop("torch_dtype", None) or "float32"
    config_dict = {key: value for key, value in config_dict.items() if key not in ("dtype", "torch_dtype")}
    item = item_bytes(dtype)
    model = meta_model(config_dict, dtype)
    tensors = stored_tensors(model, arguments.without_prefix)
    total = sum(bytes_of(shape, item) for _, shape in tensors)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total + (1 << 30) > free:
        raise SystemExit(f"{folder}: need {total / 1e9:.1f} GB and 1 GiB to spare, have {free / 1e9:.1f} GB")
    shards = split(tensors, item, arguments.shard_bytes)
    noise = Noise(arguments.seed, dtype)
    weight_map: dict[str, str] = {}
    for name, shard in zip(shard_names(len(shards), arguments.format), shards, strict=True):
        (write_bin if arguments.format == "bin" else write_safetensors)(folder / name, shard, noise)
        weight_map |= {tensor: name for tensor, _ in shard}
        print(f"{name}: {(folder / name).stat().st_size / 1e9:.2f} GB", file=sys.stderr)
    if len(shards) > 1:
        write_index(folder, arguments.format, weight_map, total)
    if arguments.tokenizer:
        add_tokenizer(folder, arguments.tokenizer, model.config.vocab_size)
    model.generation_config.save_pretrained(folder)
    model.config.save_pretrained(folder)  # last: a folder with a config is a finished checkpoint
    return {"folder": os.fspath(folder), "bytes": total, "shards": len(shards), "seconds": time.monotonic() - began}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="a built-in shape (see shapes.py), a config.json or its folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=list(_SAFETENSORS_DTYPES), help="default: the config's")
    parser.add_argument("--format", choices=["safetensors", "bin"], default="safetensors")
    parser.add_argument("--shard-bytes", type=int, default=5 * 10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without-prefix", action="store_true", help="drop the base model's prefix, as older checkpoints do"
    )
    parser.add_argument("--tokenizer", help="a folder to copy one from, or 'make' for one word per token")
    print(json.dumps(make(parser.parse_args())))


if __name__ == "__main__":
    main()
