import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import MakeClip
from tests.data.test_dataset import train_set
from videoattn.data import dataset as dataset_module
from videoattn.data.decode import Video, count_frames, decode, frame_times
from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists import read_folders
from videoattn.data.lists.files import walk
from videoattn.data.prepare.index import read_index, write_index
from videoattn.data.prepare.reencode import Reencode, check_settings, reencode, scaled
from videoattn.data.prepare.verify import (
    Journal,
    Record,
    describe,
    examine,
    probe,
    verify,
    verify_folder,
    videos_in,
)
from videoattn.data.workers import Crash, in_processes


def at(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 4:
        os._exit(3)
    if item == 5:
        time.sleep(60)
    return item * item


def test_a_crash_or_a_hang_affects_only_its_item() -> None:
    results = dict(in_processes(at, range(9), num_workers=2, seconds=1.5))
    assert results == {
        0: 0, 1: 1, 3: 9, 6: 36, 7: 49, 8: 64,
        2: Crash("ended the process that read it (SIGKILL)"),
        4: Crash("ended the process that read it (exit code 3)"),
        5: Crash("took more than 1.5 s"),
    }  # fmt: skip
    assert list(in_processes(at, [], num_workers=2, seconds=1.0)) == []


def test_processes_end_with_the_generator() -> None:
    others = set(multiprocessing.active_children())
    results = in_processes(at, range(6, 9), num_workers=2, seconds=10.0)
    next(results)
    assert len(set(multiprocessing.active_children()) - others) == 2
    results.close()  # type: ignore[attr-defined]
    assert not set(multiprocessing.active_children()) - others


@pytest.mark.parametrize(("num_workers", "seconds"), [(0, 1.0), (1, 0.0)])
def test_no_process_or_no_time(num_workers: int, seconds: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"^num_workers, seconds: got \d and \d; need 1 or more, and above 0$",
    ):
        list(in_processes(at, [1], num_workers=num_workers, seconds=seconds))


def noted(log: Path, path: Path) -> Record:
    """Logs the file; one that contains "kill" kills the process."""
    with log.open("a") as file:
        file.write(f"{path.name}\n")
    if path.read_text() == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"text": path.read_text()} if path.read_text() else {"error": "it is empty"}


def looked(root: Path, journal: Journal) -> tuple[dict[str, str], list[str]]:
    """Returns the records of a folder, and the files that were inspected for them."""
    log = root.parent / "log"
    log.write_text("")
    items = {path: root / path for path in sorted(walk(root))}
    records = list(examine(partial(noted, log), root, items, journal, num_workers=1, seconds=20.0))
    journal.close()
    found = {r["path"]: r.get("error") or r["text"] for r in records}
    return found, sorted(log.read_text().split())


