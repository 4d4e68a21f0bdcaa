"""Small checkpoints of random weights: many architectures, as the hub's folders hold them, old layouts included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

Format = Literal["safetensors", "sharded safetensors", "bin", "sharded bin"]
FORMATS: tuple[Format, ...] = ("safetensors", "sharded safetensors", "bin", "sharded bin")

VOCAB = 99
TOKENS: Mapping[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS: Mapping[str, Any] = {**LLAMA, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: Mapping[str, Any] = {
    **LLAMA,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
BART: Mapping[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A small configuration. ``auto``: the auto class where it is not the causal or encoder-decoder one."""

    model_type: str
    config: Mapping[str, Any]
    auto: str | None = None
    dtype: torch.dtype = torch.float32
    prefix: str = ""  # the base model's, which older checkpoints lack
    ignored: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # stored, and of no use to the model

    @property
    def encoder_decoder(self) -> bool:
        """Whether it has two stacks."""
        return self.make_config().is_encoder_decoder

    def make_config(self) -> Any:
        """The configuration, as transformers has it."""
        return transformers.AutoConfig.for_model(self.model_type, **{**TOKENS, **self.config})

    def make_model(self, seed: int = 0) -> Any:
        """A model whose every weight is random: no bias is zero and no norm is one."""
        config = self.make_config()
        config.dtype = self.dtype
        auto = self.auto or ("AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM")
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(config, dtype=self.dtype).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, dtype=torch.float32).mul_(0.1).to(weight.dtype))
        return model


def _layers(shape: tuple[int, ...], *names: str, count: int = 4) -> dict[str, tuple[int, ...]]:
    return {name.format(i): shape for i in range(count) for name in names}


