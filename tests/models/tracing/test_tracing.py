"""Facts about architectures, from transformers itself: parameters to the digit, units, and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, write_checkpoint

from outsize.errors import DamagedModel, UnsupportedModel, UsageError
from outsize.models import tracing
from outsize.models.files.folder import open_folder
from outsize.models.resolve import SHIPPED, shipped_spec
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.survey_cache import folder_spec
from outsize.models.tracing.units import submodels

# Configurations as published, less what changes no shape. Their parameters, tied ones once, and their blocks.
SIX: Mapping[str, tuple[int, int, Mapping[str, Any]]] = {
    "t5-3b": (
        2_851_598_336,
        48,
        {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "d_ff": 16384,
            "d_kv": 128,
            "d_model": 1024,
            "num_heads": 32,
            "num_layers": 24,
            "is_encoder_decoder": True,
            "vocab_size": 32128,
            "decoder_start_token_id": 0,
        },
    ),
    "EleutherAI/gpt-j-6B": (
        6_050_882_784,
        28,
        {
            "architectures": ["GPTJForCausalLM"],
            "model_type": "gptj",
            "n_embd": 4096,
            "n_head": 16,
            "n_layer": 28,
            "n_positions": 2048,
            "rotary_dim": 64,
            "tie_word_embeddings": False,
            "vocab_size": 50400,
        },
    ),
    "EleutherAI/gpt-neox-20b": (
        20_554_567_680,
        44,
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_attention_heads": 64,
            "num_hidden_layers": 44,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vocab_size": 50432,
        },
    ),
    "facebook/opt-30b": (
        29_974_540_288,
        48,
        {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "ffn_dim": 28672,
            "hidden_size": 7168,
            "num_attention_heads": 56,
            "num_hidden_layers": 48,
            "max_position_embeddings": 2048,
            "torch_dtype": "float16",
            "vocab_size": 50272,
            "word_embed_proj_dim": 7168,
        },
    ),
    "facebook/opt-66b": (
        65_719_701_504,
        64,
        {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "ffn_dim": 36864,
            "hidden_size": 9216,
            "num_attention_heads": 72,
            "num_hidden_layers": 64,
            "max_position_embeddings": 2048,
            "torch_dtype": "float16",
            "vocab_size": 50272,
            "word_embed_proj_dim": 9216,
        },
    ),
    "bigscience/bloom": (
        176_247_271_424,
        70,
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "n_embed": 14336,
            "n_layer": 70,
            "num_attention_heads": 112,
            "torch_dtype": "bfloat16",
            "vocab_size": 250880,
        },
    ),
}


@pytest.mark.parametrize("name", SIX)
def test_the_six_as_shipped_to_the_digit(name: str) -> None:
    parameters, blocks, config = SIX[name]
    spec = shipped_spec(name)
    assert spec is not None
    assert spec.parameters == parameters
    assert len(spec.blocks) == blocks
    assert spec.id == name
    dtype = config.get("torch_dtype", "float32")  # a configuration without one means float32
    assert spec.dtype == dtype
    assert spec.weight_bytes == parameters * getattr(torch, dtype).itemsize


@pytest.mark.parametrize("name", SIX)
def test_the_six_from_their_configurations_alone(name: str) -> None:
    parameters, _, published = SIX[name]
    config = tracing.read_config(published)
    tensors = tracing.config_tensors(config, tracing.model_class(config))
    assert sum(torch.Size(t.shape).numel() for t in tensors) == parameters


def test_a_shipped_spec_is_what_a_survey_finds() -> None:
    config = tracing.read_config(SIX["EleutherAI/gpt-j-6B"][2])
    cls = tracing.model_class(config)
    tensors = tracing.config_tensors(config, cls)
    found = tracing.survey(tracing.rehearse(config, cls, tensors, lambda a, b: True), "EleutherAI/gpt-j-6B")
    shipped = shipped_spec("EleutherAI/gpt-j-6B")
    assert shipped is not None
    if cls._supports_sdpa:  # since transformers 5.24: no matrix of attention weights, and one buffer instead of 28
        assert found.workspace.bytes_for(1, 2048) < shipped.workspace.bytes_for(1, 2048)
        assert found.buffer_bytes < shipped.buffer_bytes
        leaner = ("workspace", "resting", "buffer_bytes")
        found = replace(found, **{name: getattr(shipped, name) for name in leaner})
    assert replace(found, origins={}) == shipped


def test_every_shipped_name_is_there() -> None:
    assert all(shipped_spec(name) for name in SHIPPED)
    assert shipped_spec("EleutherAI/GPT-J-6b") is not None
    assert shipped_spec("someone/else") is None


def survey(folder: Path, auto_class: str | None = None) -> ModelSpec:
    return folder_spec(open_folder(folder), auto_class)


def test_units(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "llama", ARCHITECTURES["llama"].make_model())
    spec = survey(tmp_path / "llama")
    assert [(m.name, m.role) for m in spec.modules] == [
        ("model.embed_tokens", "embedding"),
        *((f"model.layers.{i}", "block") for i in range(4)),
        ("model.norm", "other"),
        ("lm_head", "head"),
    ]
    assert spec.max_positions == 128
    assert spec.vocab_size == 99
    assert not spec.encoder_decoder
    assert spec.architecture == "LlamaForCausalLM"
    assert spec.buffer_bytes > 0  # rotary tables


def test_a_tied_weight_belongs_to_the_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ARCHITECTURES["llama-tied"].make_model())
    spec = survey(tmp_path)
    assert spec.modules[-1].role == "head"
    assert spec.modules[-1].tied == ("model.embed_tokens",)
    assert "model.embed_tokens" not in {m.name for m in spec.modules}


def test_a_model_without_a_list_of_what_must_not_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_no_split_modules", [])
    assert [b.name for b in survey(tmp_path).blocks] == [f"model.layers.{i}" for i in range(4)]


def config(**changes: Any) -> Any:
    return tracing.read_config({"model_type": "llama", **ARCHITECTURES["llama"].config, **changes})


@pytest.mark.parametrize("model_type", ["my_own_model", None, ["llama"]])
def test_a_model_type_that_transformers_does_not_know(model_type: Any) -> None:
    with pytest.raises(UnsupportedModel, match="never run"):
        tracing.read_config({"model_type": model_type, "auto_map": {"AutoModel": "modeling.Evil"}})


@pytest.mark.parametrize("quantised", [{"quant_method": "gptq", "bits": 4}, {"bits": 4}, "gptq"])
def test_a_checkpoint_that_is_quantised_already(quantised: Any) -> None:
    with pytest.raises(UnsupportedModel, match="quantised by"):
        config(quantization_config=quantised)


def test_a_configuration_of_nonsense() -> None:
    with pytest.raises(DamagedModel, match="does not describe a llama model"):
        config(hidden_size="wide")


def test_layers_without_end() -> None:
    with pytest.raises(DamagedModel, match="num_hidden_layers is 1000000000; need at most"):
        config(num_hidden_layers=10**9)
    with pytest.raises(DamagedModel, match="n_layer is 1000000000"):
        config(text_config={"n_layer": 10**9})


def test_a_model_that_cannot_be_built(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_act": "no such function"}))
    with pytest.raises(DamagedModel, match=r"cannot build a LlamaForCausalLM .* compare config\.json"):
        survey(folder)


def test_stacks_are_models_inside_the_model() -> None:
    model = ARCHITECTURES["t5"].make_model()
    assert list(submodels(model)) == [model, model.encoder, model.decoder]


def test_the_class_to_build() -> None:
    assert tracing.model_class(config()) is transformers.LlamaForCausalLM
    assert tracing.model_class(config(architectures=["NoSuchThing"])) is transformers.LlamaForCausalLM
    assert tracing.model_class(config(architectures=["LlamaModel"])) is transformers.LlamaModel
    assert tracing.model_class(config(), "AutoModel") is transformers.LlamaModel
    t5 = tracing.read_config({"model_type": "t5"})
    assert tracing.model_class(t5) is transformers.T5ForConditionalGeneration
    funnel = tracing.read_config({"model_type": "funnel"})
    assert tracing.model_class(funnel, "AutoModel") is transformers.FunnelModel  # one of several
    with pytest.raises(UnsupportedModel, match="name an auto_class"):
        tracing.model_class(tracing.read_config({"model_type": "vit"}))
    with pytest.raises(UsageError, match="no auto class 'AutoTokenizer'"):
        tracing.model_class(config(), "AutoTokenizer")
    with pytest.raises(UsageError, match="no llama model"):
        tracing.model_class(config(), "AutoModelForSeq2SeqLM")


def rehearse(tensors: Mapping[str, torch.Tensor], of: Any) -> tracing.Skeleton:
    stored = [
        StoredTensor(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), "model.safetensors", i, t.nbytes)
        for i, (name, t) in enumerate(tensors.items())
    ]
    return tracing.rehearse(of.config, type(of), stored, lambda a, b: True)


def test_a_missing_weight_is_never_made_up() -> None:
    model = ARCHITECTURES["llama"].make_model()
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        DamagedModel, match=r"lacks 1 of the weights of LlamaForCausalLM: model\.layers\.1\.mlp\.up_proj"
    ):
        rehearse(state, model)


def test_a_missing_weight_that_is_tied_to_one_that_is_there() -> None:
    model = ARCHITECTURES["t5"].make_model()
    state = {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    rehearse(state, model)
    del state["shared.weight"]
    with pytest.raises(DamagedModel, match="lacks 4 of the weights of T5"):
        rehearse(state, model)


def test_names_that_transformers_changes_for_one_class_alone() -> None:
    """GPT-NeoX' head, as published: its renaming is of the class, not of the model type."""
    model = ARCHITECTURES["gpt_neox"].make_model()
    state = dict(model.state_dict())
    state["embed_out.weight"] = state.pop("lm_head.weight")
    skeleton = rehearse(state, model)
    head = next(unit for unit in skeleton.units if unit.role == "head")
    assert [weight.name for weight in head.weights] == ["lm_head.weight"]


