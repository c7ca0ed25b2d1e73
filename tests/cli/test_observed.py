"""What untrusted inputs cause, as the system sees it: strace also shows FFmpeg's own calls."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.observed import observe, violations
from tests.cli.test_export import NETWORKS, made
from tests.cli.test_untrusted import HOSTILE, KEYS
from tests.data.conftest import MakeClip, make_clip  # noqa: F401 (a fixture)
from tests.data.test_container import TEXTS
from videoattn.engine import checkpoint

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace: apt-get install strace"
)


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("os.system('true')", "execve"),
        ("import subprocess; subprocess.run(['true'])", "execve"),
        ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "connect"),
        ("import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", "socket"),
        ("open('/tmp/observed-outside', 'w')", "openat"),
        ("os.makedirs('../outside', exist_ok=True)", "mkdir"),
        ("open('inside', 'w'); os.rename('inside', '../outside-file')", "rename"),
        ("os.remove('/tmp/observed-outside')", "unlink"),
        ("import shutil; os.mkdir('../x'); shutil.rmtree('../x')", "rmdir"),
        ("import av; av.open('tcp://127.0.0.1:9')", "connect"),
        ("import av; av.open('../x.avi', 'w').add_stream('mpeg4').container.start_encoding()",
         "openat"),
    ],
)  # fmt: skip
def test_the_observer_sees_violations(code: str, call: str, tmp_path: Path) -> None:
    Path("/tmp/observed-outside").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    calls = observe(f"mark('x')\ntry:\n    {code}\nexcept OSError: pass", folder)
    found = violations(calls, folder)
    assert any(f"x: {call}" in line for line in found), found


def test_the_observer_ignores_reading_and_the_folder_itself(tmp_path: Path) -> None:
    code = "mark('x')\nopen('a', 'w'); open('/etc/passwd'); os.mkdir('b'); os.rename('a', 'b/a')"
    assert violations(observe(code, tmp_path), tmp_path) == []


COMMANDS = """
import contextlib, io, json, sys
from pathlib import Path
from videoattn.cli import convert, export, predict, test, visualize
from videoattn.cli.app import main
from videoattn.data.decode import decode
from videoattn.recipe.run import load

folder, video, jobs = Path(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
about = json.loads((folder / "config.json").read_text())
decode(video, [0])
for number, (values, commands) in enumerate(jobs):
    config = json.loads(json.dumps(about["config"]))
    for key, value in values.items():
        section = config
        *parents, name = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    (folder / "config.json").write_text(json.dumps({**about, "config": config}))
    for words in commands:
        mark(f"{number}-{words[0]}")
        words = [w.replace("FOLDER", str(folder)).replace("VIDEO", video) for w in words]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                load(folder) if words[0] == "load" else main(words)
            except (SystemExit, ValueError):
                pass
"""
EVERY = [
    ["predict", "FOLDER", "VIDEO"],
    ["test", "FOLDER"],
    ["export", "FOLDER", "out/{}"],
    ["convert", "FOLDER/model.safetensors", "out/c{}", "--as", "pyslowfast/I3D_8x8_R50"],
]
EXPLORE = ["explore", "FOLDER", "VIDEO", "--out", "out/page.html", "--budget", "1"]
DRAW = ["visualize", "FOLDER", "VIDEO", "--out", "out/pictures", "--layer", "layer2.0"]


def test_no_setting_of_a_shared_folder_reaches_the_system(
    make_clip: MakeClip,  # noqa: F811
    tmp_path: Path,
) -> None:
    """All settings with each value, and each setting alone: no program, no network, no file."""
    checkpoint.save_folder(tmp_path / "shared", *made(NETWORKS["i3d_non_local"]))
    video = make_clip("clip.mp4", num_frames=6, size=(64, 64))
    jobs: list[tuple[dict[str, object], list[list[str]]]] = []
    data = [key for key in KEYS if key.startswith("data.")]
    for value in HOSTILE:
        values = dict.fromkeys([*data, "model.weights"], value) | {"data.layout": "shards"}
        named = {"name": value} if isinstance(value, str) else {}
        number = len(jobs)
        commands = [[word.format(number) for word in words] for words in EVERY]
        jobs.append(({**values, **named}, [*commands, DRAW, EXPLORE] if number < 2 else commands))
    others = [key for key in KEYS if key not in data]
    jobs += [({key: value}, [["load"]]) for key in others for value in HOSTILE[:10:2]]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    calls = observe(COMMANDS, tmp_path, tmp_path / "shared", video, tmp_path / "jobs.json")
    assert violations(calls, tmp_path) == []
    assert not [line for _, line in calls if "passwd" in line or "escaped" in line]
    assert {mark.partition("-")[2] for mark, _ in calls} >= {
        "predict", "export", "visualize", "explore",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} - {"inductor"} == {
        "shared", "out", "clip.mp4", "jobs.json", "strace.log",
    }  # fmt: skip
    assert len(list((tmp_path / "out").iterdir())) > 3


VIDEOS = """
import sys
from pathlib import Path
from videoattn.data.decode import DecodeError, count_frames
from videoattn.data.decode.source import VideoBytes

count_frames("real.mp4")
for path in sorted(Path().glob("*.mp4")) + [Path("http:/127.0.0.1:9/x.mp4")]:
    mark(path.name)
    for source in (path, VideoBytes(path.name, path.read_bytes())):
        try:
            count_frames(source)
        except DecodeError:
            pass
"""


def test_videos_open_nothing_else(make_clip: MakeClip, tmp_path: Path) -> None:  # noqa: F811
    make_clip("real.mp4")
    make_clip("http:/127.0.0.1:9/x.mp4")
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.mp4").write_text(text)
    (tmp_path / "http.mp4").write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
    (tmp_path / "absolute.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/real.mp4\n")
    calls = observe(VIDEOS, tmp_path)
    assert violations(calls, tmp_path) == []
    opened = {(mark, line.split('"')[1]) for mark, line in calls if line.startswith("openat")}
    videos = {(mark, name) for mark, name in opened if name.endswith(".mp4")}
    assert {(mark, Path(name).name) for mark, name in videos} == {(mark, mark) for mark, _ in calls}
