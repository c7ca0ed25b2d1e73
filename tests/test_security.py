"""What an untrusted input cannot do, because of the libraries: each case was tried once by hand.

`tests/security.py` lists the tests of every kind of harm.
"""

import ast
import json
import os
import pickle
import re
import stat
import struct
import tarfile
import zipfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cli.test_commands import refused
from tests.cli.test_export import NETWORKS, made
from tests.data.conftest import MakeClip, make_clip  # noqa: F401 (a fixture)
from tests.security import KINDS
from videoattn.cli.report import draw_confusion
from videoattn.data.decode import DecodeError, count_frames
from videoattn.data.lists import read_list
from videoattn.data.prepare.index import INDEX_NAME, read_index
from videoattn.data.shards import open_shards
from videoattn.data.shards.table import TABLE
from videoattn.engine import checkpoint
from videoattn.recipe.config import AttentionConfig, ModelConfig
from videoattn.recipe.load import from_stored
from videoattn.recipe.load import load as load_recipe
from videoattn.recipe.model import make_model
from videoattn.recipe.run import load as load_run
from videoattn.weights import read_state_dict

TESTS = Path(__file__).parent


def test_every_kind_of_harm_has_its_tests() -> None:
    for kind, names in KINDS.items():
        for name in names:
            path, _, function = name.partition("::")
            tree = ast.parse((TESTS / path).read_text())
            found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert [node for node in found if node.name == function], name
        assert len(set(names)) >= 3, kind


def test_the_limits_hold(limits: None) -> None:
    with pytest.raises(MemoryError):
        bytearray(2**32)


