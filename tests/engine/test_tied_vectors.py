"""Embeddings that are shared by two stacks, with a vector beside the table: only tables are read by rows."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

import outsize

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 16,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def test_a_vector_beside_a_tied_table(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.T5Gemma2Config(
        encoder={"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 98},
        decoder=TEXT,
        eoi_token_index=97,
        image_token_index=98,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    transformers.T5Gemma2ForConditionalGeneration(config).save_pretrained(tmp_path)
    ids = {"input_ids": torch.arange(5, 13)[None], "decoder_input_ids": torch.arange(5, 9)[None]}
    reference = transformers.T5Gemma2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with outsize.load(tmp_path, weight_limits={"ram": "0"}, no_gpu=True) as model, torch.no_grad():
        assert torch.equal(model(**ids).logits, reference(**ids).logits)
