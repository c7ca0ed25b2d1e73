"""Defines the readers of untrusted files whose input `fuzz.py readers` damages.

Each reader has a function that writes a small valid input into a folder, and one that reads it. One
file of the folder is damaged at a time. In zip and tar files, a member may be damaged instead, so
that inputs pass the checksums and reach the code after them.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from videoattn.attention.archive import load_maps, save_maps
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.data.decode import count_frames, decode
from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists import (
    read_class_list,
    read_frames,
    read_hmdb51,
    read_jester,
    read_kinetics,
    read_list,
    read_something,
    read_ucf101,
)
from videoattn.data.lists.files import all_videos
from videoattn.data.prepare.index import read_index, write_index
from videoattn.data.prepare.verify import Journal
from videoattn.data.shards import open_shards
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import Checkpoint, CheckpointMeta
from videoattn.engine.trackers import JsonLines
from videoattn.recipe.config import AttentionConfig, ClipConfig, Config, DataConfig, ModelConfig
from videoattn.recipe.load import load as load_recipe
from videoattn.recipe.load import to_dict, to_yaml
from videoattn.recipe.model import make_model
from videoattn.recipe.run import load as load_run
from videoattn.weights import read_state_dict

CLASSES = ["left", "right", "up", "down"]
VIDEOS = [f"{name}/{number}.mp4" for name in CLASSES for number in range(3)]


class Reader(NamedTuple):
    """A reader of files.

    Args:
        make: Writes a valid input into an empty folder.
        read: Reads the folder; its result is not used.
        files: Patterns of the files that are damaged.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: str = "*"


@cache
def network() -> tuple[dict[str, Tensor], CheckpointMeta]:
    """Returns the weights and the metadata of a small network with attention."""
    model = ModelConfig(
        "i3d_r18", {"width": 8}, attention=AttentionConfig("non_local", ("layer2.0",))
    )
    clip = ClipConfig(num_frames=4, height=32, width=32)
    config = to_dict(Config("fuzz", data=DataConfig(root="data"), clip=clip, model=model))
    meta: CheckpointMeta = {
        "config": config,
        "class_names": CLASSES,
        "preprocessing": {"mean": [0.45, 0.45, 0.45]},
    }
    return make_model(model, len(CLASSES)).state_dict(), meta


def _recipe(folder: Path) -> None:
    _, meta = network()
    config = load_recipe({**meta["config"], "train": {"milestones": [3, 5]}})
    (folder / "recipe.yaml").write_text(to_yaml(config))


def _run(folder: Path) -> None:
    state, meta = network()
    payload: Checkpoint = {
        "format": checkpoint.FORMAT,
        "version": "1.0",
        "model": state,
        "optimizer": {"state": {0: torch.zeros(3)}},
        "progress": {"epoch": 1},
        "best": {"accuracy": 0.5},
        **meta,
    }
    checkpoint.save(folder / checkpoint.LAST, payload)


def _public(folder: Path) -> None:
    state = {f"module.{key}": value for key, value in list(network()[0].items())[:12]}
    torch.save({"state_dict": state, "epoch": 3}, folder / "weights.pth")


def _public_old(folder: Path) -> None:
    state = {"model_state": dict(list(network()[0].items())[:12])}
    torch.save(state, folder / "weights.pyth", _use_new_zipfile_serialization=False)


def _caffe2(folder: Path) -> None:
    arrays = {key: value.numpy() for key, value in list(network()[0].items())[:12]}
    blobs = {"blobs": {**arrays, "lr": 0.1, "model_iter": np.int64(3)}}
    (folder / "weights.pkl").write_bytes(pickle.dumps(blobs, protocol=2))


def _read_weights(folder: Path) -> object:
    return [read_state_dict(path) for path in folder.iterdir()]


def _index(folder: Path) -> None:
    facts = {"num_frames": 30, "fps": 25.0, "height": 48, "width": 64, "key_frames": 1}
    records = [{"path": path, "bytes": 5000, **facts} for path in VIDEOS]
    records[3]["starts"] = [(12, 11), (24, 22)]
    write_index(folder, records)


def _read_index(folder: Path) -> object:
    index = read_index(folder)
    assert index is not None
    return all_videos(folder), [index.starts.get(name) for name in index.paths]