def test_a_weight_of_another_shape() -> None:
    model = ARCHITECTURES["llama"].make_model()
    state = {**model.state_dict(), "model.norm.weight": torch.ones(31)}
    with pytest.raises(DamagedModel, match=r"model\.norm\.weight has the wrong shape; need \(32,\), have \(31,\)"):
        rehearse(state, model)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    return transformers.MixtralForCausalLM(config).to(torch.bfloat16)


def experts_apart(model: Any) -> dict[str, torch.Tensor]:
    """A Mixtral's tensors as published: each expert's matrices by themselves."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("mlp.experts.gate_up_proj"):
            stem = name.replace("mlp.experts.gate_up_proj", "block_sparse_moe.experts")
            for expert, both in enumerate(tensor):
                state[f"{stem}.{expert}.w1.weight"], state[f"{stem}.{expert}.w3.weight"] = both.chunk(2)
        elif name.endswith("mlp.experts.down_proj"):
            stem = name.replace("mlp.experts.down_proj", "block_sparse_moe.experts")
            state |= {f"{stem}.{expert}.w2.weight": one for expert, one in enumerate(tensor)}
        else:
            state[name.replace("mlp.gate", "block_sparse_moe.gate")] = tensor
    return state


def test_a_fused_parameter_is_made_from_many_tensors_expert_by_expert() -> None:
    model = mixtral()
    spec = tracing.survey(rehearse(experts_apart(model), model), "mixtral")
    origin = spec.origins["model.layers.0.mlp.experts.gate_up_proj"]
    assert not origin.copies
    assert origin.names == tuple(
        f"model.layers.0.block_sparse_moe.experts.{expert}.{which}.weight"
        for expert in range(3)
        for which in ("w1", "w3")
    )
    assert spec.parameters == model.num_parameters()


def test_a_parameter_made_from_several_data_types() -> None:
    model = mixtral()
    state = experts_apart(model)
    state["model.layers.0.block_sparse_moe.experts.1.w1.weight"] = torch.zeros(16, 32)
    with pytest.raises(UnsupportedModel, match="gate_up_proj is made from tensors of several data types"):
        tracing.survey(rehearse(state, model), "mixtral")


def test_a_parameter_that_cannot_be_put_together() -> None:
    model = mixtral()
    state = experts_apart(model)
    state["model.layers.0.block_sparse_moe.experts.1.w1.weight"] = torch.zeros(16, 31, dtype=torch.bfloat16)
    with pytest.raises(DamagedModel, match="gate_up_proj cannot be put together"):
        rehearse(state, model)


def test_what_a_class_makes_itself_may_be_missing() -> None:
    """Marian's position tables are sines, and older checkpoints do not hold them."""
    model = ARCHITECTURES["marian"].make_model()
    state = {k: v for k, v in model.state_dict().items() if "embed_positions" not in k and k != "final_logits_bias"}
    skeleton = rehearse(state, model)
    made = {name for name, buffer in skeleton.model.named_buffers() if not buffer.is_meta}
    assert {"final_logits_bias", "model.encoder.embed_positions.weight"} <= made
    assert not any("embed_positions" in w.name for unit in skeleton.units for w in unit.weights)
    fresh = type(model)(model.config)
    have = skeleton.model.model.encoder.embed_positions.weight
    assert torch.equal(have, fresh.model.encoder.embed_positions.weight)


