from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, FORMATS, write_checkpoint
from safetensors.torch import load_file

import outsize
from outsize.convert import checksums, chunks, recipe
from outsize.convert import convert as converting
from outsize.convert.checksums import verify
from outsize.convert.convert import convert
from outsize.convert.recipe import make_recipe
from outsize.convert.shard_writer import ShardWriter
from outsize.convert.source import FolderSource
from outsize.errors import (
    DamagedModel,
    DoesNotFit,
    ModelChanged,
    OutsizeError,
    UnsupportedModel,
    UntrustedModel,
    UsageError,
)
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and pieces small enough for a small model to have many."""
    monkeypatch.setattr(recipe, "LIMIT", 30_000)
    monkeypatch.setattr(recipe, "LEAST", 20_000)
    monkeypatch.setattr(chunks, "PIECE", 1000)


def checkpoint(folder: Path, name: str = "llama", form: Any = "sharded safetensors", **more: Any) -> Path:
    arch = ARCHITECTURES[name]
    return write_checkpoint(folder, arch.make_model(), form, without_prefix=arch.prefix, ignored=arch.ignored, **more)


def converted(
    source: Path, out: Path, weights: str = "int4", progress: Callable[[int, int], None] | None = None
) -> Path:
    folder = open_folder(source)
    convert(FolderSource(folder), folder.tensors, folder_spec(folder), weights, out, progress or (lambda a, b: None))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


CASES = [
    ("llama", "sharded safetensors", "int4"),
    ("llama-tied", "safetensors", "int8"),
    ("gptj", "sharded bin", "int4"),
    ("opt-350m", "bin", "int8"),
    ("bloom", "sharded bin", "int4"),
    ("gpt_neox", "safetensors", "int8"),
    ("t5", "sharded safetensors", "int4"),
    ("t5-gated", "bin", "int8"),
    ("bart", "sharded safetensors", "int8"),
]


def package_load(auto: Any, folder: Path, model_type: str) -> Any:
    """As the compressed-tensors package loads it; T5's own initialisation cannot do without plain weights."""
    if model_type != "t5":
        return auto.from_pretrained(folder, dtype="auto")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    with pytest.warns(UserWarning, match="already has a"):
        return auto.from_pretrained(folder, dtype="auto", quantization_config=config)