def _shards(folder: Path) -> None:
    shards = [{"name": f"{number:06d}.tar", "num_samples": 4} for number in range(2)]
    table = {"class_names": CLASSES, "shards": shards}
    (folder / "shards.json").write_text(json.dumps(table))
    for number in range(2):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as tar:
            for sample in range(4 * number, 4 * number + 4):
                about = {"path": f"a/{sample}.mp4", "num_frames": 30, "fps": 25.0}
                for suffix, data in (
                    ("mp4", bytes(600)), ("cls", b"1"), ("json", json.dumps(about).encode())
                ):  # fmt: skip
                    info = tarfile.TarInfo(f"{sample:08d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _read_shards(folder: Path) -> object:
    shards = open_shards(str(folder), ".")
    samples = shards.samples()
    wanted = [*range(min(len(shards), 6))]
    return samples, shards.order(torch.Generator(), 2), list(shards.read(wanted))


def _files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _lists(folder: Path) -> None:
    _files(folder / "videos", VIDEOS)
    labels = [CLASSES.index(name.partition("/")[0]) for name in VIDEOS]
    pairs = list(zip(VIDEOS, labels, strict=True))
    (folder / "plain.txt").write_text("".join(f"{name} {label}\n" for name, label in pairs))
    (folder / "counts.txt").write_text("".join(f"{name} 30 {label}\n" for name, label in pairs))
    (folder / "several.txt").write_text("".join(f"{name} {label} 2\n" for name, label in pairs))
    (folder / "comma.txt").write_text("".join(f"{name},{label}\n" for name, label in pairs))
    (folder / "frames.txt").write_text("".join(f"{n.split('.')[0]} 30 {k}\n" for n, k in pairs))
    _files(folder / "videos", [f"{name.split('.')[0]}/img_00001.jpg" for name in VIDEOS])
    (folder / "names.txt").write_text("\n".join(CLASSES) + "\n")


def _read_lists(folder: Path) -> object:
    root = folder / "videos"
    names = read_class_list(folder / "names.txt")
    return (
        read_list(folder / "plain.txt", root, missing="keep"),
        read_list(folder / "counts.txt", root, columns="path frames label", missing="keep"),
        read_list(folder / "several.txt", root, columns="path label ...", missing="keep"),
        read_list(folder / "comma.txt", root, separator=",", class_names=names, missing="drop"),
        read_frames(folder / "frames.txt", root, class_names=names, missing="keep"),
    )


def _class_list(folder: Path) -> None:
    (folder / "names.txt").write_text("".join(f"class number {i}\n" for i in range(40)))


def _official(folder: Path) -> None:
    """Writes small list files in the format of each dataset."""
    _files(folder / "videos", [name.replace(".mp4", ".avi") for name in VIDEOS])
    _files(folder / "kinetics", [f"abc{i}_000001_000011.mp4" for i in range(len(VIDEOS))])
    _files(folder, [f"{i}/00001.jpg" for i in range(len(CLASSES))])
    index = "".join(f"{i + 1} {name}\n" for i, name in enumerate(sorted(CLASSES)))
    (folder / "classInd.txt").write_text(index)
    videos = [f"{name.replace('.mp4', '.avi')}" for name in VIDEOS]
    numbers = [sorted(CLASSES).index(name.partition("/")[0]) + 1 for name in videos]
    lines = [f"{name} {number}\n" for name, number in zip(videos, numbers, strict=True)]
    (folder / "trainlist01.txt").write_text("".join(lines))
    for name in CLASSES:
        text = "".join(f"{i}.avi {i % 3}\n" for i in range(3))
        (folder / f"{name}_test_split1.txt").write_text(text)
    rows = [f"{name.partition('/')[0]},abc{i},1,11,train\n" for i, name in enumerate(VIDEOS)]
    (folder / "kinetics.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n" + "".join(rows)
    )
    templates = [{"id": str(i), "template": f"Moving [{name}]"} for i, name in enumerate(CLASSES)]
    (folder / "some.json").write_text(json.dumps(templates))
    labels = {f"Moving {name}": str(i) for i, name in enumerate(CLASSES)}
    (folder / "labels.json").write_text(json.dumps(labels))
    (folder / "labels.csv").write_text("\n".join(CLASSES) + "\n")
    (folder / "jester.csv").write_text("".join(f"{i};{n}\n" for i, n in enumerate(CLASSES)))


def _read_official(folder: Path) -> object:
    return (
        read_ucf101(folder, missing="keep"),
        read_hmdb51(folder, missing="keep"),
        read_kinetics(folder, "kinetics", missing="keep"),
        read_something(folder, "some", missing="keep"),
        read_jester(folder, "jester", missing="keep"),
    )


def _frames(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    suffixes = ("jpg", "png", "webp", "bmp", "gif", "ppm", "tif")
    for number, suffix in enumerate(suffixes):
        (folder / suffix).mkdir()
        for frame in range(2):
            made = PIL.Image.fromarray(np.roll(image, number + frame, axis=1))
            made.save(folder / suffix / f"img_{frame + 1:05d}.{suffix}")


def _read_frames(folder: Path) -> object:
    folders = [FrameFolder(path, f"img_{{:05d}}.{path.name}") for path in folder.iterdir()]
    return [(count_frames(source), decode(source, [0, 1])) for source in folders]


def _maps(folder: Path) -> None:
    grid = (2, 3, 3)
    rows, queries = torch.rand(1, 2, 5, *grid), torch.zeros(5, 3, dtype=torch.int64)
    pairwise = PairwiseMap("pairwise", rows, queries, grid, grid, False)
    gate = GateMap("channel", torch.rand(1, 4))
    frames = torch.zeros(4, 3, 12, 12, dtype=torch.uint8)
    save_maps(folder / "maps.npz", {"a": pairwise, "b": gate}, frames=frames, about={"video": "x"})


def _journal(folder: Path) -> None:
    about = {"indexed": 1}
    journal = Journal(folder / "index.jsonl", about)
    for name in VIDEOS:
        journal.add({"path": name, "bytes": 30, "mtime_ns": 5, "num_frames": 3, "starts": [[1, 2]]})
    journal.close()
    metrics = JsonLines(folder / "metrics.jsonl")
    for step in range(1, 6):
        metrics.write("train", step, {"loss": 0.5, "clips_per_second": 3.5})
        metrics.write("validation", step, {"video_accuracy": 0.5})


def _read_journal(folder: Path) -> object:
    journal = Journal(folder / "index.jsonl", {"indexed": 1})
    journal.close()
    return journal.records, JsonLines(folder / "metrics.jsonl", resumed_at=3)


READERS: dict[str, Reader] = {
    "recipe": Reader(_recipe, lambda folder: load_recipe(folder / "recipe.yaml")),
    "stored config": Reader(
        lambda folder: checkpoint.save_folder(folder, *network()), load_run, "config.json"
    ),
    "checkpoint": Reader(_run, load_run),
    "safetensors": Reader(
        lambda folder: checkpoint.save_weights(folder / "x.safetensors", *network()),
        lambda folder: (load_run(folder / "x.safetensors"), _read_weights(folder)),
    ),
    "public .pth": Reader(_public, _read_weights),
    "public .pth before 1.6": Reader(_public_old, _read_weights),
    "Caffe2": Reader(_caffe2, _read_weights),
    "index": Reader(_index, _read_index),
    "shards": Reader(_shards, _read_shards),
    "lists": Reader(_lists, _read_lists, "*.txt"),
    "class list": Reader(_class_list, lambda folder: read_class_list(folder / "names.txt")),
    "official lists": Reader(_official, _read_official, "*.*"),
    "frame folder": Reader(_frames, _read_frames, "*/*"),
    "map archive": Reader(_maps, lambda folder: load_maps(folder / "maps.npz")),
    "journal": Reader(_journal, _read_journal),
}


def damage(data: bytes, mutate: Callable[[bytes], bytes], rng: np.random.Generator) -> bytes:
    """Returns a copy of a file that `mutate` damages: half of the time a member of a zip or tar
    file, or the header of a safetensors file; otherwise, the bytes of the file."""
    repack = None
    if rng.random() < 0.5:
        return mutate(data)
    if data.startswith(b"PK\3\4"):
        repack = _repacked_zip
    elif data[257:262] == b"ustar":
        repack = _repacked_tar
    if repack is not None:
        try:
            return repack(data, mutate, rng)
        except Exception:  # it is damaged already
            return mutate(data)
    if data[8:9] == b"{":
        (size,) = struct.unpack("<Q", data[:8])
        header = mutate(data[8 : 8 + size])
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    return mutate(data)


def _repacked_zip(data: bytes, mutate: Callable[[bytes], bytes], rng: np.random.Generator) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        likely = [name for name in names if name.endswith((".pkl", ".json"))]
        chosen = likely if likely and rng.random() < 0.5 else names
        target = chosen[int(rng.integers(len(chosen)))]
        for name in names:
            content = old.read(name)
            new.writestr(name, mutate(content) if name == target else content)
    return packed.getvalue()


def _repacked_tar(data: bytes, mutate: Callable[[bytes], bytes], rng: np.random.Generator) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(None, "w", packed) as new:
        members = old.getmembers()
        target = members[int(rng.integers(len(members)))]
        for member in members:
            file = old.extractfile(member)
            assert file is not None
            content = mutate(file.read()) if member is target else file.read()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return packed.getvalue()
