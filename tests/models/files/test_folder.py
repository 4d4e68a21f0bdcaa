from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from outsize.errors import DamagedModel, ModelNotFound, UnsupportedModel, UntrustedModel
from outsize.models.files.folder import ModelFile, open_folder
from outsize.models.files.small_files import check_small_file
from outsize.models.resolve import find_folder

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "opt", "model_type": "opt"}')
    return place


def write_shards(folder: Path, placed: dict[str, object] | None = None) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, folder / ONE)
    save_file({"c": torch.zeros(4)}, folder / TWO)
    placed = {"a": ONE, "b": ONE, "c": TWO} if placed is None else placed
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_a_configuration_alone(folder: Path) -> None:
    found = open_folder(str(folder))
    assert (found.format, found.tensors, found.files, found.path) == ("none", (), (), folder)
    assert found.config == {"model_type": "opt"}


def test_weights_are_chosen_as_transformers_does(folder: Path) -> None:
    torch.save({"bin": torch.zeros(2)}, folder / "pytorch_model.bin")
    assert open_folder(folder).format == "torch"
    write_shards(folder)
    found = open_folder(folder)
    assert {tensor.name: tensor.file for tensor in found.tensors} == {"a": ONE, "b": ONE, "c": TWO}
    assert found.files == tuple(ModelFile(name, (folder / name).stat().st_size) for name in (ONE, TWO))
    save_file({"single": torch.zeros(2)}, folder / "model.safetensors")
    assert [tensor.name for tensor in open_folder(folder).tensors] == ["single"]


def test_sharded_bin(folder: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    torch.save({"a": torch.zeros(2)}, folder / names[0])
    torch.save({"b": torch.zeros(2)}, folder / names[1])
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    assert [tensor.file for tensor in open_folder(folder).tensors] == names


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such folder"):
        open_folder(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        open_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", '"a"'])
def test_a_damaged_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(DamagedModel, match=r"config\.json is not"):
        open_folder(folder)


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedModel, match="too large"):
        open_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors", "/etc/passwd", "/x.safetensors", "..", ".", "", "sub/../x.safetensors",
        "sub//x.safetensors",
        "a\\x.safetensors", "C:x.safetensors", "x\0.safetensors", "x\n.safetensors", "x.bin", "x.py", "pickle.pkl",
        7, None, ["x.safetensors"], "file:///x.safetensors", "\u202ex.safetensors",
    ],
)  # fmt: skip
def test_names_that_are_no_plain_files_of_the_folder(folder: Path, name: object) -> None:
    write_shards(folder, {"a": name})
    save_file({"a": torch.zeros(2)}, folder.parent / "secret.safetensors")
    with pytest.raises(UntrustedModel, match=r"model\.safetensors\.index\.json: names") as caught:
        open_folder(folder)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DamagedModel, match="no weight_map"):
        open_folder(folder)


def test_an_index_with_a_name_twice(folder: Path) -> None:
    write_shards(folder)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}')
    with pytest.raises(DamagedModel, match="'a' twice"):
        open_folder(folder)


def test_missing_shards_are_named(folder: Path) -> None:
    write_shards(folder)
    (folder / TWO).unlink()
    with pytest.raises(DamagedModel, match=f"lacks the shard {TWO}; try"):
        open_folder(folder)
    (folder / ONE).unlink()
    with pytest.raises(DamagedModel, match=f"lacks the shard {ONE} and 1 more"):
        open_folder(folder)


def test_an_index_may_say_what_transformers_does_not_mind(folder: Path) -> None:
    write_shards(folder, {"a": ONE, "b": TWO, "z": TWO})  # under another shard, and one that there is not
    found = {tensor.name: tensor.file for tensor in open_folder(folder).tensors}
    assert found["b"] == ONE
    assert "z" not in found


def test_a_tensor_in_two_shards(folder: Path) -> None:
    write_shards(folder)
    state = load_file(folder / ONE)
    save_file({"a": state["a"], "c": torch.zeros(4)}, folder / TWO)
    assert sorted(tensor.name for tensor in open_folder(folder).tensors) == ["a", "b", "c"]
    for other in (state["a"] + 1, torch.zeros(1)):
        save_file({"a": other, "c": torch.zeros(4)}, folder / TWO)
        with pytest.raises(DamagedModel, match=f"'a' is in both {ONE} and {TWO}, and not the same"):
            open_folder(folder)