@pytest.mark.parametrize(("name", "form", "weights"), CASES)
def test_transformers_and_outsize_load_it_alike(
    name: str, form: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real compressed-tensors package, from every format, with and without prefix, tied, encoder-decoder."""
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    monkeypatch.setattr(recipe, "LIMIT", 50_000)
    source = checkpoint(tmp_path / "source", name, form)
    out = converted(source, tmp_path / "out", weights)
    assert verify(out).made.weights == weights
    arch = ARCHITECTURES[name]
    auto = getattr(transformers, "AutoModelForSeq2SeqLM" if arch.encoder_decoder else "AutoModelForCausalLM")
    ids = torch.arange(5, 13)[None]
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids[:, :3]} if arch.encoder_decoder else {})}
    with torch.no_grad():
        native = auto.from_pretrained(source, dtype="auto")(**inputs).logits.float()
        theirs = package_load(auto, out, arch.model_type)(**inputs).logits.float()
        with outsize.load(out, no_gpu=True, context=32) as model:
            ours = model(**inputs).logits.float()
    size = native.abs().max()
    assert (ours - theirs).abs().max() <= 0.01 * size
    assert (theirs - native).abs().max() <= (0.6 if weights == "int4" else 0.05) * size
    assert not torch.equal(theirs, native)


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "opt-350m", "sharded bin")
    (source / "tokenizer.json").write_text("{}")
    (source / "merges.txt").write_text("a b")
    (source / "modeling_odd.py").write_text("raise SystemExit")
    (source / "flax_model.msgpack.index.json").write_text("{}")
    (source / "more").mkdir()
    out = converted(source, tmp_path / "out")
    found = contents(out)
    assert set(found) == {"config.json", "tokenizer.json", "merges.txt", "model.safetensors", checksums.NAME}
    config = json.loads(found["config.json"])
    quantised = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert "lm_head" in quantised["ignore"]
    assert "model.decoder.project_in" in quantised["ignore"]
    assert "model.decoder.layers.0.fc2" in quantised["ignore"]  # 48 inputs: no group divides them
    assert quantised["config_groups"]["group_0"]["weights"]["group_size"] == 32
    before, after = torch.load(source / "pytorch_model-00001-of-00003.bin", weights_only=True), stored(out)
    for name, tensor in before.items():
        assert name not in after or torch.equal(after[name], tensor)
    packed = [name for name in after if name.endswith("_packed")]
    assert len(packed) == 4 * 5
    assert all(after[name.replace("_packed", "_shape")].tolist()[1] == 32 for name in packed)


def test_groups_of_several_sizes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    source = write_checkpoint(tmp_path / "source", transformers.LlamaForCausalLM(config))
    out = converted(source, tmp_path / "out")
    groups = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["group_size"] for group in groups.values()] == [64, 32]
    assert groups["group_1"]["targets"] == ["model.layers.0.mlp.down_proj"]
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out)(ids).logits
        with outsize.load(out, no_gpu=True, context=32) as model:
            torch.testing.assert_close(model(ids).logits, theirs)


def test_the_shards_obey_the_recipe(tmp_path: Path, small: None) -> None:
    source = open_folder(checkpoint(tmp_path / "source", "llama-tied"))
    planned = make_recipe(source.tensors, folder_spec(source), "int4")
    out = converted(tmp_path / "source", tmp_path / "out")
    assert len(planned.shards) > 1
    for shard in planned.shards:
        raw = (out / shard.name).read_bytes()
        assert len(raw) == shard.nbytes
        assert raw.startswith(shard.header)
        for tensor in shard.placed:
            width = recipe.dtype_bytes(tensor.dtype)
            assert tensor.offset % (recipe.ALIGNMENT if tensor.nbytes % recipe.ALIGNMENT == 0 else width) == 0
    assert open_folder(out).format == "safetensors"  # its index fits, and every byte of every shard is accounted for


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes_again_whatever_the_format(form: Any, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "opt", form)
    first, second = converted(source, tmp_path / "first"), converted(source, tmp_path / "second")
    assert contents(first) == contents(second)
    before = (first / "model.safetensors").stat()
    converted(source, first)  # there already
    assert (first / "model.safetensors").stat() == before


KILLED = """
import os, random, signal, sys
from pathlib import Path
from outsize.models.tracing.linear_layers import linear_modules
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec
from outsize.kernels import quantize
from outsize.convert import chunks, convert as converting, recipe
from outsize.convert.source import FolderSource

recipe.LIMIT, recipe.LEAST, chunks.PIECE = 30_000, 20_000, 1000
source, out, moments = sys.argv[1], sys.argv[2], int(sys.argv[3])
folder = open_folder(source)
spec = folder_spec(folder)
linear_modules(folder.config)  # imported once, before there are children

def run(stop):
    calls = 0
    def counted(real):
        def call(*args, **keywords):
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)
        return call
    for name in ("pwrite", "fsync", "fdatasync", "rename", "replace", "unlink", "open"):
        setattr(os, name, counted(getattr(os, name)))
    folder = open_folder(source)
    converting.convert(FolderSource(folder), folder.tensors, spec, "int4", Path(out))
    return calls

killed = 0
random.seed(7)
for _ in range(moments):
    child = os.fork()
    if child == 0:
        run(random.randrange(1, 120))
        os._exit(0)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    if Path(out).exists():
        break
run(0)
print(killed)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, small: None) -> None:
    source = checkpoint(tmp_path / "source", "gptj", "sharded bin")
    whole = contents(converted(source, tmp_path / "whole"))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(source), str(tmp_path / "out"), "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert contents(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


class Stopped(Exception):
    pass


def stop_at(share: float) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise Stopped

    return progress


def test_finished_shards_are_checked_and_kept(tmp_path: Path, small: None) -> None:
    source = checkpoint(tmp_path / "source")
    whole = contents(converted(source, tmp_path / "whole"))
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(Stopped):
        converted(source, out, progress=stop_at(0.7))
    assert not out.exists()
    shards = sorted(partial.glob("*.safetensors"))
    assert len(shards) >= 2
    spoiled = bytearray(shards[0].read_bytes())
    spoiled[-5] ^= 1
    shards[0].write_bytes(spoiled)
    kept = shards[1].stat()
    steps: list[int] = []
    converted(source, out, progress=lambda done, total: steps.append(done))
    assert contents(out) == whole
    assert (out / shards[1].name).stat().st_ino == kept.st_ino
    assert (out / shards[1].name).stat().st_mtime_ns == kept.st_mtime_ns
    assert steps[0] > 0


