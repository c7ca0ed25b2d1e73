"""Observes what the package does, and writes the observations that the tests here compare with.

The fixtures pin the behavior of commit 54d2265, before the packages were rearranged:

    git worktree add ../old 54d2265
    PYTHONPATH=../old python tests/pinned/write.py

The script uses the command line and the few imports in `_api`, so that it runs on every commit
whose imports `_api` knows. The tests call the same functions. Writing the fixtures again is right
only after a deliberate change of numbers, in a commit that gives the reason. The clips and the
files in `fixtures.tar.xz` are then written again too; `--keep-clips` keeps the clips.

`pinned.json` holds the observations. `fixtures.tar.xz` holds clips (H.264, 64 x 48 pixels), the
same clips as lists with an index and as shards, a run, an interrupted run and a shared folder.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import videoattn  # before torchvision: see _compat.py

HERE = Path(__file__).parent
PINNED, ARCHIVE = HERE / "pinned.json", HERE / "fixtures.tar.xz"

NAMES = {
    "videoattn": ("__version__", "load", "load_public"),
    "videoattn.attention": (
        "NonLocal", "insert_attention", "insertion_places", "record_attention",
    ),
    "videoattn.models.resnet3d": ("ResNet3d", "Stem"),
    "videoattn.models.i3d": ("InceptionI3d",),
    "videoattn.models.tsn": ("TSN",),
    "videoattn.weights": (
        "PUBLIC", "explain", "from_state_dict", "load_public", "read_state_dict", "to_public",
    ),
}  # fmt: skip
"""Module -> the names that users import from it."""

RUN = """\
name: tiny
data: {root: clips, num_workers: 0}
clip: {num_frames: 4, frame_stride: 4, height: 32, width: 32}
augment: {area: [0.5, 1.0]}
test: {num_clips: 2, short_side: 36, batch_size: 8}
model: {name: i3d_r18, options: {width: 1}, attention: {name: non_local}}
train: {num_epochs: 2, batch_size: 5, lr: 0.02, precise_norm_clips: 9, precision: float32}
"""
"""The recipe of the run folder, the shared folder and the interrupted run."""

TRAINED = {
    "interaction": """\
name: interaction
data: {root: clips, num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 32, width: 32}
augment: {crop: multi_scale, mixup: 0.4, cutmix: 0.3}
test: {num_crops: 3, short_side: 36}
model:
  name: slow_r18
  options: {width: 4, dropout: 0.2}
  attention: {name: interaction}
  edition: 1
train:
  num_epochs: 2
  batch_size: 4
  num_clips: 2
  accumulate_steps: 2
  optimizer: adamw
  lr: 0.002
  schedule: one_cycle
  weight_decay: 0.05
  label_smoothing: 0.1
  clip_norm: 5.0
  precise_norm_clips: 8
  precision: float32
""",
    "cbam": """\
name: cbam
seed: 3
data: {root: clips, num_workers: 0}
clip: {num_frames: 4, frame_stride: 2, height: 32, width: 32}
augment: {crop: short_side, short_side: [34, 48], rand_augment: 1}
test: {num_clips: 2, short_side: 36}
model: {name: c2d_r18, options: {width: 16}, attention: {name: cbam}}
train:
  num_epochs: 2
  batch_size: 3
  lr: 0.02
  schedule: multistep
  milestones: [1]
  warmup_epochs: 0.5
  precision: float32
""",
}
"""Recipes whose losses and final weights are pinned, and no files."""

STREAMS = {
    "dense_i3d": """\
name: dense_i3d
data: {root: clips, num_workers: 0}
clip: {num_frames: 4, frame_stride: 3, height: 32, width: 32}
augment: {color_jitter: 0.3, grayscale: 0.3, erase: 0.3, rand_augment: 2}
test: {num_clips: 2, num_crops: 3, short_side: 36}
train: {batch_size: 4}
""",
    "tsn_segments_from_lists": """\
name: tsn_segments
data:
  root: indexed
  layout: list
  train_split: train.txt
  test_split: test.txt
  num_workers: 0
