"""Inputs on ``meta`` for a forward pass that is only measured: text, and images and sounds where a model needs them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

FRAMES = 8  # frames of sound per token of text
SAMPLES = 640  # samples of sound per token of text
MELS = ("feature_projection_input_dim", "num_mel_bins", "input_feat_per_channel", "feature_size", "n_mels")


def inputs_of(model: PreTrainedModel, length: int) -> Iterator[dict[str, Any]]:
    """Inputs for one sequence of ``length`` tokens, to be tried one after the other: the text alone comes first.

    Then with an image or a sound as the configuration describes them, for models that do nothing without.
    """
    accepted = inspect.signature(model.forward).parameters
    ids = torch.zeros((1, length), dtype=torch.long, device="meta")
    text: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        text["decoder_input_ids"] = ids
    if "logits_to_keep" in accepted:
        text["logits_to_keep"] = 1  # as generate() does
    codes = getattr(model.config, "num_codebooks", 0)  # of sound: beside a token of text, or a row for each
    several = [{"input_ids": ids[..., None].expand(-1, -1, codes + 1)}, {"input_ids": ids.expand(codes, -1)}]
    for more in ({}, *(several if codes else ()), *_images(model, ids), *_sounds(model, length)):
        if all(name in accepted for name in more):
            yield {name: value for name, value in {**text, **more}.items() if name in accepted}


def _images(model: PreTrainedModel, ids: torch.Tensor) -> Iterator[dict[str, Any]]:
    config, length = model.config, ids.shape[1]
    size, patch = _found(config, ("image_size",), 224), _found(config, ("patch_size",), 16)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = _found(config, ("num_channels", "in_channels"), 3)
    image = _floats(model, 1, channels, height, width)
    yield {"pixel_values": image}
    yield {"pixel_values": image, "qformer_input_ids": ids}
    yield {"pixel_values": image[:, None], "qformer_input_ids": ids}
    yield {"pixel_values": image[:, None], "image_attention_mask": torch.ones(1, length, 1, device="meta")}
    latents = min(_found(config, ("latent_query_num",), 1), length)
    place = (torch.arange(length, device="meta") < latents)[None]
    embeds = _floats(model, 1, latents, config.get_text_config().hidden_size)
    yield {"image_embeds": embeds, "image_embeds_position_mask": place}
    yield {"bbox": _floats(model, 1, length, 4), "pixel_values": image}
    if isinstance(patch, int):
        pixels = _found(config, ("patch_embed_hidden_size",), channels * patch * patch)
        yield {"flattened_patches": _floats(model, 1, length, 2 + pixels)}  # row, column, pixels


def _sounds(model: PreTrainedModel, length: int) -> Iterator[dict[str, Any]]:
    mels = _found(model.config, MELS, 80)
    positions = _found(model.config, ("max_source_positions",), 0)
    for frames in (FRAMES * length, 2 * positions):
        if frames:
            yield {"input_features": _floats(model, 1, mels, frames)}
            yield {"input_features": _floats(model, 1, frames, mels)}
    yield {"input_values": _floats(model, 1, SAMPLES * length)}


def _floats(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=model.dtype, device="meta")


def _found(config: Any, names: tuple[str, ...], otherwise: Any) -> Any:
    """The first value of one of these names in a configuration or one that is part of it."""
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return value
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig) and (value := _found(part, names, None)) is not None:
            return value
    return otherwise