def test_shards_in_a_folder_within(folder: Path) -> None:
    write_shards(folder, {"a": f"w/{ONE}", "c": f"w/{TWO}"})
    (folder / "w").mkdir()
    for name in (ONE, TWO):
        (folder / name).rename(folder / "w" / name)
    assert {tensor.file for tensor in open_folder(folder).tensors} == {f"w/{ONE}", f"w/{TWO}"}
    for bad in (f"w/../{ONE}", f"/{ONE}", f"w//{ONE}", f"./{ONE}"):
        write_index = folder / "model.safetensors.index.json"
        write_index.write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(UntrustedModel, match="names"):
            open_folder(folder)


def test_what_people_have_in_place_of_a_model(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DamagedModel, match=r"git-lfs pointer.*git lfs pull"):
        open_folder(folder)
    (folder / "model.safetensors").rename(folder / ONE)
    with pytest.raises(DamagedModel, match=f"has {ONE} but neither"):
        open_folder(folder)
    (folder / ONE).rename(folder / "model.gguf")
    with pytest.raises(UnsupportedModel, match="GGUF"):
        open_folder(folder)
    with pytest.raises(UnsupportedModel, match="is a GGUF file"):
        find_folder(str(folder / "model.gguf"))
    with pytest.raises(ModelNotFound, match="is a file"):
        find_folder(str(folder / "config.json"))
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    with pytest.raises(UnsupportedModel, match=r"PEFT adapter \(LORA\) of x/y"):
        open_folder(folder)


def test_links(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder.parent / "outside.safetensors")
    link = folder / "model.safetensors"
    link.symlink_to("../outside.safetensors")
    with pytest.raises(UntrustedModel, match="leaves the model's folder"):
        open_folder(folder)
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(DamagedModel, match="cannot be opened"):
        open_folder(folder)
    link.unlink()
    link.symlink_to("model.safetensors")
    with pytest.raises(DamagedModel, match="cannot be opened"):
        open_folder(folder)
    link.unlink()
    save_file({"a": torch.zeros(2)}, folder / "weights")
    link.symlink_to("weights")
    assert len(open_folder(folder).tensors) == 1
    (folder.parent / "alias").symlink_to(folder)
    assert len(open_folder(folder.parent / "alias").tensors) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_the_links_of_the_hugging_face_cache(tmp_path: Path, shared: bool) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    if shared:
        (tmp_path / "hub" / "blobs" / "ab").mkdir(parents=True)
        save_file({"a": torch.zeros(2)}, tmp_path / "hub" / "blobs" / "ab" / "abc")
        (blobs / "2").symlink_to("../../blobs/ab/abc")
    else:
        save_file({"a": torch.zeros(2)}, blobs / "2")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    assert len(open_folder(snapshot).tensors) == 1
    part = snapshot / "text_model"
    part.mkdir()
    (part / "config.json").symlink_to("../../../blobs/1")
    (part / "model.safetensors").symlink_to("../../../blobs/2")
    assert len(open_folder(part).tensors) == 1
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "2").write_bytes((blobs / "2").read_bytes())
    (snapshot / "model.safetensors").symlink_to("../../../../2")
    with pytest.raises(UntrustedModel):
        open_folder(snapshot)


@pytest.mark.parametrize("moved", ["all blobs", "each blob", "the repository"])
def test_blobs_on_another_disk(tmp_path: Path, moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, repository = tmp_path / "disk", tmp_path / "hub" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    disk.mkdir()
    if moved == "the repository":
        repository.parent.mkdir()
        repository.symlink_to(disk)
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, content in (("config.json", b"{}"), ("model.safetensors", save({"a": torch.zeros(2)}))):
        (blobs / name).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
        if moved == "each blob":
            (blobs / name).rename(disk / name)
            (blobs / name).symlink_to(disk / name)
    if moved == "all blobs":
        blobs.rename(disk / "b")
        blobs.symlink_to(disk / "b")
    if moved != "the repository":
        with pytest.raises(UntrustedModel):  # anybody's archive may look like this
            open_folder(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert len(open_folder(snapshot).tensors) == 1
    assert check_small_file(snapshot, "config.json").read_text() == "{}"
    (snapshot / "config.json").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UntrustedModel, match=r"config\.json: is a link that leaves"):
        open_folder(snapshot)
