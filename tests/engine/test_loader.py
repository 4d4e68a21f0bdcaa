"""What ``outsize.load`` returns: an ordinary transformers model, with a handle and an end."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, write_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

import outsize

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), ARCHITECTURES["llama"].make_model())


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """transformers' own."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(params=["ram", "disk"])
def ours(request: pytest.FixtureRequest, folder: Path) -> Any:
    limits = {"ram": 0} if request.param == "disk" else {}
    with outsize.load(folder, no_gpu=True, weight_limits=limits, context=64) as model:
        yield model


def same(ours: Any, theirs: Any, **options: Any) -> None:
    torch.manual_seed(3)
    want = theirs.generate(PROMPT, max_new_tokens=8, **options)
    torch.manual_seed(3)
    assert torch.equal(ours.generate(PROMPT, max_new_tokens=8, **options), want)


def test_single_tensors_of_streamed_blocks_stay(folder: Path, theirs: Any) -> None:
    whole = outsize.plan(str(folder), weights="native", context=64, no_gpu=True)
    block = min(group.rest_bytes for group in whole.groups if "layers" in group.module)
    limit = whole.usage["ram"].weights_bytes - 3 * block // 2
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": limit}, context=64) as model:
        kept = sum(g.disk_bytes for g in model.outsize.plan.groups if "fills the room" in g.reason)
        assert 0 < kept < block
        same(model, theirs, do_sample=False)
        before = model.outsize.stats
        same(model, theirs, do_sample=False)
        after = model.outsize.stats
    sweeps = after.sweeps - before.sweeps
    slack = 4096 * 2 * 20 * (sweeps + 1)  # reads start and end on pages; the ring is a block ahead
    assert after.bytes_read - before.bytes_read <= (2 * block - kept) * (sweeps + 1) + slack


def test_sampling_with_a_seed(ours: Any, theirs: Any) -> None:
    same(ours, theirs, do_sample=True, temperature=1.5, top_p=0.9)


def test_prompt_lookup(ours: Any, theirs: Any) -> None:
    same(ours, theirs, do_sample=False, prompt_lookup_num_tokens=3)


def test_an_assistant_model(ours: Any, theirs: Any) -> None:
    assistant = ARCHITECTURES["llama"].make_model(seed=1)
    same(ours, theirs, do_sample=False, assistant_model=assistant)


def test_an_assistant_model_that_is_ours_too(ours: Any, theirs: Any, folder: Path) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64) as assistant:
        same(ours, theirs, do_sample=False, assistant_model=assistant)


def test_generation_twice_in_a_row(ours: Any, theirs: Any) -> None:
    same(ours, theirs, do_sample=False)
    same(ours, theirs, do_sample=False)


def test_a_static_cache(ours: Any, theirs: Any) -> None:
    same(ours, theirs, do_sample=False, cache_implementation="static", disable_compile=True)


def test_labels_hidden_states_and_attentions(ours: Any, folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ours.set_attn_implementation("eager")
    options = {"labels": PROMPT, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        have, want = ours(PROMPT, **options), theirs(PROMPT, **options)
    assert torch.equal(have.loss, want.loss)
    for ours_, theirs_ in ((have.hidden_states, want.hidden_states), (have.attentions, want.attentions)):
        assert len(ours_) == len(theirs_)
        assert all(torch.equal(a, b) for a, b in zip(ours_, theirs_, strict=True))


def test_a_forward_pass_that_follows_gradients_of_nothing(ours: Any, theirs: Any) -> None:
    """Without no_grad, as a user may well call it."""
    assert torch.equal(ours(PROMPT).logits, theirs(PROMPT).logits)


def test_embeddings_in_place_of_tokens(ours: Any, theirs: Any) -> None:
    embeddings = theirs.get_input_embeddings()(PROMPT)
    with torch.no_grad():
        assert torch.equal(ours(inputs_embeds=embeddings).logits, theirs(inputs_embeds=embeddings).logits)


def test_a_pipeline(ours: Any, theirs: Any) -> None:
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 99))])}
    base = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="</s>")

    def text(model: Any) -> str:
        pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        return str(pipe("w5 w6 w7", max_new_tokens=6, do_sample=False)[0]["generated_text"])

    assert text(ours) == text(theirs)