ARCHITECTURES: Mapping[str, Architecture] = {
    "t5": Architecture(
        "t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "t5-gated": Architecture(
        "t5",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
    "gptj": Architecture(
        "gptj",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 4, "tie_word_embeddings": False},
        prefix="transformer.",
        ignored=_layers((1, 1, 8, 8), "h.{}.attn.bias") | _layers((), "h.{}.attn.masked_bias"),
    ),
    "gpt_neox": Architecture(
        "gpt_neox",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "rotary_pct": 0.25,
        },
        dtype=torch.float16,
        prefix="gpt_neox.",
        ignored=_layers((1, 1, 8, 8), "layers.{}.attention.bias")
        | _layers((2,), "layers.{}.attention.rotary_emb.inv_freq"),
    ),
    "gpt_neox-sequential": Architecture(
        "gpt_neox",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "opt": Architecture(
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
        dtype=torch.float16,
        prefix="model.",
    ),
    "opt-350m": Architecture(
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
        prefix="model.",
    ),
    "bloom": Architecture(
        "bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4}, dtype=torch.bfloat16, prefix="transformer."
    ),
    "gpt2": Architecture(
        "gpt2",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
        prefix="transformer.",
        ignored=_layers((1, 1, 8, 8), "h.{}.attn.bias") | _layers((), "h.{}.attn.masked_bias"),
    ),
    "gpt_neo": Architecture(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
        prefix="transformer.",
    ),
    "gpt_bigcode": Architecture("gpt_bigcode", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}),
    "codegen": Architecture(
        "codegen", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "n_ctx": 128, "rotary_dim": 4}
    ),
    "llama": Architecture("llama", LLAMA, ignored=_layers((4,), "model.layers.{}.self_attn.rotary_emb.inv_freq")),
    "llama-tied": Architecture(
        "llama",
        {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        dtype=torch.bfloat16,
    ),
    "mistral": Architecture("mistral", {**LLAMA, "sliding_window": 6}, dtype=torch.bfloat16),
    "qwen2": Architecture("qwen2", LLAMA, dtype=torch.bfloat16, prefix="model."),
    "qwen3": Architecture("qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": Architecture("gemma2", {**LLAMA, "head_dim": 8, "sliding_window": 6}),
    "gemma3_text": Architecture(
        "gemma3_text", {**LLAMA, "head_dim": 8, "sliding_window": 6, "sliding_window_pattern": 2}, dtype=torch.bfloat16
    ),
    "phi": Architecture("phi", {**LLAMA, "num_key_value_heads": 4}),
    "phi3": Architecture("phi3", LLAMA),
    "falcon": Architecture(
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "multi_query": True, "alibi": False},
        prefix="transformer.",
    ),
    "falcon-alibi": Architecture(
        "falcon",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "multi_query": False,
            "alibi": True,
            "bias": True,
            "parallel_attn": False,
        },
        dtype=torch.bfloat16,
    ),
    "mpt": Architecture("mpt", {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128, "use_cache": True}),
    "stablelm": Architecture("stablelm", {**LLAMA, "use_qkv_bias": True}),
    "starcoder2": Architecture("starcoder2", {**LLAMA, "sliding_window": None}),
    "olmo2": Architecture("olmo2", LLAMA),
    "cohere": Architecture("cohere", LLAMA),
    "persimmon": Architecture("persimmon", {**LLAMA, "num_key_value_heads": 4}),
    "granite": Architecture("granite", {**LLAMA, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "glm": Architecture("glm", {**LLAMA, "head_dim": 8}),
    "xglm": Architecture(
        "xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 4, "attention_heads": 4, "max_position_embeddings": 128}
    ),
    "biogpt": Architecture(
        "biogpt",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    # Mixtures of experts: stored one by one or fused, transposed, with biases, beside shared experts, in some layers.
    "mixtral": Architecture("mixtral", {**LLAMA, "num_local_experts": 4}),
    "qwen2_moe": Architecture("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 24}, dtype=torch.bfloat16),
    "qwen3_moe": Architecture("qwen3_moe", {**EXPERTS, "head_dim": 8}, dtype=torch.bfloat16),
    "deepseek_v2": Architecture("deepseek_v2", {**LATENT, "topk_method": "greedy"}),
    "deepseek_v3": Architecture("deepseek_v3", LATENT, dtype=torch.bfloat16),
    "gpt_oss": Architecture(
        "gpt_oss",
        {**LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
        dtype=torch.bfloat16,
    ),
    "glm4_moe": Architecture("glm4_moe", {**EXPERTS, "n_routed_experts": 5, "first_k_dense_replace": 1, "head_dim": 8}),
    "olmoe": Architecture("olmoe", {**LLAMA, "num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 4.0}),
    "phimoe": Architecture("phimoe", {**LLAMA, "num_local_experts": 4}, dtype=torch.bfloat16),
    "granitemoe": Architecture("granitemoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bart": Architecture("bart", BART),
    "mbart": Architecture("mbart", {**BART, "scale_embedding": True}, dtype=torch.bfloat16),
    "pegasus": Architecture("pegasus", BART),
    "marian": Architecture("marian", {**BART, "share_encoder_decoder_embeddings": True}),
    "bert": Architecture(
        "bert",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
        auto="AutoModel",
    ),
}


def published(model: Any) -> Mapping[str, torch.Tensor]:
    """The weights under the names of published checkpoints, each in memory of its own."""
    state: dict[str, torch.Tensor] = model.state_dict()
    if not any(".experts." in name for name in state):
        return state
    return {name: tensor.clone() for name, tensor in revert_weight_conversion(model, state).items()}


def write_checkpoint(
    folder: Path,
    model: Any,
    form: Format = "safetensors",
    *,
    without_prefix: str = "",
    ignored: Mapping[str, tuple[int, ...]] | None = None,
    config_changes: Mapping[str, Any] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes ``model`` (or ``state`` in its place) to a folder as transformers and the hub do; tied weights once.

    Experts under the names that they are published with: most of them one by one, where transformers has them fused.

    ``without_prefix``: taken off the names, as in older checkpoints. ``ignored``: further tensors of random bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps({**config, **(config_changes or {})}))
    tensors = {
        name.removeprefix(without_prefix): tensor.detach().contiguous()
        for name, tensor in (published(model) if state is None else state).items()
        if name not in model.all_tied_weights_keys
    }
    for name, shape in (ignored or {}).items():
        tensors[name] = torch.rand(shape)
    safe = form.endswith("safetensors")
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")

    def write(part: dict[str, torch.Tensor], name: str) -> None:
        if safe:
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)

    if not form.startswith("sharded"):
        write(tensors, f"{stem}.{suffix}")
        return folder
    names = list(tensors)
    placed: dict[str, str] = {}
    for shard in range(3):
        name = f"{stem}-{shard + 1:05}-of-00003.{suffix}"
        part = names[shard::3]  # a block's tensors lie in all three
        write({n: tensors[n] for n in part}, name)
        placed.update(dict.fromkeys(part, name))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder
