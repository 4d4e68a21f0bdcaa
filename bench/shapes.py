"""Shapes of the checkpoints that the benchmarks make: transformers configs by name, without weights.

``opt-6gb`` and ``llama-6gb`` are no published models: they are the OPT and Llama architectures scaled to 6 GB in
bfloat16, for the small variant of the spill benchmark. ``llama-*`` exist for llama.cpp, which knows no OPT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "dtype": "bfloat16",
    }


def _llama(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def _qwen3_moe(hidden: int, layers: int, heads: int, expert: int, vocab: int) -> dict[str, Any]:
    """128 experts, 8 of them for a token, as all of Qwen3's mixtures have them."""
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "moe_intermediate_size": expert,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": _qwen3_moe(2048, 48, 32, 768, 151936),  # 61 GB
    "moe-5gb": _qwen3_moe(1024, 12, 16, 512, 32000),  # 5.0 GB
    "gpt-oss-20b": {  # 13.8 GB with its experts in mxfp4, as it is published
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "dtype": "bfloat16",
    },
    "opt-6.7b": _opt(4096, 32, 32),  # 13.3 GB
    "opt-1.3b": _opt(2048, 24, 32),  # 2.6 GB
    "opt-125m": _opt(768, 12, 12),  # 0.25 GB
    "opt-6gb": _opt(3072, 25, 24),  # 6.0 GB
    "llama-7b": _llama(4096, 11008, 32, 32),  # 13.5 GB
    "llama-6gb": _llama(3072, 8192, 25, 24),  # 6.1 GB
    "gpt-neox-20b": {  # 41 GB
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "max_position_embeddings": 2048,
        "vocab_size": 50432,
        "hidden_act": "gelu_fast",
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    },
}


def config_of(shape: str) -> dict[str, Any]:
    """The config of a built-in shape, or of a ``config.json`` (its path, or its folder's).

    Raises SystemExit with one line if there is neither.
    """
    if shape in SHAPES:
        return dict(SHAPES[shape])
    path = Path(shape)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"{shape}: neither a built-in shape ({', '.join(SHAPES)}) nor a config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    return config