def test_data_types_that_are_no_weights_are_left_out() -> None:
    model = ARCHITECTURES["llama"].make_model()
    stored = [StoredTensor("x", "complex64", (1,), "f", 0, 8)]
    with pytest.raises(DamagedModel, match="lacks"):
        tracing.rehearse(model.config, type(model), stored, lambda a, b: True)


def test_units_in_the_order_of_a_spec(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ARCHITECTURES["gpt2"].make_model())
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 7}')
    folder = open_folder(tmp_path)
    config = tracing.read_config(folder.config)
    skeleton = tracing.rehearse(config, tracing.model_class(config), folder.tensors, lambda a, b: True, tmp_path)
    spec = survey(tmp_path)
    assert [u.name for u in tracing.in_order(skeleton, spec).units] == [m.name for m in spec.modules]
    assert skeleton.model.generation_config.max_new_tokens == 7
    assert skeleton.model.config.name_or_path == str(tmp_path)


def test_a_spec_of_another_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "opt", ARCHITECTURES["opt"].make_model())
    spec = survey(tmp_path / "opt")
    model = ARCHITECTURES["llama"].make_model()
    with pytest.raises(DamagedModel, match="not those of the spec"):
        tracing.in_order(rehearse(model.state_dict(), model), spec)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    model = ARCHITECTURES["opt"].make_model()
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "0")
    rehearse(model.state_dict(), model)
    assert os.environ["HF_DEACTIVATE_ASYNC_LOAD"] == "0"
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD")
    transformers.utils.logging.disable_progress_bar()
    rehearse(model.state_dict(), model)
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    assert not transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()