clip: {sampling: segments, num_frames: 3, height: 32, width: 32}
augment: {crop: multi_scale}
test: {num_crops: 10, short_side: 36}
model: {name: tsn_r18}
train: {batch_size: 4}
""",
    "shards_two_clips": """\
name: shards_two_clips
data: {root: shards, layout: shards, num_workers: 0}
clip: {num_frames: 4, frame_stride: 2, target_fps: 10, height: 32, width: 32}
augment: {crop: short_side, short_side: [34, 48]}
test: {num_clips: 2, short_side: 36}
train: {batch_size: 4, num_clips: 2}
""",
    "pyslowfast": """\
name: pyslowfast
data: {root: clips, num_workers: 0}
clip: {arithmetic: pyslowfast, num_frames: 4, frame_stride: 2, height: 32, width: 32}
augment: {crop: short_side, short_side: [34, 48]}
test: {num_clips: 3, num_crops: 3, use_offset: true, short_side: 32}
train: {batch_size: 4}
""",
    "mmaction2": """\
name: mmaction2
data: {root: clips, num_workers: 0}
clip:
  arithmetic: mmaction2
  num_frames: 4
  frame_stride: 2
  keep_tail_frames: true
  height: 32
  width: 32
augment: {crop: multi_scale}
test: {num_clips: 2, twice_sample: true, short_side: 36}
train: {batch_size: 4}
""",
}
"""Recipes whose batches are pinned."""

LOGITS_OF = ("run", "run/best.safetensors", "shared")
CLASSES = ("grows", "moves_up", "turns_clockwise")
VIDEO = Path("clips/test/moves_up/0000.mp4")
HEIGHT, WIDTH = 48, 64
NUM_CLIPS = {"train": 3, "test": 2}


def _api() -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Returns how a recipe is read, how its loader is made, and a single process."""
    try:
        from videoattn.engine.parallel import Parallel
        from videoattn.recipe.data import make_loader
        from videoattn.recipe.load import load

        return load, make_loader, Parallel()
    except ImportError:
        from videoattn.build import make_loader
        from videoattn.config import load
        from videoattn.engine.distributed import Distributed

        return load, make_loader, Distributed()


def machine() -> dict[str, str]:
    """Returns what decides the last bits of float sums: they are compared where it is the same."""
    import torchvision

    cpu = {"vendor_id": "", "cpu family": "", "model": ""}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().partition("\n\n")[0].splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in cpu:
            cpu[key.strip()] = value.strip()
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(cpu.values()),
    }