def test_a_resumed_run_inspects_only_new_changed_or_crashed_files(tmp_path: Path) -> None:
    root, path = tmp_path / "root", tmp_path / "out" / "journal.jsonl"
    (root / "a").mkdir(parents=True)
    for name, text in {"a/1": "one", "2": "", "3": "kill", ".hidden": "x"}.items():
        (root / name).write_text(text)
    found, names = looked(root, Journal(path, {"about": 1}))
    crash = "ended the process that read it (SIGKILL)"
    assert found == {"2": "it is empty", "3": crash, "a/1": "one"}
    assert names == ["1", "2", "3"]
    (root / "2").write_text("now two")
    (root / "4").write_text("four")
    with path.open("a") as file:
        file.write('{"path": "4", "te')  # a run that was killed while it wrote
    found, names = looked(root, Journal(path, {"about": 1}))
    assert found == {"2": "now two", "3": crash, "4": "four", "a/1": "one"}
    assert names == ["2", "3", "4"]
    assert all(line.endswith("}") for line in path.read_text().splitlines())
    with pytest.raises(
        ValueError,
        match=r"journal\.jsonl belongs to a run with {'about': 1}, and this run has {'about': 2}; "
        "choose another folder, or remove it to start again$",
    ):
        Journal(path, {"about": 2})
    path.write_text('{"about": 1}\n[]\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl is damaged \(.+\); remove it to start"):
        Journal(path, {"about": 1})


def test_verify(make_clip: MakeClip, tmp_path: Path) -> None:
    whole = make_clip("whole.mp4", 12, size=(32, 48))
    facts = {"num_frames": 12, "fps": 25.0, "height": 32, "width": 48, "key_frames": 2}
    assert verify(whole) == facts
    data = bytearray(whole.read_bytes())
    with Video(whole) as video:
        packet = list(video.packets())[5]
    assert packet.pos is not None
    data[packet.pos : packet.pos + 4] = b"\xff" * 4  # its length: the rest cannot be read
    (tmp_path / "damaged.mp4").write_bytes(data)
    record = verify(tmp_path / "damaged.mp4")
    assert record["error"].startswith("damaged: ")
    assert 0 < record["num_frames"] < 12
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("no video")
    assert verify(tmp_path / "empty.mp4") == {"error": "the file is empty (0 bytes)"}
    assert verify(tmp_path / "text.avi")["error"].startswith("cannot be opened as a video")
    assert verify(tmp_path / "none.mp4") == {"error": "No such file or directory"}
    assert videos_in(tmp_path) == ["damaged.mp4", "empty.mp4", "text.avi", "whole.mp4"]
    with pytest.raises(ValueError, match=r"holds no video$"):
        videos_in(tmp_path / "none")


def test_verify_folders_of_images(tmp_path: Path) -> None:
    for i in range(1, 4):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{i}.png")
    size = {"num_frames": 3, "height": 6, "width": 8}
    assert verify_folder((FrameFolder(tmp_path, "{}.png"), 3)) == size
    too_few = {"error": "damaged: 3 of 4 images exist", **size}
    assert verify_folder((FrameFolder(tmp_path, "{}.png"), 4)) == too_few
    (tmp_path / "2.png").write_text("no picture")
    assert verify_folder((FrameFolder(tmp_path, "{}.png"), 3))["error"].startswith(
        "2.png is damaged: "
    )
    assert verify_folder((FrameFolder(tmp_path, "{}.jpg"), 3)) == {
        "error": "no frame 1.jpg in the folder"
    }


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_descriptions_have_the_counted_frames(name: str, codec: str, make_clip: MakeClip) -> None:
    path = make_clip(name, 20, size=(32, 64), codec=codec)
    record = describe(path)
    assert (record["num_frames"], record["fps"]) == count_frames(path)
    assert (record["height"], record["width"]) == (32, 64)
    assert record["key_frames"] == verify(path)["key_frames"] > 0


REAL = [
    "rotation/video_90.mov", "timing/unordered.mov", "codec/var_fps_video.mp4",
    "codec/newtonscradle.gif", "derived_truncated/avi_cut_60pct.avi", "codec/realshort.mp4",
    "ucf101/JumpingJack/v_JumpingJack_g22_c04.avi", "codec/h265_10bits.mp4",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_described_and_reencoded(name: str, real_data: Path, tmp_path: Path) -> None:
    path, out = real_data / "fixtures" / name, tmp_path / "out.mp4"
    count, fps = count_frames(path)
    info = probe(path)
    record = describe(path)
    assert (record["num_frames"], record["fps"]) == (count, fps)
    assert (record["height"], record["width"]) == (info.height, info.width)
    done = reencode(Reencode(path, out, 64, 8))
    small = probe(out)
    assert done["num_frames"] == small.num_frames == info.num_frames
    assert (done["height"], done["width"]) == (small.height, small.width)
    # at most 2 pixels from the same proportions, as sizes are even; not larger than it was
    assert min(small.height, small.width) == min(64, min(info.height, info.width) // 2 * 2)
    assert abs(small.width * info.height / info.width - small.height) <= 2
    asked = [0, info.num_frames // 2, info.num_frames - 1]
    means = [decode(file, asked).float().mean(dim=(2, 3)) for file in (path, out)]
    assert float((means[0] - means[1]).abs().max()) < 4  # 10 bits are converted more darkly
    assert np.abs(frame_times(path) - frame_times(out)).max() < 1e-6


def test_reencoded_frames_times_and_key_frames(make_clip: MakeClip, tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 11, 12, 13, 20, 21, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 50]
    path = make_clip("in.mkv", len(times), size=(66, 98), times=times)
    out = tmp_path / "deep" / "out.mp4"
    record = reencode(Reencode(path, out, 32, 4))
    assert record == {
        "num_frames": 21, "out_bytes": out.stat().st_size, "height": 32, "width": 48
    }  # fmt: skip
    assert frame_times(out) == pytest.approx(np.array(times) / 25, abs=1e-3)
    grey = decode(out, range(21)).float().mean(dim=(1, 2, 3))
    assert grey.tolist() == pytest.approx([20 + 4 * i for i in range(21)], abs=1.5)
    with Video(out) as video:
        assert video.packet_index is not None
        keys = video.packet_index.keys
    assert len(keys) >= 6
    assert np.diff([*keys, 21]).max() <= 4
    assert [file.name for file in out.parent.iterdir()] == ["out.mp4"]


def test_a_broken_video_leaves_no_copy(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    record = reencode(Reencode(tmp_path / "text.avi", tmp_path / "out" / "text.mp4", 32, 4))
    assert record["error"].startswith("cannot be opened as a video")
    assert list((tmp_path / "out").iterdir()) == []


def test_sizes_of_copies() -> None:
    assert scaled(320, 240, 128) == (170, 128)
    assert scaled(240, 320, 128) == (128, 170)
    assert scaled(99, 101, 128) == (100, 100)  # to even numbers, and never larger otherwise
    assert scaled(1, 1, 128) == (2, 2)
    with pytest.raises(
        ValueError, match=r"^short_side: got 7; need an even number of pixels, 2 or more$"
    ):
        check_settings(7, 8)
    with pytest.raises(ValueError, match=r"^key_frame_interval: got 0; need 1 frame or more$"):
        check_settings(8, 0)


def test_with_an_index_no_frames_are_counted(
    thirteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (thirteen / "left" / "01.mp4").write_bytes(b"")
    names = videos_in(thirteen)
    records = [{"path": name, **describe(thirteen / name)} for name in names]
    want = [train_set(read_folders(thirteen))[0, i].frames for i in range(12) if i]
    write_index(thirteen, records)
    index = read_index(thirteen)
    assert index is not None
    assert list(index.paths) == names
    assert index.num_frames.tolist() == [0, *[r["num_frames"] for r in records[1:]]]
    assert index.key_frames[1:].min() > 0

    def fail(path: object) -> None:
        raise AssertionError(f"{path} was counted")

    monkeypatch.setattr(dataset_module.Video, "expect_frames", fail)
    data = train_set(read_folders(thirteen))
    assert all((data[0, i + 1].frames == frames).all() for i, frames in enumerate(want))
