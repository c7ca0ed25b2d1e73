"""A run folder from somebody else describes a network, and has no other effect.

Every key of a stored config is given hostile values while an audit hook watches for processes,
sockets, and files that are written or removed.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.test_commands import command, refused
from tests.cli.test_export import NETWORKS, made
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine import checkpoint
from videoattn.recipe.config import Config, DataConfig
from videoattn.recipe.load import from_stored
from videoattn.recipe.run import load

COMMAND = "touch ran"
HOSTILE = [
    f"pipe:{COMMAND}; cat d/{{000000..000000}}.tar",
    "http://127.0.0.1:9/shards",
    "file:///etc/passwd",
    "/etc/passwd",
    "../../../escaped",
    "${oc.env:HOME}",
    "${name}",
    f"$({COMMAND})",
    "\x1b]52;c;aGk=\x07",
    10**18,
    -1,
    [[]],
    {"a": {"b": "${c}"}},
]
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open" and not set("wax+") & set(str(arguments[1] or "")):
        return
    if event.startswith(
        ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "urllib.",
         "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.", "open")
    ):  # fmt: skip
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def _of_loader_processes(event: str) -> bool:
    """Returns whether multiprocessing is the cause: forks, and sockets between processes."""
    return event.startswith(("os.fork ", "socket.__new__", "socket.bind")) or "/pymp-" in event


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yields a list of the actions inside the `with` other than reading and computing."""
    global _seen
    _seen = seen = []
    try:
        yield seen
    finally:
        _seen = None


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    checkpoint.save_folder(tmp_path / "shared", *made(NETWORKS["i3d_non_local"]))
    return tmp_path / "shared"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    return write_demo_clips(root, num_train_per_class=1, num_test_per_class=1)[0]


def stored(folder: Path, changes: dict[str, Any]) -> Path:
    """Writes values into the folder's config.json by their dotted keys."""
    file = folder / "config.json"
    about = json.loads(file.read_text())
    for key, value in changes.items():
        section = about["config"]
        *parents, name = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    file.write_text(json.dumps(about))
    return folder


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


KEYS = list(keys(asdict(Config(name="x", data=DataConfig(root="x")))))


def nested(key: str, value: object) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("value", HOSTILE, ids=str)
def test_stored_values_have_no_effect(value: object) -> None:
    """A value is refused in one line, or reaches a config that reads no data and no weights."""
    for key in KEYS:
        outcome: Config | str
        with watched() as seen:
            try:
                outcome = from_stored({"name": "x", **nested(key, value)})
            except ValueError as error:
                outcome = str(error)
        assert seen == [], key
        if isinstance(outcome, str):
            assert "\n" not in outcome, key
        else:
            assert outcome.data == DataConfig(root=""), key
            assert outcome.model.weights is None, key


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("model.")])
def test_networks_of_a_stored_config_run_no_code(shared: Path, key: str) -> None:
    original = (shared / "config.json").read_text()
    for value in ("http://127.0.0.1:9/a", "/etc/passwd", {"backbone": "hf-hub:a/b"}, {"x": 10**9}):
        (shared / "config.json").write_text(original)
        stored(shared, {key: value})
        with watched() as seen, suppress(ValueError):
            load(shared, torch.device("cpu"))
        assert seen == [], value


@pytest.mark.parametrize("value", [value for value in HOSTILE if isinstance(value, str)])
def test_predict_and_visualize_never_read_the_stored_data_section(
    shared: Path, video: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {f"data.{key}": value for key in asdict(DataConfig(root="x"))}
    stored(shared, {**hostile, "data.layout": "shards", "model.weights": value})
    with watched() as seen:
        assert command("predict", shared, video) == 0
    assert [event for event in seen if not _of_loader_processes(event)] == []
    assert "%" in capsys.readouterr().out
    assert not list(shared.parent.rglob("ran"))


@pytest.mark.parametrize("layout", ["shards", "frames", "kinetics", "charades", "list"])
def test_predictions_depend_on_the_videos_only(
    shared: Path, video: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", shared, video) == 0
    expected = capsys.readouterr().out
    data = {"layout": layout, "root": "gone", "class_list": "gone.txt", "train_split": "gone"}
    stored(shared, {f"data.{key}": value for key, value in data.items()})
    assert command("predict", shared, video) == 0
    assert capsys.readouterr().out == expected


def test_visualize_writes_only_into_its_folder(shared: Path, video: Path) -> None:
    stored(shared, {"data.layout": "shards", "data.root": "http://127.0.0.1:9", "name": "y"})
    before = {path for path in shared.parent.rglob("*") if "out" not in path.parts}
    assert command("visualize", shared, video, "--out", "out", "--layer", "layer2") == 0
    assert {path for path in shared.parent.rglob("*") if "out" not in path.parts} == before


@pytest.mark.parametrize("layout", ["shards", "folders", "list"])
def test_test_requires_the_data_of_a_foreign_folder(shared: Path, layout: str) -> None:
    stored(
        shared,
        {
            "data.root": "http://127.0.0.1:9",
            "data.layout": layout,
            "data.test_split": f"pipe:{COMMAND}; cat d/{{000000..000000}}.tar",
        },
    )
    with watched() as seen:
        assert "shared: its test videos are unknown, because" in refused("test", shared)
    assert seen == []


def test_a_network_larger_than_its_weights_is_refused_before_it_is_made(shared: Path) -> None:
    stored(shared, {"model.options": {"width": 4000}})
    with pytest.raises(ValueError, match=r"model\.safetensors: is of another model: "):
        load(shared, torch.device("cpu"))


def test_no_output_holds_the_environment(
    shared: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of each command, also uncompressed ones, hold the value of no variable."""
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-word")
    stored(shared, {"name": "${oc.env:WANDB_API_KEY}"})
    assert "a-secret-word" not in refused("predict", shared, video)
    stored(shared, {"name": "$WANDB_API_KEY"})
    assert command("export", shared, "again", "--video", video) == 0
    assert command("predict", shared, video, "--json", "a.json", "--csv", "a.csv", "--why") == 0
    assert command("visualize", shared, video, "--out", "out", "--layer", "layer2") == 0
    assert command("explore", shared, video, "--out", "out/page.html", "--budget", "1") == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".html", ".json", ".csv", ".md", ".png"}
    assert not [path for path in written if b"a-secret-word" in path.read_bytes()]


def test_shared_folders_name_no_file_of_this_machine(shared: Path, tmp_path: Path) -> None:
    stored(shared, {"data.root": "/secret/videos", "model.weights": "/secret/run"})
    assert command("export", shared, "again") == 0
    assert "secret" not in (tmp_path / "again/config.json").read_text()
    assert b"secret" not in (tmp_path / "again/model.safetensors").read_bytes()