def command(*words: object) -> str:
    """Runs `videoattn WORDS` in this process; returns what it prints.

    Raises:
        RuntimeError: If the command fails.
    """
    argv, sys.argv = sys.argv, ["videoattn", *map(str, words)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_module("videoattn", run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"videoattn {' '.join(map(str, words))}: {stop.code}") from stop
    finally:
        sys.argv = argv
    return printed.getvalue()


def commands(*words: str) -> dict[str, dict[str, list[str]]]:
    """Returns the arguments and flags of a command and of those below it, except `bench`."""
    sections = _help_sections(command(*words, "--help"))
    if "Commands" not in sections:
        usage = sections["Usage"][0].partition("[OPTIONS]")[2]
        return {
            " ".join(words): {
                "arguments": re.findall(r"\w+", usage.lower()),
                "flags": sorted(re.findall(r"^ *(--[\w-]+)", "\n".join(sections["Options"]), re.M)),
            }
        }
    found = {}
    for line in sections["Commands"]:
        name = re.match(r"  (\w[\w-]*)", line)
        if name and name[1] != "bench":
            found |= commands(*words, name[1])
    return found


def _help_sections(text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        heading = re.match(r"(Usage|Arguments|Options|Commands):(.*)", line)
        if heading:
            title, line = heading[1], heading[2]
        if title == "Usage" and not line.strip():
            title = ""
        if title == "Usage" and sections.get(title):
            sections[title][0] += line  # a long usage continues on the next line
        else:
            sections.setdefault(title, []).append(line)
    return sections


def attention_list() -> dict[str, list[str]]:
    """Returns each attention system's map shape, parameters and MACs, as `list attention` has."""
    rows = _table(_documentation("attention"))
    return {row[0]: row[3:6] for row in rows}


def weights_list() -> dict[str, list[str]]:
    """Returns each public model's network, frames x stride, accuracy and download address."""
    found = {}
    for row in _table(_documentation("weights")):
        accuracy = re.search(r"([\d.]+) %", row[4])
        address = re.search(r"\((.+)\)", row[6])
        found[row[0]] = [
            row[1], row[2], accuracy[1] if accuracy else "", address[1] if address else "",
        ]  # fmt: skip
    return found


def _documentation(table: str) -> str:
    """Returns a table of the documentation in Markdown."""
    script = Path(__file__).parents[2] / "tools" / "write_docs.py"
    if not script.exists():  # the first commits
        return command("list", table, "--markdown")
    words = [sys.executable, str(script), table]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _table(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def pixels(root: Path) -> dict[str, str]:
    """Returns the SHA-256 of each clip's frames, as PyAV alone decodes them to RGB."""
    hashes = {}
    for path in sorted(root.rglob("*.mp4")):
        digest = hashlib.sha256()
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                digest.update(frame.to_ndarray(format="rgb24").tobytes())
        hashes[path.relative_to(root).as_posix()] = digest.hexdigest()
    return hashes


def batches(recipe: str, subset: str, epoch: int) -> list[dict[str, Any]]:
    """Returns the batches of a recipe's epoch: indices, labels, shape, bytes and mean levels."""
    load, make_loader, parallel = _api()
    path = Path("stream.yaml")
    path.write_text(recipe)
    found = []
    for batch in make_loader(load(path), subset, parallel).epoch(epoch):
        frames = batch.frames.contiguous()
        found.append(
            {
                "indices": batch.indices.tolist(),
                "labels": batch.labels.tolist(),
                "shape": list(frames.shape),
                "sha256": hashlib.sha256(frames.numpy().tobytes()).hexdigest(),
                "levels": [round(float(clip.float().mean()), 2) for clip in frames],
            }
        )
    return found


def stream(recipe: str) -> dict[str, Any]:
    """Returns two epochs of training batches, and the test batches."""
    return {
        "train": [batches(recipe, "train", epoch) for epoch in (0, 1)],
        "test": batches(recipe, "test", 0),
    }


def train(recipe: str, *words: object) -> Path:
    """Trains a recipe on the CPU; returns the run's folder."""
    path = Path("recipe.yaml")
    path.write_text(recipe)
    command("train", path, "--device", "cpu", *words)
    name = re.search(r"^name: (\w+)", recipe)
    assert name is not None
    return Path("runs") / name[1]


def curve(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("clips_per_second", "wait_share")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def final_weights(run: Path) -> dict[str, Tensor]:
    """Returns the weights in the run's last checkpoint."""
    state: dict[str, Tensor] = torch.load(run / "checkpoint-last.pt", weights_only=True)["model"]
    return state


def weights_hash(run: Path) -> str:
    """Returns the SHA-256 of the names and values of the run's last weights."""
    digest = hashlib.sha256()
    for name, value in sorted(final_weights(run).items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_norms(run: Path) -> dict[str, float]:
    """Returns the Euclidean norm of each tensor of more than one axis."""
    state = final_weights(run)
    return {name: float(value.norm()) for name, value in state.items() if value.ndim > 1}


def predictions(path: Path) -> list[list[str]]:
    """Returns the rows of predictions.csv, with paths relative to the clips."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    return [[row[0], row[1].partition("clips/")[2], *row[2:]] for row in rows[1:]]


def predicted(text: str) -> list[list[str]]:
    """Returns the share and class of each line that `predict` prints."""
    return [list(pair) for pair in re.findall(r"^ +([\d.]+) % +(\w+)", text, re.M)]


def logits(path: Path) -> list[list[float]]:
    """Returns the logits of `videoattn.load(path)` for two fixed clips."""
    count = 2 * 3 * 4 * 32 * 32
    video = torch.from_numpy(np.sin(np.arange(count) ** 1.5).astype(np.float32))
    with torch.no_grad():
        found: list[list[float]] = videoattn.load(path)(video.view(2, 3, 4, 32, 32)).tolist()
    return found


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Works in `folder` with one thread: runs go to runs/ in it, and sums have one order."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


class _Interrupted(BaseException):
    pass


def _write_clips(root: Path) -> None:
    from videoattn.data.synthetic import demo_clip

    for split, count in NUM_CLIPS.items():
        for name in CLASSES:
            for number in range(count):
                clip = demo_clip(name, seed=0, split=split, number=number)
                small = F.interpolate(clip.frames.float(), (HEIGHT, WIDTH), mode="area")
                path = root / split / name / f"{number:04d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                _encode(path, small.round().byte(), clip.frame_rate)


def _encode(path: Path, frames: Tensor, frame_rate: int) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=Fraction(frame_rate))
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.thread_count = 1
        # Without mbtree=0, x264 wrote other bytes from call to call.
        video.options = {
            "crf": "28",
            "g": "12",
            "flags": "+bitexact",
            "x264-params": "mbtree=0",
        }
        for image in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())


def _write_lists_and_shards() -> None:
    for split in NUM_CLIPS:
        lines = []
        for path in sorted(Path("clips", split).rglob("*.mp4")):
            copy = Path("indexed") / path.relative_to("clips")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            lines.append(f"{copy.relative_to('indexed')} {CLASSES.index(path.parent.name)}\n")
        Path("indexed", f"{split}.txt").write_text("".join(lines))
    command("prepare", "index", "indexed", "--workers", 1)
    Path("shards.yaml").write_text(RUN)
    command("prepare", "shards", "shards.yaml", "shards", "--max-mb", 0.04, "--workers", 1)


def _write_runs() -> None:
    train(RUN).rename("run")
    command("export", "run", "shared")
    replace = os.replace

    def replace_and_stop(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name == "checkpoint-last.pt":
            progress = torch.load(target, weights_only=True)["progress"]
            if (progress["epoch"], progress["step"]) == (1, 1):
                raise _Interrupted

    os.replace = replace_and_stop
    try:
        train(RUN, "train.save_every_steps=1")
    except _Interrupted:
        Path("runs/tiny").rename("interrupted")
    finally:
        os.replace = replace


def observe() -> dict[str, Any]:
    """Returns all that is pinned, in a folder that holds the fixtures."""
    runs = {name: train(recipe) for name, recipe in TRAINED.items()} | {"tiny": Path("run")}
    command("test", "run", "--device", "cpu")
    tested = predictions(Path("run/test/predictions.csv"))
    return {
        "machine": machine(),
        "commands": commands(),
        "attention_list": attention_list(),
        "weights_list": weights_list(),
        "pixels": pixels(Path("clips")),
        "streams": {name: stream(recipe) for name, recipe in STREAMS.items()},
        "runs": {
            name: {
                "curve": curve(run),
                "weights": weights_hash(run),
                "norms": weights_norms(run),
            }
            for name, run in runs.items()
        },
        "predictions": tested,
        "predicted": predicted(command("predict", "run", VIDEO, "--device", "cpu")),
        "logits": {path: logits(Path(path)) for path in LOGITS_OF},
    }


def _write_archive() -> None:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for name in ("clips", "indexed", "shards", "run", "shared", "interrupted"):
            archive.add(name, filter=plain)


def unpack(folder: Path) -> None:
    """Writes the files of the archive to `folder`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    for module, names in NAMES.items():
        for name in names:
            getattr(__import__(module, fromlist=[name]), name)
    with tempfile.TemporaryDirectory() as name, in_folder(Path(name)):
        if "--keep-clips" in sys.argv:
            with tarfile.open(ARCHIVE) as archive:
                members = [m for m in archive.getmembers() if m.name.startswith("clips")]
                archive.extractall(members=members, filter="data")
        else:
            _write_clips(Path("clips"))
        _write_lists_and_shards()
        _write_runs()
        _write_archive()
        found = observe()
    assert all(math.isfinite(value) for rows in found["logits"].values() for value in rows[0])
    PINNED.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{videoattn.__file__}: {PINNED.stat().st_size} + {ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