class Planted:
    """Creates a file when it is read by an unrestricted unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "a.pkl", "a.pt", "a.pyth", "a.tar"])
def test_no_pickle_runs_code(name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / name
    content = {"state_dict": {"a": torch.zeros(2)}, "more": Planted(mark)}
    if name == "a.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "old.pth")
    recipe = {"name": "x", "data": {"root": "x"}, "model": {"weights": str(path)}}
    for use in (read_state_dict, load_run, lambda path: load_run(path.parent)):
        with pytest.raises(ValueError, match=r"\w") as raised:
            use(path)  # type: ignore[operator]
        assert "\n" not in str(raised.value)
    assert load_recipe(recipe).model.weights == str(path)
    assert refused("predict", path, "x.mp4").startswith("error: ")
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos.path\nos.system\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0cgetattr.eval\x93.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02Vx\nQ.",  # a persistent id
        b"Px\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # bytes
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",  # text
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",  # a frame
        b"\x80\x02B" + struct.pack("<I", 2**31 - 1) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",  # an integer
    ],
    ids=repr,
)
def test_programs_of_pickles_are_refused(program: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(ValueError, match=r"a\.pkl: (refused|the pickle is|found no|holds a)"):
        read_state_dict(tmp_path / "a.pkl")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["TorchScript", "tar", "zip of files"])
def test_other_files_with_the_ending_of_weights(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if kind == "TorchScript":
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    elif kind == "tar":
        (tmp_path / "pickle").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / "pickle", "pickle")
    else:
        np.savez(path.with_suffix(".npz"), a=np.array([Planted(tmp_path / "ran")], object))
        path.with_suffix(".npz").rename(path)
    with pytest.raises(ValueError, match=r"a\.pth: "):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def test_stand_ins_of_training_logs_are_inert(tmp_path: Path) -> None:
    """`getattr` and `Namespace` of a checkpoint hold nothing and call nothing."""
    program = b"cbuiltins\ngetattr\n(cargparse\nNamespace\n(tRS'__class__'\ntR"
    payload = b"\x80\x02}(X\x05\0\0\0modelcbuiltins\ngetattr\n(K\1S'real'\ntRu."
    for content in (program + b".", payload):
        torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "a.pth")
        with zipfile.ZipFile(tmp_path / "a.pth") as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
            for name, data in members.items():
                new.writestr(name, content if name.endswith("data.pkl") else data)
        with pytest.raises(ValueError, match=r"a\.pth: "):
            read_state_dict(tmp_path / "a.pth")


def _tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> bytes:
    """Returns a checkpoint with one tensor of eight numbers, with these facts instead of its own.

    The pickle names its storage by a persistent id, then `_rebuild_tensor_v2` with the facts.
    """
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in (offset,))
    sizes = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in size) + b"t"
    strides = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in stride) + b"t"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\x08tQ"
    arguments = b"(" + storage + numbers + sizes + strides + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((10**12,), (1,), 0), ((9,), (1,), 0), ((2,), (8,), 0), ((2,), (1,), 7), ((2,), (1,), -1),
        ((2,), (-1,), 4), ((-1,), (1,), 0), ((2**62, 4), (1, 1), 0), ((10**6, 10**6), (1, 1), 0),
    ],
)  # fmt: skip
def test_tensors_and_storages_of_other_sizes(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    _checkpoint(path, _tensor((4, 2), (2, 1), 0))
    assert read_state_dict(path)["a"].shape == (4, 2)
    _checkpoint(path, _tensor(size, stride, offset))
    with pytest.raises(ValueError, match=r"a\.pth: the checkpoint is"):
        read_state_dict(path)


def test_a_tensor_that_repeats_a_number_takes_no_memory(limits: None, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "a.pth", _tensor((10**12,), (0,), 0))
    assert read_state_dict(tmp_path / "a.pth")["a"].shape == (10**12,)


def _checkpoint(path: Path, program: bytes) -> None:
    torch.save({"a": torch.arange(8.0)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, program if name.endswith("data.pkl") else data)


def _safetensors(path: Path, header: dict[str, Any] | bytes, size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(32))
    return path


def _entry(shape: list[int], start: int = 0, end: int = 32) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": _entry([10**12])}, None),
        ({"a": _entry([2**62, 4])}, None),
        ({"a": _entry([8]), "b": _entry([8])}, None),
        ({"a": _entry([8], 0, 64)}, None),
        ({"a": _entry([8], 32, 0)}, None),
        ({"a": _entry([4], 8, 24)}, None),
        ({"a": _entry([8])}, 2**63),
        ({"a": _entry([8])}, 10**8),
        (b"[" * 100_000, None),
        (b"{", None),
        ({"a": {"dtype": "X", "shape": [8], "data_offsets": [0, 32]}}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_safetensors_that_lie(header: Any, size: int | None, tmp_path: Path) -> None:
    path = _safetensors(tmp_path / "a.safetensors", {"a": _entry([8])})
    assert read_state_dict(path)["a"].shape == (8,)
    _safetensors(path, header, size)
    for use in (read_state_dict, load_run):
        with pytest.raises(ValueError, match=r"a\.safetensors: ") as raised:
            use(path)
        assert "\n" not in str(raised.value)


PAIRS = zip("abcdefghi", "bcdefghij", strict=True)
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "name: &a [*a]\n",
        "name: &a {b: *a}\n",
        "name: " + "[" * 3000 + "\n",
        "name: " + "{a: " * 3000 + "\n",
        "name: !!python/object/apply:os.system ['touch ran']\n",
        "name: !!python/name:os.system\n",
        "name: ${name}\ndata: {root: x}\n",
        "name: ${data.root}\ndata: {root: '${name}'}\n",
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_grows(
    text: str, limits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    line = refused("train", "x.yaml")
    assert line.startswith("error: ")
    assert len(line) < 2000
    assert not (tmp_path / "ran").exists()


def test_insertions_that_grow(tmp_path: Path) -> None:
    """Each option holds the one before it many times."""
    options = {"a": "x" * 10}
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        options[name] = f"${{model.options.{before}}}" * 20
    values = {"name": "x", "data": {"root": "x"}, "model": {"options": options}}
    with pytest.raises(ValueError, match=r"holds an interpolation"):
        from_stored(values)


def test_names_of_networks_are_listed() -> None:
    for name in ("hf-hub:a/b", "resnet50.a1_in1k", "../x", "os.system", "resnet18d\n"):
        with pytest.raises(ValueError, match=r"model\.options\.backbone: '.*' does not exist"):
            make_model(ModelConfig("tsn_timm", {"backbone": name}), 3)
        for network in (name, f"pytorchvideo/{name}", f"torchvision/{name}"):
            with pytest.raises(ValueError, match=r"does not exist"):
                make_model(ModelConfig(network), 3)


@pytest.mark.parametrize("name", ["i3d_r18", "tsn_r18", "inception_i3d"])
def test_options_of_networks_are_checked(name: str) -> None:
    for option in ("__class__", "weights", "pretrained", "__init__", "stem.__class__", "os"):
        with pytest.raises(ValueError, match=r"model\.options"):
            make_model(ModelConfig(name, {option: "os.system"}), 3)
    for value in ({"__class__": 3}, {"import": "os"}):
        with pytest.raises(ValueError, match=r"model\.options|stem"):
            make_model(ModelConfig(name, {"stem": value}), 3)


@pytest.mark.parametrize("value", ["abc", -1, [1, 2], {"a": 1}, 1.5])
@pytest.mark.parametrize("network", [True, False])
def test_values_of_options_of_other_types(value: Any, network: bool) -> None:
    """No option of a constructor is given a type of its own in a recipe."""
    config = ModelConfig("i3d_r18", {"width": 8}, attention=AttentionConfig("non_local"))
    option = {"width" if network else "reduction": value}
    if network:
        config = replace(config, options=option)
    else:
        config = replace(config, attention=AttentionConfig("cbam", options=option))
    with torch.device("meta"), pytest.raises(ValueError, match=r"\w") as e:
        make_model(config, 3)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["; touch ran", "$(touch ran)", "`touch ran`", "' --output ran '"])
def test_an_address_of_shards_is_one_argument(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset starts curl without a shell; a program of that name notes its arguments."""
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {tmp_path}/words\n')
    curl.chmod(curl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    url = f"http://127.0.0.1:9/{text}"
    with pytest.raises(ValueError, match=r"shards\.json"):
        open_shards(url, ".")
    assert f"{url}/{TABLE}" in (tmp_path / "words").read_text().splitlines()
    assert {path.name for path in tmp_path.iterdir()} == {"curl", "words"}


@pytest.mark.parametrize(
    "name",
    ["000000.tar; touch ran", "../000000.tar", "a/000000.tar", "$(id).tar", "-o.tar\n", ".tar",
     "000000.tar ", "http://127.0.0.1:9/a.tar", 7, None],
)  # fmt: skip
def test_names_in_a_table_of_shards_are_names(name: Any, tmp_path: Path) -> None:
    table = {"class_names": ["a"], "shards": [{"name": name, "num_samples": 1}]}
    (tmp_path / TABLE).write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"shards\.json is not a list of shards"):
        open_shards(str(tmp_path), ".")


