"""Make a BF16 GGUF of random weights in a Llama shape for llama.cpp, tensor by tensor, in little memory.

    python bench/make_gguf.py llama-7b /data/llama-7b.gguf

The vocabulary is made up (llama.cpp refuses a file without one): byte tokens and numbered words. The benchmarks feed
token ids. The last line on stdout is a JSON object: file, bytes, seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from noise import Noise, settle
from shapes import config_of

Row = tuple[str, tuple[int, ...]]


def tensors_of(config: dict[str, Any]) -> Iterator[Row]:
    """Names and shapes [out, in] of a Llama model as llama.cpp names them."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "token_embd.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        yield f"{block}.attn_q.weight", (hidden, hidden)
        yield f"{block}.attn_k.weight", (kv, hidden)
        yield f"{block}.attn_v.weight", (kv, hidden)
        yield f"{block}.attn_output.weight", (hidden, hidden)
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (ffn, hidden)
        yield f"{block}.ffn_up.weight", (ffn, hidden)
        yield f"{block}.ffn_down.weight", (hidden, ffn)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocab, hidden)


def describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The hyper-parameters and a made-up vocabulary."""
    heads = config["num_attention_heads"]
    writer.add_name("random weights")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_vocabulary(writer, config["vocab_size"])


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Byte tokens and numbered words."""
    kinds = gguf.TokenType
    vocabulary = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    vocabulary += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    vocabulary += [(f"\u2581t{number}", kinds.NORMAL) for number in range(len(vocabulary), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word for word, _ in vocabulary])
    writer.add_token_scores([-float(number) for number in range(len(vocabulary))])
    writer.add_token_types([kind for _, kind in vocabulary])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def make(shape: str, path: Path, seed: int) -> dict[str, Any]:
    """Write the file and say what was written."""
    began = time.monotonic()
    config = config_of(shape)
    if config["model_type"] != "llama":
        raise SystemExit(f"{shape}: only Llama shapes are made as GGUF, this is {config['model_type']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    noise = Noise(seed, "bfloat16")
    writer = gguf.GGUFWriter(draft, "llama")
    describe(writer, config)
    rows = list(tensors_of(config))
    for name, extents in rows:
        values = int(np.prod(extents))
        if len(extents) == 1:  # llama.cpp keeps norms in float32
            writer.add_tensor_info(name, extents, np.dtype(np.float32), values * 4, gguf.GGMLQuantizationType.F32)
        else:
            writer.add_tensor_info(name, extents, np.dtype(np.uint16), values * 2, gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # The writer's own method wants each tensor whole in memory; the layout after the header is just data and padding.
    assert writer.fout is not None
    file = writer.fout[0]
    for name, extents in rows:
        writer.write_padding(file, file.tell())
        if len(extents) == 1:
            file.write(np.ones(extents, dtype=np.float32).tobytes())
        else:
            for piece in noise.tensor(name, extents):
                file.write(piece)
    writer.write_padding(file, file.tell())
    file.flush()
    settle(file.fileno())
    writer.close()
    draft.rename(path)  # a file under its own name is a finished one
    return {"file": os.fspath(path), "bytes": path.stat().st_size, "seconds": time.monotonic() - began}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="llama-7b, llama-6gb, or a Llama config.json")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(make(arguments.shape, arguments.file, arguments.seed)))


if __name__ == "__main__":
    main()
