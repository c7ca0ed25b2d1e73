"""Public models are downloaded once by their names, checked at each use, and never half used."""

import errno
import hashlib
import io
import multiprocessing
import os
import random
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import videoattn
from tests.cli.test_full_disk import largest_file
from tests.weights.published import DOWNLOADED, published_file
from tests.weights.server import Answer, Server, body, serve, status
from videoattn.data.synthetic import demo_clip, encode_clip
from videoattn.weights import PUBLIC, load_public
from videoattn.weights.download import DownloadError, cache_folder, cached_file, fetch

SMALL = "pytorchvideo/c2d_r50"  # of the rows without a published SHA-256
PATH = "/pytorchvideo/model_zoo/kinetics/C2D_8x8_R50.pyth"
HASHED = "torchvision/resnet18"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server in the place of all others, and an empty cache."""
    with serve() as server:
        monkeypatch.setenv("VIDEOATTN_MIRROR", server.address)
        monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


@pytest.fixture(scope="module")
def data() -> bytes:
    return published_file(SMALL)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a clip of UCF101 if VIDEOATTN_DATA names a folder with some, or a synthetic one."""
    if root := os.environ.get("VIDEOATTN_DATA"):
        return min(Path(root, "ucf101-11/videos").rglob("*.mp4"))
    path = tmp_path_factory.mktemp("clips") / "grows.mp4"
    encode_clip(path, demo_clip("grows", seed=0, split="test", number=0))
    return path


def path_of(name: str) -> str:
    return "/" + (PUBLIC[name].url or "").split("/", 3)[3]


def with_hash(monkeypatch: pytest.MonkeyPatch, name: str, data: bytes) -> None:
    """Replaces a published SHA-256 by the one of the file that the test serves."""
    row = PUBLIC[name]
    if row.file.sha256:
        digest = hashlib.sha256(data).hexdigest()[: len(row.file.sha256)]
        monkeypatch.setitem(PUBLIC, name, replace(row, file=row.file._replace(sha256=digest)))


def leftovers(folder: Path) -> list[str]:
    """Returns the names of all files that are neither a lock nor a record."""
    names = (path.name for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith((".lock", ".sha256")))


