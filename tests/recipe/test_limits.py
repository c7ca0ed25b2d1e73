"""A stored config from somebody else cannot ask for any amount of memory or time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.fakes import about, tiny_net
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointError
from videoattn.recipe.config import limits
from videoattn.recipe.load import comparable, from_stored
from videoattn.recipe.load import load as load_recipe

pytestmark = pytest.mark.usefixtures("limits")


def stored(key: str, value: object, **more: object) -> dict[str, Any]:
    section, name = key.split(".")
    return {"name": "x", section: {name: value, **more}}


@pytest.mark.parametrize(("key", "most"), limits("at_most").items())
def test_numbers_of_a_stored_config_that_are_too_large(key: str, most: int) -> None:
    small = {"num_frames": 1} if key in ("clip.height", "clip.width") else {}
    small |= {"height": 16, "width": 16} if key == "test.batch_size" else {}
    from_stored(stored(key, most, **small))
    for value in (most + 1, 10**9, 2**62):
        with pytest.raises(ValueError, match=rf"config: {key}: got {value}; the limit is {most}, "):
            from_stored(stored(key, value, **small))


@pytest.mark.parametrize("value", [20_000, 10**6])
def test_what_the_user_types_has_no_limit(value: int, tmp_path: Path) -> None:
    assert from_stored(stored("clip.num_frames", 8), None, [f"clip.num_frames={value}"])
    (tmp_path / "x.yaml").write_text(f"name: x\ndata: {{root: x}}\nclip: {{num_frames: {value}}}\n")
    assert load_recipe(tmp_path / "x.yaml").clip.num_frames == value


@pytest.mark.parametrize("value", [4097, 10**9, 10**30, 1e300, {"a": [3, 5000]}])
@pytest.mark.parametrize("key", ["options", "attention.options"])
def test_numbers_among_options_that_are_too_large(key: str, value: Any) -> None:
    """An option may be a number of layers, which would be made one by one."""
    options = {"name": "non_local", "options": {"x": value}}
    model = {"options": {"x": value}} if key == "options" else {"attention": options}
    with pytest.raises(ValueError, match=rf"config: model\.{key}: got .*; the limit is 4,096, unl"):
        from_stored({"name": "x", "model": model})
    if key == "attention.options":
        second = {"attention": ["cbam", options]}
        with pytest.raises(ValueError, match=r"config: model\.attention\.1\.options: got "):
            from_stored({"name": "x", "model": second})
    typed = [f"model.{key}.x=5000"]
    assert from_stored({"name": "x", "model": {"attention": {"name": "cbam"}}}, None, typed)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"clip": {"num_frames": 1024}, "test": {"num_clips": 30}}, "num_clips"),
        ({"clip": {"height": 1024, "width": 1024}, "test": {"num_clips": 13, "num_crops": 10}},
         "num_clips"),
        ({"test": {"num_clips": 900, "num_crops": 3, "batch_size": 1}}, "num_clips"),
        ({"clip": {"num_frames": 300}, "test": {"batch_size": 128}}, "batch_size"),
        ({"test": {"batch_size": 1000, "height": 1024, "width": 1024}}, "batch_size"),
    ],
)  # fmt: skip
def test_products_of_numbers(values: dict[str, Any], key: str) -> None:
    with pytest.raises(
        ValueError, match=rf"the limit is 1,073,741,824, unless you type test\.{key}"
    ):
        from_stored({"name": "x", **values})
    assert from_stored({"name": "x", **values}, None, ["test.num_clips=1", "test.batch_size=1"])


@pytest.mark.parametrize(
    "values",
    [
        {"clip": {"num_frames": 64}, "test": {"num_clips": 10, "num_crops": 3}},
        {"clip": {"num_frames": 128, "height": 320, "width": 320}, "test": {"num_clips": 5}},
        {"clip": {"num_frames": 8}, "test": {"num_clips": 25, "num_crops": 10, "batch_size": 256}},
    ],
)
def test_published_settings_are_within_the_limits(values: dict[str, Any]) -> None:
    assert from_stored({"name": "x", **values})


def doubled(depth: int, leaf: object = 1) -> dict[str, Any]:
    """Returns a small object that is 2^depth large when it is written out."""
    value: Any = leaf
    for _ in range(depth):
        value = {"a": value, "b": value}
    assert isinstance(value, dict)
    return value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


HUGE = {
    "shared": doubled(30),
    "shared 26": doubled(26, "text"),
    "deep": nested(5000),
    "wide": {str(i): i for i in range(20_000)},
    "list": {"a": [[1] * 200] * 200},
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("use", [from_stored, comparable])
def test_configs_of_too_many_values(kind: str, use: Any) -> None:
    values = {"name": "x", "model": {"options": HUGE[kind]}}
    with pytest.raises(
        ValueError, match=r"config is damaged or too large; the limit is 10,000 val"
    ):
        use(values)


def shared_folder(folder: Path, text: str) -> Path:
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / checkpoint.WEIGHTS)
    (folder / checkpoint.ABOUT).write_text(text)
    return folder


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 10**6 + "]" * 10**6])
def test_nested_metadata(text: str, tmp_path: Path) -> None:
    folder = shared_folder(tmp_path / "shared", text)
    with pytest.raises(CheckpointError, match=r"config\.json: is damaged: not JSON") as raised:
        checkpoint.read(folder)
    assert "\n" not in str(raised.value)
    meta = {"format": "videoattn/1", "config": text, "class_names": "[]", "preprocessing": "{}"}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=meta)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: is damaged: not JSON"):
        checkpoint.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [2**24 + 1, 2**36])
def test_a_config_larger_than_the_limit(size: int, tmp_path: Path) -> None:
    folder = shared_folder(tmp_path / "shared", "{}")
    with (folder / checkpoint.ABOUT).open("ab") as file:
        file.truncate(size)
    with pytest.raises(CheckpointError, match=r"exceeds the limit of 16,777,216 bytes"):
        checkpoint.read(folder)


@pytest.mark.parametrize("names", [7, "abc", [1, 2], {"a": 1}, None])
def test_class_names_that_are_not_names(names: Any, tmp_path: Path) -> None:
    meta = {**about(), "class_names": names}
    folder = shared_folder(tmp_path / "shared", json.dumps({"format": "videoattn/1", **meta}))
    torch.save(
        {"format": "videoattn/1", "version": "1", **meta, "model": tiny_net().state_dict(),
         "optimizer": {}, "progress": {}, "best": {}},
        tmp_path / "x.pt",
    )  # fmt: skip
    for path in (folder, tmp_path / "x.pt"):
        with pytest.raises(CheckpointError, match=r"class_names: need a list of strings"):
            checkpoint.read(path)


@pytest.mark.parametrize("kind", ["shared", "text", "deep"])
@pytest.mark.parametrize("key", ["provenance", "preprocessing", "config"])
def test_metadata_of_too_many_values(kind: str, key: str, tmp_path: Path) -> None:
    meta = {
        **about(),
        key: {"shared": doubled(28), "text": doubled(26, "x"), "deep": nested(200)}[kind],
    }
    torch.save(
        {"format": "videoattn/1", "version": "1", **meta, "model": {}, "optimizer": {},
         "progress": {}, "best": {}},
        tmp_path / "x.pt",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"x\.pt: the metadata is damaged or too large; the limit"):
        checkpoint.read(tmp_path / "x.pt")