@pytest.mark.parametrize("split", ["pipe:cat /place", "pipe:touch ran", "pipe:", "pipe:ls {0..9}"])
def test_a_pipe_names_its_tar_files(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"names no tar file; name one or more, as in"):
        open_shards(str(tmp_path), split)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["http:/host/x.mp4", "pipe:0.mp4", "concat:a|b.mp4", "rtmp://h/x"])
def test_a_line_of_a_list_is_a_path(line: str, tmp_path: Path) -> None:
    """A path that does not exist is one failed video."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "list.txt").write_text(f"a.mp4 0\n{line} 0\n")
    samples = read_list(tmp_path / "list.txt", tmp_path, missing="keep")
    with pytest.raises(DecodeError, match=r"No such file or directory$"):
        count_frames(samples.path(1))


def test_arrays_of_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / INDEX_NAME, paths=np.array([Planted(tmp_path / "ran")], object))
    with pytest.raises(ValueError, match=r"is damaged or not an index"):
        read_index(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("count", [2 * 10**8, 2**31 - 1, 2**32 - 1])
def test_a_table_of_samples_without_data(count: int, make_clip: MakeClip) -> None:  # noqa: F811
    path = make_clip("a.mp4")
    data = bytearray(path.read_bytes())
    for kind, at in ((b"stsz", 12), (b"stts", 12)):
        place = data.index(kind) + at - (kind == b"stts") * 0
        data[place : place + 4] = struct.pack(">I", count)
    data[data.index(b"stsz") + 8 : data.index(b"stsz") + 12] = struct.pack(">I", 1)
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"a\.mp4: ") as raised:
        count_frames(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["[red]a[/red]", "$\\frac{a}{b}$", "$\\x", "x[/foo]", "a_b^c", "$", "\x1b[2J"]
)
def test_class_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    draw_confusion(tmp_path / "x.png", np.eye(2, dtype=np.int64), [name, "b"])
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["out", "link", "folder"])
def test_export_replaces_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save_folder(tmp_path / "shared", *made(NETWORKS["plain"]))
    (tmp_path / "out").write_text("mine")
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    assert f"{name} already exists; choose another name, or remove it" in refused(
        "export", "shared", name
    )
    assert (tmp_path / "out").read_text() == (tmp_path / "folder/file").read_text() == "mine"


def test_long_lists_are_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    lines = "".join(f"folder{i % 1000}/video {i}.mp4 {i % 7}\n" for i in range(300_000))
    (tmp_path / "list.txt").write_text("a.mp4 0\n" + lines)
    samples = read_list(tmp_path / "list.txt", tmp_path, missing="keep")
    assert len(samples) == 300_001


def test_the_page_gives_a_reason_for_each_minimum_version() -> None:
    """The versions on the page are those of setup.cfg, and CI runs versions as new."""
    page = (TESTS.parent / "docs/security.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)>=([\d.]+)` \| .+ \|$", page, re.MULTILINE))
    settings = (TESTS.parent / "setup.cfg").read_text()
    required = dict(re.findall(r"\b([\w-]+)>=([\d.]+)", settings))
    assert len(rows) >= 7
    assert rows == {name: required[name] for name in rows}
    for name, least in rows.items():
        installed = version(name)
        assert numbers(installed) >= numbers(least), f"{name} {installed}"


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])]