@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_published_model_downloads_loads_and_predicts(
    name: str, server: Server, clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the published sampling; on one view, and of fewer pixels and frames, to save time."""
    data = published_file(name)
    server.answers[path_of(name)] = body(data)
    with_hash(monkeypatch, name, data)
    monkeypatch.setenv("VIDEOATTN_NONCOMMERCIAL", "1")
    frames = 16 if name.endswith("/i3d_rgb") else 8
    small = [
        "test.num_clips=1", "test.num_crops=1", f"clip.num_frames={frames}", "test.short_side=40",
        "test.height=32", "test.width=32",
    ]  # fmt: skip
    predictor = videoattn.load(name, overrides=small)
    assert server.requests == {path_of(name): 1}
    best, *others = predictor(clip)
    assert len(others) == len(predictor.class_names) - 1
    last = dict([best, *others])[predictor.class_names[-1]]  # of the class with the largest bias
    assert last == best.probability > others[-1].probability  # bfloat16 may make the best equal
    row = PUBLIC[name].preprocessing
    assert predictor.config.clip.mean == row.mean
    assert predictor.folder == Path("runs") / name.replace("/", "_")
    fetch(name)
    assert server.num_requests == 1
    assert cached_file(PUBLIC[name]).read_bytes() == data
    cached_file(PUBLIC[name]).unlink()


def test_the_published_views_are_used(server: Server, data: bytes) -> None:
    server.answers[PATH] = body(data)
    config = videoattn.load(SMALL).config
    assert (config.test.num_clips, config.test.num_crops, config.test.height) == (10, 3, 256)
    assert (config.clip.num_frames, config.clip.frame_stride) == (8, 8)


def test_the_address_license_and_size_are_printed_once(
    server: Server, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers[PATH] = body(data)
    model = load_public(SMALL)
    file = cache_folder() / "weights/dl.fbaipublicfiles.com" / PATH[1:]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"{SMALL}: downloading {server.address}{PATH} (license: Apache-2.0)",
        f"{SMALL}: {len(data) / 1e6:.1f} MB in {file}",
    ]
    again = load_public(SMALL)
    assert capsys.readouterr().err == ""
    assert torch.equal(model.fc.bias, again.fc.bias)
    assert leftovers(cache_folder()) == ["C2D_8x8_R50.pyth"]


@pytest.mark.parametrize(
    ("home", "xdg", "expected"),
    [
        ("/h", "/x", "/h"),
        ("", "/x", "/x/videoattn"),
        ("", "", f"{Path.home()}/.cache/videoattn"),
    ],
)
def test_the_folder_of_the_cache(
    home: str, xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOATTN_HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert str(cache_folder()) == expected


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("page", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404), r"PATH could not be downloaded \(404 Not Found\); if you have the file: "),
        (status(503), r"PATH could not be downloaded \(503 Service Unavailable\); if you have"),
        (body(b"<!DOCTYPE html><p>Log in"), "PATH is not the published file: a web page, not"),
        (body(b""), "PATH is not the published file: the file is empty"),
        (body(b"version https://git-lfs.github.com/spec/v1"), "published file: a Git LFS pointer"),
        (body(b"nonsense"), "PATH is not the published file: not a PyTorch checkpoint"),
        (body(zipped(b"x")), "PATH is not the published file: the checkpoint is cut short or dam"),
    ],
)  # fmt: skip
def test_answers_that_are_not_the_file(server: Server, answer: Answer, message: str) -> None:
    server.default = answer
    with pytest.raises(DownloadError, match=message.replace("PATH", PATH)):
        fetch(SMALL)
    assert leftovers(cache_folder()) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_answer_is_refused(server: Server, data: bytes, share: float) -> None:
    server.default = body(data[: int(share * len(data))], claimed=len(data))
    with pytest.raises(DownloadError, match="is not the published file: the checkpoint is cut sh"):
        fetch(SMALL)
    assert leftovers(cache_folder()) == []
    server.default = body(data)
    assert fetch(SMALL).read_bytes() == data


def test_a_file_with_another_hash_is_refused(server: Server, data: bytes) -> None:
    server.default = body(data)
    digest = hashlib.sha256(data).hexdigest()[:8]
    with pytest.raises(
        DownloadError,
        match=f"resnet18-f37072fd.pth is not the published file: .*its SHA-256 starts with {digest}"
        ", not f37072fd; if you have the file: ",
    ):
        fetch(HASHED)
    assert leftovers(cache_folder()) == []


def test_a_file_that_changed_since_its_first_download_is_refused(
    server: Server, data: bytes
) -> None:
    server.default = body(data)
    file = fetch(SMALL)
    file.write_bytes(published_file("pytorchvideo/slow_r50"))
    with pytest.raises(
        DownloadError,
        match=r"C2D_8x8_R50.pyth: changed since it was first downloaded: its SHA-256 starts with "
        r"\w{16}, not \w{16}; delete it",
    ):
        load_public(SMALL)
    file.unlink()
    server.default = body(file_of_another_day(data))
    with pytest.raises(DownloadError, match="changed since it was first downloaded"):
        fetch(SMALL)
    server.default = body(data)
    assert fetch(SMALL).read_bytes() == data


def file_of_another_day(data: bytes) -> bytes:
    """Returns a file with the same weights and other bytes."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    file = io.BytesIO()
    torch.save(content | {"date": 1}, file)
    return file.getvalue()


def test_a_file_that_the_user_put_there_is_recorded(server: Server, data: bytes) -> None:
    file = cached_file(PUBLIC[SMALL])
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert fetch(SMALL) == file
    assert file.with_name(f"{file.name}.sha256").read_text() == (
        f"{hashlib.sha256(data).hexdigest()}\n"
    )
    assert server.num_requests == 0


def test_no_route(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve() as server:
        address = server.address
    monkeypatch.setenv("VIDEOATTN_MIRROR", address)
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path))
    with pytest.raises(
        DownloadError, match=rf"{address}{PATH} could not be downloaded \(.*refused"
    ):
        fetch(SMALL)


