"""Caches with room hold what transformers' own hold, in one place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import outsize
from outsize.engine.kv_cache import STEP, RoomLayer, give_room
from outsize.models.tracing.cache_argument import cache_in


def states(tokens: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of two heads, of different width."""
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 6)


def same(ours: RoomLayer, theirs: DynamicLayer, tokens: int, rows: int = 2) -> None:
    """Adds the same to both, and compares all that is there."""
    keys, values = states(tokens, rows)
    for mine, plain in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
        assert torch.equal(mine, plain)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)


@pytest.fixture
def pair() -> tuple[RoomLayer, DynamicLayer]:
    ours, theirs = RoomLayer(12), DynamicLayer()
    same(ours, theirs, 5)
    return ours, theirs


def test_new_tokens_stand_behind_the_old_ones_which_stay(pair: tuple[RoomLayer, DynamicLayer]) -> None:
    ours, theirs = pair
    where = ours.keys.data_ptr(), ours.values.data_ptr()
    for tokens in (1, 1, 3, 2):
        same(ours, theirs, tokens)
    assert (ours.keys.data_ptr(), ours.values.data_ptr()) == where
    assert ours.keys.untyped_storage().nbytes() == 2 * 2 * 12 * 4 * 4


def test_more_than_there_is_room_for(pair: tuple[RoomLayer, DynamicLayer]) -> None:
    ours, theirs = pair
    same(ours, theirs, 10)
    assert ours.keys.untyped_storage().nbytes() == 2 * 2 * STEP * 4 * 4
    same(ours, theirs, STEP)
    same(ours, theirs, 1)


def test_beams_that_change_places_and_sequences_that_leave(pair: tuple[RoomLayer, DynamicLayer]) -> None:
    ours, theirs = pair
    for layer in pair:
        layer.reorder_cache(torch.tensor([1, 1]))
    same(ours, theirs, 2)
    for layer in pair:
        layer.batch_select_indices(torch.tensor([1]))
    same(ours, theirs, 1, rows=1)
    for layer in pair:
        layer.batch_repeat_interleave(3)
    same(ours, theirs, 1, rows=3)


def test_tokens_that_are_taken_back(pair: tuple[RoomLayer, DynamicLayer]) -> None:
    ours, theirs = pair
    where = ours.keys.data_ptr()
    for layer in pair:
        layer.crop(-2)
    same(ours, theirs, 4)
    assert ours.keys.data_ptr() == where
    for layer in pair:
        layer.reset()
    same(ours, theirs, 3)


def test_a_copy_is_a_copy(pair: tuple[RoomLayer, DynamicLayer]) -> None:
    ours, theirs = pair
    other, kept = copy.deepcopy(ours), ours.keys.clone()
    same(other, copy.deepcopy(theirs), 3)
    assert torch.equal(ours.keys, kept)
    same(ours, theirs, 2)
    assert other.keys.shape[-2] == 8


def test_who_gets_room() -> None:
    lazy, filled = DynamicCache(), DynamicCache()
    filled.update(*states(3), 0)
    give_room(lazy, 7)
    give_room(filled, 7)
    for cache in (lazy, filled):
        cache.update(*states(1), 1)
    assert [type(layer) for layer in lazy.layers] == [RoomLayer, RoomLayer]
    assert [type(layer) for layer in filled.layers] == [DynamicLayer, RoomLayer]
    gemma = DynamicCache(config=ARCHITECTURES["gemma2"].make_model().config)
    give_room(gemma, 7)
    assert {type(layer) for layer in gemma.layers} == {RoomLayer, DynamicSlidingWindowLayer}
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    give_room(both, 7)
    for cache in (both.self_attention_cache, both.cross_attention_cache):
        cache.update(*states(2), 0)
    assert type(both.self_attention_cache.layers[0]) is RoomLayer
    assert type(both.cross_attention_cache.layers[0]) is DynamicLayer
    give_room(None, 7)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 32), (2, 16)])
def test_a_generation_takes_the_room_that_was_planned(tmp_path: Path, rows: int, tokens: int) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    prompt = torch.tensor([[5, 6, 7]] * rows)
    with outsize.load(folder, no_gpu=True, context=32) as model:
        made: Any = model.generate(prompt, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        layers = cache_in(made).layers
        assert {type(layer) for layer in layers} == {RoomLayer}
        room = sum(s.untyped_storage().nbytes() for layer in layers for s in (layer.keys, layer.values))
        assert room == rows * tokens * model.outsize.spec.kv_bytes_per_token
        beams = model.generate(prompt, max_new_tokens=6, num_beams=3, do_sample=False)
    plain = ARCHITECTURES["llama"].make_model()
    assert type(plain).from_pretrained(folder).generate(prompt, max_new_tokens=6, num_beams=3).equal(beams)