def test_it_is_an_ordinary_model(ours: Any, theirs: Any, folder: Path) -> None:
    assert isinstance(ours, transformers.LlamaForCausalLM)
    assert type(ours).__name__ == type(theirs).__name__
    assert type(ours).__qualname__ == type(theirs).__qualname__
    assert inspect.signature(ours.forward) == inspect.signature(theirs.forward)
    assert ours.device == torch.device("cpu")
    assert ours.dtype == theirs.dtype
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.config.name_or_path == str(folder)
    assert not ours.training
    assert [(n, p.shape, p.dtype) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in theirs.named_parameters()
    ]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert not any(p.requires_grad for p in ours.parameters())


def test_what_was_decided_and_what_happened(ours: Any) -> None:
    handle = ours.outsize
    assert handle.plan.fits
    assert handle.stats.sweeps == 0
    ours.generate(PROMPT, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert handle.stats.sweeps == 5
    assert handle.stats.bytes_read >= handle.spec.weight_bytes
    assert handle.stats.waited_s >= 0
    assert handle.stats.open_s > 0
    assert handle.stats.peak_ram_bytes > 2**20
    blocks = sum(b.stored_bytes for b in handle.spec.blocks)
    if any(group.streamed for group in handle.plan.groups):
        assert handle.stats.bytes_read >= 5 * blocks


def test_the_folder_s_generation_config_counts(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    transformers.GenerationConfig(max_new_tokens=3, eos_token_id=2).save_pretrained(tmp_path)
    with outsize.load(tmp_path, no_gpu=True) as model:
        assert model.generate(PROMPT).shape[1] <= PROMPT.shape[1] + 3


def test_two_models_at_the_same_time(folder: Path, theirs: Any, tmp_path: Path) -> None:
    other = ARCHITECTURES["t5"].make_model()
    write_checkpoint(tmp_path, other)
    with (
        outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}) as one,
        outsize.load(tmp_path, no_gpu=True, weight_limits={"ram": 0}) as two,
        torch.no_grad(),
    ):
        for _ in range(2):
            assert torch.equal(one(PROMPT).logits, theirs(PROMPT).logits)
            inputs = {"input_ids": PROMPT, "decoder_input_ids": PROMPT[:, :3]}
            assert torch.equal(two(**inputs).logits, other(**inputs).logits)


def test_an_encoder_called_by_itself(tmp_path: Path) -> None:
    theirs = ARCHITECTURES["bart"].make_model()
    write_checkpoint(tmp_path, theirs)
    with outsize.load(tmp_path, no_gpu=True, weight_limits={"ram": 0}) as ours, torch.no_grad():
        want = theirs.get_encoder()(PROMPT).last_hidden_state
        assert torch.equal(ours.get_encoder()(PROMPT).last_hidden_state, want)


def test_another_auto_class(folder: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(folder)
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, auto_class="AutoModel") as ours, torch.no_grad():
        assert type(ours).__name__ == "LlamaModel"
        assert torch.equal(ours(PROMPT).last_hidden_state, theirs(PROMPT).last_hidden_state)


def test_closed(folder: Path) -> None:
    for limits in ({}, {"ram": 0}):
        model = outsize.load(folder, no_gpu=True, weight_limits=limits)
        with model as entered:
            assert entered is model
            model(PROMPT)
        model.outsize.close()  # a second time does nothing
        with pytest.raises(outsize.OutsizeError, match="closed"):
            model(PROMPT)
        with pytest.raises(outsize.OutsizeError, match="closed"):
            model.generate(PROMPT, max_new_tokens=2)
        assert model.num_parameters() > 0


def test_closed_before_the_first_pass(folder: Path) -> None:
    outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}).outsize.close()