def test_a_stalled_server(server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("videoattn.weights.download.STALLED_SECONDS", 0.05)
    server.default = body(data, seconds=20)
    with pytest.raises(DownloadError, match=r"could not be downloaded \(.*timed out"):
        fetch(SMALL)
    assert leftovers(cache_folder()) == []


def test_a_full_disk(server: Server, data: bytes) -> None:
    server.default = body(data)
    message = (
        rf"{PATH} cannot be kept in .*: {os.strerror(errno.EFBIG)}; free some space, or set VI"
    )
    with largest_file(1000), pytest.raises(DownloadError, match=message):
        fetch(SMALL)
    assert leftovers(cache_folder()) == []


def test_a_cache_that_cannot_be_written(
    server: Server, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.default = body(data)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        message = r"cannot be kept in .*cache/weights/.*: Read-only file system; free some space"
        with pytest.raises(DownloadError, match=message):
            fetch(SMALL)
    assert server.num_requests == 0
    file = fetch(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert fetch(SMALL) == file  # an existing file needs no lock


def test_offline(server: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    server.default = body(data)
    monkeypatch.setenv("VIDEOATTN_OFFLINE", "1")
    message = rf"C2D_8x8_R50.pyth is not in the cache \(.*{PATH}\), and VIDEOATTN_OFFLINE forbids"
    with pytest.raises(DownloadError, match=message):
        fetch(SMALL)
    assert server.num_requests == 0
    monkeypatch.setenv("VIDEOATTN_OFFLINE", "0")
    fetch(SMALL)
    monkeypatch.setenv("VIDEOATTN_OFFLINE", "1")
    fetch(SMALL)
    assert server.num_requests == 1


def test_a_license_that_forbids_commercial_use(server: Server) -> None:
    with pytest.raises(
        DownloadError,
        match=r"nonlocal/i3d_baseline_8x8: its license, CC-BY-NC-4.0, forbids commercial use; if "
        r"you accept it, set VIDEOATTN_NONCOMMERCIAL=1 to download https://dl.fb.*400k.pkl; if you",
    ):
        fetch("nonlocal/i3d_baseline_8x8")
    assert server.num_requests == 0


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in DOWNLOADED])
def test_models_without_an_address(name: str) -> None:
    assert name.startswith("pyslowfast/")
    with pytest.raises(DownloadError, match=f"^{name}: no file is published: .*; .*; if you have"):
        load_public(name)


@pytest.mark.parametrize("mirror", ["host:80", "ftp://host", "http://", "file:///etc"])
def test_invalid_mirrors(mirror: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOATTN_MIRROR", mirror)
    with pytest.raises(ValueError, match=f"VIDEOATTN_MIRROR: got '{mirror}'; need http://HOST or"):
        fetch(SMALL)


def test_a_file_in_the_cache_of_torch_hub_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = published_file(HASHED)
    with_hash(monkeypatch, HASHED, data)
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    row = PUBLIC[HASHED]
    url = f"https://download.pytorch.org/models/{name}"
    monkeypatch.setitem(PUBLIC, HASHED, replace(row, file=row.file._replace(url=url)))
    file = tmp_path / "torch/hub/checkpoints" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert fetch(HASHED) == file
    assert server.num_requests == 0
    file.write_bytes(data[:-1])
    with pytest.raises(DownloadError, match=f"{name}: is not the published one: its SHA-256 start"):
        fetch(HASHED)


def fetch_in(environment: dict[str, str], name: str) -> None:
    os.environ.update(environment)  # a new process has that of the first test
    fetch(name)


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Callable[[], multiprocessing.Process]:
    """Returns a function that calls `fetch` in a new process, which has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.weights.test_download"])
    environment = dict(os.environ)

    def start() -> multiprocessing.Process:
        process = context.Process(target=fetch_in, args=(environment, SMALL))
        process.start()
        return process

    return start


def test_four_processes_make_one_request(
    server: Server, data: bytes, start: Callable[[], multiprocessing.Process]
) -> None:
    server.default = body(data, seconds=0.5)
    started = [start() for _ in range(4)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0, 0, 0]
    assert server.num_requests == 1
    assert cached_file(PUBLIC[SMALL]).read_bytes() == data


def test_a_killed_download_leaves_nothing_that_is_used(
    server: Server, data: bytes, start: Callable[[], multiprocessing.Process]
) -> None:
    """tools/kill_downloads.py kills 50."""
    server.default = body(data, seconds=0.3)
    draw = random.Random(0)
    for _ in range(5):
        process = start()
        while not server.num_requests:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.25))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert not cached_file(PUBLIC[SMALL]).exists()
        server.requests.clear()
    server.default = body(data)
    assert fetch(SMALL).read_bytes() == data
    assert leftovers(cache_folder()) == ["C2D_8x8_R50.pyth"]