def test_another_source_or_format_or_version_begins_anew(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = checkpoint(tmp_path / "source"), tmp_path / "out"
    int8 = contents(converted(source, tmp_path / "int8", "int8"))
    with pytest.raises(Stopped):
        converted(source, out, "int4", stop_at(0.7))
    assert contents(converted(source, out, "int8")) == int8
    shutil.rmtree(out)
    with pytest.raises(Stopped):
        converted(source, out, "int8", stop_at(0.7))
    other = checkpoint(tmp_path / "other", config_changes={"rope_theta": 7})
    mixed = contents(converted(other, out, "int8"))
    assert mixed == contents(converted(other, tmp_path / "alone", "int8"))
    shutil.rmtree(out)
    with pytest.raises(Stopped):
        converted(source, out, "int8", stop_at(0.7))
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial").glob("*.safetensors")}
    monkeypatch.setattr(converting, "CONVERTER", 99)
    converted(source, out, "int8")
    assert kept
    assert json.loads((out / checksums.NAME).read_text())["made"]["converter"] == 99


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    out = converted(source, tmp_path / "out", "int8")
    with pytest.raises(UsageError, match="holds int8 weights of source"):
        converted(source, out, "int4")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        converted(source, tmp_path / "mine")
    (tmp_path / "file").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        converted(source, tmp_path / "file")
    (tmp_path / "work.partial").mkdir()
    (tmp_path / "work.partial" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="no conversion of ours"):
        converted(source, tmp_path / "work")
    assert (tmp_path / "work.partial" / "letter").exists()
    (tmp_path / "empty").mkdir()
    converted(source, tmp_path / "empty")


def test_two_at_once(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutsizeError, match="another process is converting"):
        converted(source, tmp_path / "out")
    os.close(descriptor)
    converted(source, tmp_path / "out")


def test_too_small_a_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DoesNotFit, match=r"need 0\.0.* have 1000 B") as caught:
            converted(source, tmp_path / "out")
    assert caught.value.shortfall_bytes > 0
    converted(source, tmp_path / "out")


@pytest.mark.parametrize("failing", ["pwrite", "fsync", "fdatasync"])
def test_a_full_disk_midway_is_one_error_and_can_go_on(
    failing: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = checkpoint(tmp_path / "source"), tmp_path / "out"
    whole = contents(converted(source, tmp_path / "whole"))
    real, calls = getattr(os, failing), 0

    def full(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > {"pwrite": 200, "fsync": 3, "fdatasync": 1}[failing]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(DoesNotFit, match=r"is full.*finished shards are kept"):
            converted(source, out)
    assert not out.exists()
    assert list((tmp_path / "out.partial").glob("*.part")) == []
    assert contents(converted(source, out)) == whole


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "source")

    def refused(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ShardWriter, "_write", refused)
    with pytest.raises(OutsizeError, match="cannot be written"):
        converted(source, tmp_path / "out")


def test_a_source_that_changes_meanwhile(tmp_path: Path, small: None) -> None:
    source = checkpoint(tmp_path / "source")
    shard = source / "model-00003-of-00003.safetensors"

    def touch(done: int, total: int) -> None:
        if done > total * 0.9:
            os.utime(shard)

    with pytest.raises(ModelChanged, match="model-00003-of-00003"):
        converted(source, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()

    def cut(done: int, total: int) -> None:
        with (source / "model-00002-of-00003.safetensors").open("r+b") as file:
            file.truncate(5000)

    with pytest.raises(ModelChanged, match="model-00002-of-00003"):
        converted(source, tmp_path / "out", progress=cut)
    with pytest.raises(DamagedModel, match="truncated"):
        converted(source, tmp_path / "out")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    arch = ARCHITECTURES["llama"]
    model = arch.make_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    source = write_checkpoint(tmp_path / "source", model)
    with pytest.raises(DamagedModel, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        converted(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_quantise(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no Linear layers"):
        converted(checkpoint(tmp_path / "source", "gpt2"), tmp_path / "out")
    out = converted(checkpoint(tmp_path / "llama"), tmp_path / "int8", "int8")
    with pytest.raises(UnsupportedModel, match="quantised already"):
        converted(out, tmp_path / "out")


def test_no_link_is_followed_out_of_the_folder(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    (tmp_path / "secret.json").write_text("{}")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UntrustedModel, match="leaves the model's folder"):
        converted(source, tmp_path / "out")


@pytest.mark.parametrize(("stored", "runs"), [("float32", "bfloat16"), ("float16", "float32")])
def test_weights_stored_in_another_type_than_they_run_in(
    stored: str, runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    model = ARCHITECTURES["llama"].make_model().to(getattr(torch, stored))
    source = write_checkpoint(tmp_path / "source", model, config_changes={"dtype": runs})
    out = converted(source, tmp_path / "out")
    packed = [name for name in stored_names(out) if name.endswith("_packed")]
    assert len(packed) == 4 * 6
    planned = outsize.plan(str(source), weights="int4", no_gpu=True)
    assert sum(group.rest_bytes for group in planned.groups) == sum(
        group.rest_bytes for group in outsize.plan(str(out), weights="int4", no_gpu=True).groups
    )
    ids = torch.arange(5, 13)[None]
    with torch.no_grad(), outsize.load(out, no_gpu=True, context=32) as ours:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=0.05, rtol=0.05)


def stored_names(folder: Path) -> list[str]:
    return [tensor.name for tensor in open_folder(folder).tensors]
