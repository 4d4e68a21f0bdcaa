"""Make a mixture-of-experts checkpoint of random weights in a real shape, tensor by tensor, in little memory.

    python bench/make_mixture.py qwen3-30b-a3b /data/a3b-int4 --weights int4
    python bench/make_mixture.py qwen3-30b-a3b /data/a3b.gguf --skew 0.5
    python bench/make_mixture.py gpt-oss-20b /data/gpt-oss-20b

A folder is written as published: experts one by one, in bfloat16, or in int4 just as ``outsize convert`` would write it
(random words, so that the native 61 GB are never there), gpt-oss with its experts in mxfp4. A ``.gguf`` has experts and
Linear layers in Q4_0, embeddings and head in Q6_K.

Embeddings are large and what layers add to them is small, as in trained models: where layers drown the embeddings, all
tokens look alike and go to the same experts. Random routers send them everywhere then. ``--skew S`` multiplies each
expert's row of a router by exp(S * n), n normal: long rows give large scores, so those experts are used more often, the
same in both kinds of files. On a path that is there already the routers alone are written anew. The last line on stdout
is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import add_tokenizer, shard_names, split, write_index
from noise import Noise, encode, settle
from shapes import config_of

SHARD_BYTES = 5 * 10**9
SCALE = 0.0046  # of int4: with uniform integers of -7 .. 7 a deviation of 0.02
EMBEDDING, OUTPUT = 50.0, 0.125  # times what other weights are: embeddings, and matrices whose output is added to them
OUTPUTS = ("o_proj", "down_proj", "attn_output", "ffn_down_exps")
MX_EXPONENT = 120  # of mxfp4: 2**-7, for a deviation of 0.023
CHUNK = 8 << 20
SAFETENSORS = {"bfloat16": ("BF16", 2), "int32": ("I32", 4), "int64": ("I64", 8), "uint8": ("U8", 1)}

Tensor = tuple[str, str, tuple[int, ...]]  # name, data type, shape


class Content:
    """The bytes of every tensor, the same for the same name."""

    def __init__(self, skew: float) -> None:
        self._noise = Noise(0, "bfloat16")
        self._skew = skew
        draw = np.random.default_rng(1)
        # Halves of 1 to 15, so that weights have no mean: the least of one makes all tokens alike in a few layers.
        low, high = (draw.integers(1, 16, 32 << 20, dtype=np.uint8) for _ in range(2))
        self._words = (high << 4 | low).data.cast("B")

    def router(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A router's rows [experts, width] in float32."""
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        rows = draw.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        return rows * np.exp(self._skew * draw.standard_normal((shape[0], 1), dtype=np.float32))

    def random(self, name: str, nbytes: int) -> Iterator[memoryview]:
        """Random bytes, each two integers of 1 to 15."""
        start = zlib.crc32(name.encode()) % (len(self._words) // 2)
        while nbytes:
            size = min(nbytes, CHUNK, len(self._words) - start)
            yield self._words[start : start + size]
            start, nbytes = (start + size) % len(self._words), nbytes - size

    def of(self, tensor: Tensor, matrix: tuple[int, ...] = ()) -> Iterator[memoryview]:
        """The bytes of one tensor of a folder; ``matrix``: the shape that a ``_shape`` states."""
        name, dtype, shape = tensor
        count = int(np.prod(shape))
        if name.endswith(("mlp.gate.weight", "router.weight")):
            yield encode(self.router(name, shape), "bfloat16").data.cast("B")
        elif name.endswith("_shape"):
            yield memoryview(struct.pack("<2q", *matrix))
        elif name.endswith("weight_scale"):
            yield encode(np.full(count, SCALE * times(name), np.float32), "bfloat16").data.cast("B")
        elif name.endswith("_scales"):
            yield np.full(count, MX_EXPONENT + int(np.log2(times(name))), np.uint8).data.cast("B")
        elif dtype == "bfloat16" and times(name) != 1:
            for piece in self._noise.weights(name, count):
                numbers = (np.frombuffer(piece, np.uint16).astype(np.uint32) << 16).view(np.float32)
                yield encode(numbers * np.float32(times(name)), "bfloat16").data.cast("B")
        elif dtype == "bfloat16":
            yield from self._noise.tensor(name, shape)
        else:
            yield from self.random(name, count * SAFETENSORS[dtype][1])


def times(name: str) -> float:
    """How much larger than other weights a tensor's are."""
    if "embed_tokens" in name or "token_embd" in name:
        return EMBEDDING
    return OUTPUT if any(part in name for part in OUTPUTS) and "bias" not in name else 1.0


def native_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names and shapes of a published checkpoint: transformers' own, with the experts as they are stored."""
    from make_checkpoint import meta_model, stored_tensors

    plain = {key: value for key, value in config.items() if key != "dtype"}
    for name, shape in stored_tensors(meta_model(plain, "bfloat16"), without_prefix=False):
        module, _, last = name.rpartition(".")
        if not module.endswith(".experts") or len(shape) == 2:
            yield name, "bfloat16", shape
        elif config["model_type"] == "gpt_oss":
            experts, inputs, outputs = shape
            yield f"{name}_blocks", "uint8", (experts, outputs, inputs // 32, 16)
            yield f"{name}_scales", "uint8", (experts, outputs, inputs // 32)
        else:
            experts, outputs, inputs = shape
            both = last == "gate_up_proj"
            for expert in range(experts):
                for part in ("gate_proj", "up_proj") if both else ("down_proj",):
                    out = outputs // 2 if both else outputs
                    yield f"{module}.{expert}.{part}.weight", "bfloat16", (out, inputs)


def write_file(path: Path, header: bytes, tensors: list[Tensor], content: Content, shapes: dict[str, Any]) -> None:
    """One safetensors file: its first bytes, and the tensors in order."""
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors:
            for piece in content.of(tensor, shapes.get(tensor[0], ())):
                file.write(piece)
        file.flush()
        settle(file.fileno())
    print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB", file=sys.stderr)


def header_of(tensors: list[Tensor]) -> bytes:
    """The first bytes of a safetensors file with these tensors one after the other."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, dtype, shape in tensors:
        known, item = SAFETENSORS[dtype]
        end = place + int(np.prod(shape)) * item
        entries[name] = {"dtype": known, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_native(folder: Path, config: dict[str, Any], content: Content | None) -> None:
    """The published checkpoint; without ``content`` its headers alone, in files with holes."""
    tensors = sorted(native_tensors(config))
    sized = [(f"{name}\0{dtype}", shape) for name, dtype, shape in tensors]
    shards = split(sized, 2, SHARD_BYTES)
    placed: dict[str, str] = {}
    for file, shard in zip(shard_names(len(shards), "safetensors"), shards, strict=True):
        of_shard = [(*name.split("\0"), shape) for name, shape in shard]
        placed |= {name: file for name, *_ in of_shard}
        header = header_of(of_shard)  # type: ignore[arg-type]
        if content is None:
            size = sum(int(np.prod(shape)) * SAFETENSORS[dtype][1] for _, dtype, shape in of_shard)
            (folder / file).write_bytes(header)
            os.truncate(folder / file, len(header) + size)
        else:
            write_file(folder / file, header, of_shard, content, {})  # type: ignore[arg-type]
    if len(shards) > 1:
        write_index(folder, "safetensors", placed, 0)
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    more = {"quantization_config": quantised} if config["model_type"] == "gpt_oss" else {}
    (folder / "config.json").write_text(json.dumps({**config, **more}, indent=2))


def write_int4(folder: Path, config: dict[str, Any], content: Content) -> None:
    """What converting the published checkpoint would write, with random words."""
    from outsize.convert.packed_config import packed_config
    from outsize.convert.recipe import make_recipe
    from outsize.models.files.folder import open_folder
    from outsize.models.survey_cache import folder_spec

    holes = folder / "native"
    holes.mkdir()
    write_native(holes, config, None)
    opened = open_folder(holes)
    recipe = make_recipe(opened.tensors, folder_spec(opened), "int4")
    shapes = {f"{t.name}_shape": t.shape for t in opened.tensors}
    for shard in recipe.shards:
        tensors = [(t.name, t.dtype, t.shape) for t in shard.placed]
        write_file(folder / shard.name, shard.header, tensors, content, shapes)
    if recipe.index is not None:
        (folder / "model.safetensors.index.json").write_bytes(recipe.index)
    (folder / "config.json").write_bytes(packed_config(config, recipe))
    for file in holes.iterdir():
        file.unlink()
    holes.rmdir()


def describe(writer: Any, config: dict[str, Any]) -> None:
    """The hyper-parameters and a made-up vocabulary."""
    import gguf
    from make_gguf import add_vocabulary

    writer.add_name("random weights")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    add_vocabulary(writer, config["vocab_size"])


def write_gguf(path: Path, config: dict[str, Any], content: Content) -> None:
    """Qwen3's mixtures for llama.cpp: Q4_0, embeddings and head in Q6_K, norms and routers in float32."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "qwen3moe")
    describe(writer, config)
    rows = list(gguf_tensors(config, kinds))
    for name, shape, kind in rows:
        plain = np.dtype(np.float32 if kind == kinds.F32 else np.uint8)
        writer.add_tensor_info(name, stored_shape(shape, kind), plain, nbytes(shape, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    q4, q6 = (18, 0, SCALE), (210, 208, 1.5e-5)  # bytes of a block, where its scale stands, and that scale
    blocks = {
        (kind, factor): blocks_of(content, size, place, scale * factor)
        for kind, (size, place, scale) in ((kinds.Q4_0, q4), (kinds.Q6_K, q6))
        for factor in (1.0, EMBEDDING, OUTPUT)
    }
    for name, shape, kind in rows:
        writer.write_padding(file, file.tell())
        if kind == kinds.F32 and name.endswith("gate_inp.weight"):
            layer = name.split(".")[1]
            file.write(content.router(f"model.layers.{layer}.mlp.gate.weight", shape).tobytes())
        elif kind == kinds.F32:
            file.write(np.ones(shape, np.float32).tobytes())
        else:
            left = nbytes(shape, kind)
            while left:
                piece = blocks[kind, times(name)][:left]
                file.write(piece)
                left -= len(piece)
    writer.write_padding(file, file.tell())
    file.flush()
    settle(file.fileno())
    writer.close()


def gguf_tensors(config: dict[str, Any], kinds: Any) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Names, shapes and kinds, as llama.cpp names them."""
    hidden, head, experts = config["hidden_size"], config["head_dim"], config["num_experts"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    inner = config["moe_intermediate_size"]
    yield "token_embd.weight", (config["vocab_size"], hidden), kinds.Q6_K
    for layer in range(config["num_hidden_layers"]):
        block = f"blk.{layer}"
        for name, shape in (("attn_norm", (hidden,)), ("attn_q_norm", (head,)), ("attn_k_norm", (head,)),
                            ("ffn_norm", (hidden,)), ("ffn_gate_inp", (experts, hidden))):  # fmt: skip
            yield f"{block}.{name}.weight", shape, kinds.F32
        for name, shape in (("attn_q", (q, hidden)), ("attn_k", (kv, hidden)), ("attn_v", (kv, hidden)),
                            ("attn_output", (hidden, q)), ("ffn_gate_exps", (experts, inner, hidden)),
                            ("ffn_up_exps", (experts, inner, hidden)),
                            ("ffn_down_exps", (experts, hidden, inner))):  # fmt: skip
            yield f"{block}.{name}.weight", shape, kinds.Q4_0
    yield "output_norm.weight", (hidden,), kinds.F32
    yield "output.weight", (config["vocab_size"], hidden), kinds.Q6_K


def stored_shape(shape: tuple[int, ...], kind: Any) -> tuple[int, ...]:
    """The shape in bytes, as the writer wants that of quantised tensors."""
    import gguf

    if kind == gguf.GGMLQuantizationType.F32:
        return shape
    return (*shape[:-1], nbytes(shape[-1:], kind))


def nbytes(shape: tuple[int, ...], kind: Any) -> int:
    """Bytes of a tensor of that kind."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def blocks_of(content: Content, size: int, place: int, scale: float) -> memoryview:
    """Some 32 MiB of random blocks of that size, whose fp16 scale stands at ``place``."""
    count = (32 << 20) // size
    raw = np.frombuffer(b"".join(content.random(str(size), count * size)), np.uint8).reshape(count, size).copy()
    raw[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return raw.reshape(-1).data.cast("B")


def write_routers(path: Path, config: dict[str, Any], content: Content) -> None:
    """Writes the routers of a finished checkpoint anew."""
    shape = config["num_experts"], config["hidden_size"]
    if path.suffix == ".gguf":
        import gguf

        with path.open("r+b") as file:
            for tensor in gguf.GGUFReader(path).tensors:
                if tensor.name.endswith("ffn_gate_inp.weight"):
                    file.seek(int(tensor.data_offset))
                    name = f"model.layers.{tensor.name.split('.')[1]}.mlp.gate.weight"
                    file.write(content.router(name, shape).tobytes())
        return
    from outsize.models.files.folder import open_folder

    for stored in open_folder(path).tensors:
        if stored.name.endswith("mlp.gate.weight"):
            with (path / stored.file).open("r+b") as file:
                file.seek(stored.offset)
                file.write(encode(content.router(stored.name, shape), "bfloat16").tobytes())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="qwen3-30b-a3b, moe-5gb, gpt-oss-20b")
    parser.add_argument("path", type=Path, help="a folder, or a .gguf")
    parser.add_argument("--weights", choices=["native", "int4"], default="native")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--tokenizer", action="store_true", help="with one word per token")
    arguments = parser.parse_args()
    began = time.monotonic()
    config, content = config_of(arguments.shape), Content(arguments.skew)
    if arguments.path.exists():
        write_routers(arguments.path, config, content)
        print(json.dumps({"path": os.fspath(arguments.path), "seconds": time.monotonic() - began}))
        return
    draft = arguments.path.with_name(arguments.path.name + ".part")
    if arguments.path.suffix == ".gguf":
        write_gguf(draft, config, content)
    else:
        draft.mkdir(parents=True)
        (write_int4 if arguments.weights == "int4" else write_native)(draft, config, content)
        if arguments.tokenizer:
            add_tokenizer(draft, "make", config["vocab_size"])
    draft.rename(arguments.path)
    print(json.dumps({"path": os.fspath(arguments.path), "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