def test_a_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **ARCHITECTURES["llama"].config}))
    spec = survey(tmp_path)
    assert spec.dtype == "float32"
    assert spec.parameters > 0


def test_a_model_that_does_not_say_where_its_embeddings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ARCHITECTURES["llama"].make_model()
    folder = open_folder(write_checkpoint(tmp_path, model))

    def unknown(self: Any) -> Any:
        raise NotImplementedError("`get_input_embeddings` not auto-handled")

    monkeypatch.setattr(type(model), "get_input_embeddings", unknown)
    config = tracing.read_config(folder.config)
    skeleton = tracing.rehearse(config, type(model), folder.tensors, lambda a, b: True)
    assert [unit.name for unit in skeleton.units if unit.role == "embedding"] == ["model.embed_tokens"]


def test_what_a_first_forward_pass_scales_in_place_is_scaled_at_the_load(tmp_path: Path) -> None:
    small = {"vocab_size": 99, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3}
    config = transformers.RwkvConfig(**small, context_length=64, rescale_every=1)
    folder = write_checkpoint(tmp_path, transformers.RwkvForCausalLM(config).eval())
    spec = survey(folder)
    made = {name for name, origin in spec.origins.items() if origin.copies}
    assert {"rwkv.blocks.1.attention.output.weight", "rwkv.blocks.2.feed_forward.value.weight"} <= made
