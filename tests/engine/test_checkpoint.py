import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.fakes import about, tiny_net
from videoattn.engine.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    check_classes,
    load,
    load_weights,
    restore,
    save,
    save_weights,
)


def payload() -> Checkpoint:
    return {
        "format": FORMAT,
        "version": "0",
        "model": tiny_net().state_dict(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "progress": {"epoch": 1},
        "best": {"accuracy": None},
        **about(),
    }


def test_a_saved_checkpoint_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint-last.pt"
    save(path, payload())
    loaded = load(path)
    assert loaded["config"] == about()["config"]
    assert loaded["optimizer"] == payload()["optimizer"]
    for name, value in tiny_net().state_dict().items():
        assert torch.equal(loaded["model"][name], value)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint-last.pt"]


def test_files_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": FORMAT, "model": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"evil.pt: holds objects other than tensors and pl"):
        load(path)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def test_missing_empty_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-last.pt"
    with pytest.raises(CheckpointError, match=r"checkpoint-last.pt: does not exist; give"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\); use an older checkpoint"):
        load(path)
    save(path, payload())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"is truncated after \d+ bytes; copy it"):
        load(path)
    path.write_bytes(b"weights of another kind")
    with pytest.raises(CheckpointError, match=r"is not a PyTorch checkpoint; give a checkpoint-"):
        load(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"not written by this package \(it holds state_dict"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"was not written by this package \(it holds no dic"):
        load(path)
    torch.save({**payload(), "format": "videoattn/9"}, path)
    with pytest.raises(CheckpointError, match=r"has format videoattn/9; need videoattn/1; up"):
        load(path)
    torch.save({key: value for key, value in payload().items() if key != "best"}, path)
    with pytest.raises(CheckpointError, match=r"lacks best; use another"):
        load(path)


def test_a_damaged_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-last.pt"
    save(path, payload())
    data = bytearray(path.read_bytes())
    at = data.index(b"data.pkl") + 100
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checkpoint-last.pt: (is damaged|holds objects)"):
        load(path)


def test_other_classes_are_named() -> None:
    path, names = Path("run/checkpoint-last.pt"), about()["class_names"]
    check_classes(path, names, list(names))
    with pytest.raises(
        CheckpointError, match=r"was trained on 4 classes, but the data has 2; use th"
    ):
        check_classes(path, names, ["a", "b"])
    with pytest.raises(CheckpointError, match=r"class 1 is 'class 1', but 'b' in the data; the"):
        check_classes(path, names, ["class 0", "b", "class 2", "class 3"])


def test_weights_of_another_model_are_named() -> None:
    model = tiny_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = tiny_net(num_classes=7).state_dict()
    other["extra.weight"] = other.pop("conv.bias")
    with pytest.raises(
        CheckpointError,
        match=r"lacks conv.bias; has extra.weight, which the model lacks; fc.weight is "
        r"\(7, 8\), the model's is \(4, 8\); fc.bias",
    ):
        restore(model, other, path=Path("run/best.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "checkpoint-last.pt"
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(
        OSError, match=r"no space left to write .*last.pt; nothing was written; fre"
    ):
        save(path, payload())
    monkeypatch.undo()
    save(path, payload())
    old = path.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"no space left to write .*last.pt; the previous one is unc"):
        save(path, payload())
    with pytest.raises(OSError, match=r"no space left") as caught:
        save_weights(path, payload()["model"], about())
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["checkpoint-last.pt"]


def test_a_folder_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-last.pt").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*checkpoint-last.pt: .*directory"):
        save(tmp_path / "checkpoint-last.pt", payload())


def test_values_that_could_not_be_loaded_are_not_saved(tmp_path: Path) -> None:
    bad = payload()
    bad["config"] = {"data": {"roots": ["a", Path("b")]}}
    with pytest.raises(ValueError, match=r"payload.config.data.roots\[1\] is a PosixPath; a check"):
        save(tmp_path / "checkpoint-last.pt", bad)


def test_safetensors_hold_all_that_prediction_needs(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = tiny_net().to(memory_format=torch.channels_last_3d)
    save_weights(path, model.state_dict(), about())
    state, known = load_weights(path)
    assert known == about()
    restore(tiny_net(seed=1), state, path=path)
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"is truncated or not a safetensors file"):
        load_weights(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"lacks class_names, config, format, preprocessing"):
        load_weights(path)