def test_an_error_in_the_body_is_not_swallowed(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), outsize.load(folder, no_gpu=True) as model:
        model.config.vocab_size / 0
    with pytest.raises(outsize.OutsizeError, match="closed"):
        model(PROMPT)


def test_a_model_on_disk_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    with (
        outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}) as model,
        pytest.raises(outsize.OutsizeError, match="rests on disk"),
    ):
        model.save_pretrained(tmp_path)


def test_a_model_in_ram_can_be_saved(folder: Path, theirs: Any, tmp_path: Path) -> None:
    with outsize.load(folder, no_gpu=True) as model:
        model(PROMPT)
        model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))


def test_a_weight_on_disk_is_fetched_when_other_code_computes_with_it(folder: Path, theirs: Any) -> None:
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}) as model, torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        assert weight.shape == (48, 32)
        with pytest.raises(outsize.OutsizeError, match=r"up_proj\.weight is in memory only while"):
            weight.untyped_storage()
        assert torch.equal(weight + 0, theirs.model.layers[0].mlp.up_proj.weight)
        assert torch.equal(model(PROMPT).logits, theirs(PROMPT).logits)
    with pytest.raises(outsize.OutsizeError, match=r"up_proj\.weight is gone: the model was closed"):
        model.model.layers[0].mlp.up_proj.weight.sum()


def test_a_weight_that_is_used_inside_another_layer(folder: Path, theirs: Any) -> None:
    def add(model: Any) -> Any:
        used = lambda module, args, output: output + model.model.layers[1].mlp.up_proj.weight.sum()  # noqa: E731
        return model.model.layers[0].mlp.gate_proj.register_forward_hook(used)

    hook = add(theirs)
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}) as model, torch.no_grad():
        add(model)
        try:
            assert torch.equal(model(PROMPT).logits, theirs(PROMPT).logits)
        finally:
            hook.remove()


def test_a_pass_that_fails_leaves_the_model_whole(ours: Any, theirs: Any) -> None:
    with pytest.raises(Exception), torch.no_grad():  # noqa: B017, PT011
        ours(PROMPT, position_ids=torch.zeros(3, 3, 3))
    with torch.no_grad():
        assert torch.equal(ours(PROMPT).logits, theirs(PROMPT).logits)


def test_a_token_that_the_vocabulary_lacks(ours: Any) -> None:
    with pytest.raises(IndexError):
        ours(torch.tensor([[99]]))


def broken(folder: Path, **changes: Any) -> Path:
    """A llama whose stored tensors or configuration differ: ``tensors`` by name, None for none; ``config``."""
    model = ARCHITECTURES["llama"].make_model()
    state = {**model.state_dict(), **changes.get("tensors", {})}
    whole = {name: tensor for name, tensor in state.items() if tensor is not None}
    return write_checkpoint(folder, model, state=whole, config_changes=changes.get("config"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tensors": {"model.norm.weight": None}}, outsize.DamagedModel, r"lacks 1 .*model\.norm\.weight"),
        ({"tensors": {"model.norm.weight": torch.ones(3)}}, outsize.DamagedModel, "wrong shape"),
        ({"config": {"num_hidden_layers": 5}}, outsize.DamagedModel, r"lacks 9 .*model\.layers\.4"),
        (
            {"config": {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}},
            outsize.UnsupportedModel,
            "never run",
        ),
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, outsize.UnsupportedModel, "gptq"),
    ],
)
def test_what_is_refused_before_anything_runs(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        outsize.load(broken(tmp_path, **changes), no_gpu=True)


def test_what_cannot_be_asked_for(folder: Path) -> None:
    with pytest.raises(outsize.UsageError, match="weights 'int2'"):
        outsize.load(folder, weights="int2")
    with pytest.raises(outsize.UsageError, match="no auto class"):
        outsize.load(folder, auto_class="AutoTokenizer")
    with pytest.raises(outsize.DoesNotFit):
        outsize.load(folder, no_gpu=True, ram="1MiB")
    with pytest.raises(outsize.ModelNotFound):
        outsize.load(folder / "nowhere")
