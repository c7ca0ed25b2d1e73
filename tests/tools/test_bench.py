"""Every benchmark runs on tiny inputs and prints finite numbers."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attention
import decode_memory
import decoders
import explorer
import from_files
import gpu
import label_noise
import loader
import loader_sides
import networks
import numpy as np
import predict
import pytest
import startup
import torch
import train_step
import typer
import views
from annotations import bench_annotations, write_lists
from common import chosen_decoders, videos_under

from tests.cli.test_commands import RECIPE
from tests.data.conftest import MakeClip, make_clip  # noqa: F401 (a fixture)
from tests.pinned import write
from tests.tools.conftest import TOOLS, Table, Tables
from videoattn.attention.systems import SYSTEMS
from videoattn.data.decode import decode
from videoattn.data.lists import read_kinetics, read_list
from videoattn.data.sampling import train_sampler, view_sampler
from videoattn.data.synthetic import write_demo_clips
from videoattn.recipe.run import load


@pytest.fixture
def clips(make_clip: MakeClip, tmp_path: Path) -> Path:  # noqa: F811
    make_clip("clips/a.mp4", 12, size=(64, 64))
    make_clip("clips/b.mkv", 12, size=(64, 64))
    make_clip("clips/c.avi", 12, size=(64, 64), codec="mpeg4")
    make_clip("clips/d.mpg", 12, size=(64, 64), codec="mpeg1video")
    return tmp_path / "clips"


def column(table: Table, name: str) -> list[float]:
    """Returns the numbers of a column, and checks that they are finite and not negative."""
    values = [float(row[name].split()[0].replace(",", "")) for row in table]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    return values


def test_predict(tables: Tables, tmp_path: Path) -> None:
    write.unpack(tmp_path)
    predict.bench(tmp_path / "run", clips=8, rounds=1)
    (table,) = tables()
    assert [row["command"] for row in table] == ["test", "predict"]
    assert min(column(table, "clips/s, best")) > 0


def test_killed_downloads() -> None:
    words = [sys.executable, str(TOOLS / "kill_downloads.py"), "--kills", "5", "--seconds", "0.2"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"^5 kills: (.*); the call after each succeeded$", done.stdout, re.M)
    assert found is not None
    assert sum(map(int, re.findall(r"\d+", found[1]))) == 5  # every kill has an outcome


@pytest.mark.parametrize("script", ["bench/attention.py", "write_docs.py"])
def test_scripts_start_in_any_folder(script: str, tmp_path: Path) -> None:
    words = [sys.executable, str(TOOLS / script), "--help"]
    done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Usage" in done.stdout


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_train_step(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "theirs", networks.ours)  # which takes small frames
    for name in ("i3d_r50_nl", "tsm_r50"):
        train_step.train_step(name, 2, frames="1,2", size=32, rounds=1, device="cpu")
        (table,) = tables()
        sides = ["videoattn", "theirs, float32", "theirs, bfloat16"]
        assert [row["side"] for row in table] == sides * 2
        assert min(column(table, "of ours")) > 0


def test_views(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "theirs", networks.ours)
    views.views("i3d_r50", count=2, num_frames=4, size=32, rounds=1, device="cpu")
    (table,) = tables()
    assert len(table) == 4
    assert table[0]["of ours"] == "1.00"
    assert min(column(table, "of ours")) > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_both_networks_have_five_blocks_and_as_many_parameters() -> None:
    pytest.importorskip("pytorchvideo")
    models = [make("i3d_r50_nl") for make in (networks.ours, networks.theirs)]
    blocks = [[m for m in model.modules() if type(m).__name__ == "NonLocal"] for model in models]
    assert [len(found) for found in blocks] == [5, 5]
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in models)
    assert ours == theirs


def test_the_tsm_of_the_benchmark_is_ours() -> None:
    """With the same weights, the stand-in for mmaction2 gives the same logits."""
    ours, theirs = networks.ours("tsm_r50").eval(), networks.theirs("tsm_r50").eval()
    weights = ours.state_dict()
    state = {
        f"net.{name}": weights[name] for name in weights if f"net.{name}" in theirs.state_dict()
    }
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_gpu(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "theirs", networks.ours)
    monkeypatch.setattr(gpu, "NETWORK", "i3d_r18")
    monkeypatch.setattr(gpu.networks.torch, "compile", lambda model, mode=None: model)
    gpu.bench_gpu("cpu", minutes=5)
    files, blocks, views, steps = tables()
    assert column(files, "busy") == [100 - x for x in column(files, "waiting for data")]
    assert len(blocks) == len(gpu.BLOCKS)
    assert len(views) == 4
    assert [row["side"] for row in steps[:2]] == ["ours", "pytorchvideo"]
    assert len(steps) == 8
    for table in (views, steps):
        assert min(column(table, "clips/s")) > 0


def test_gpu_names_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    bench = gpu.Bench("cpu", 0.1)
    assert bench.measure("a", 1.0, lambda: lambda: None) == ("-", "-")
    assert bench.left_out == ["a"]
    with pytest.raises(typer.BadParameter, match=r"^there is no GPU; --device cpu checks the scri"):
        gpu.bench_gpu("cuda")


@pytest.mark.parametrize("name", attention.BLOCKS)
def test_every_block_can_be_measured_alone(name: str) -> None:
    site = attention.Site(16, (2, 8, 8), batch_size=2)
    module, inputs = attention.make_block(name, site, "cpu")
    module(*inputs).sum().backward()
    assert inputs[-1].grad is not None
    for large in attention.SITES.values():
        assert min(attention.count(name, large)) > 0


def test_an_explicit_block_returns_the_same_values() -> None:
    assert not attention.has_explicit_path("squeeze_excite", 32)
    site = attention.Site(8, (2, 4, 4))
    for name in ("non_local", "cross_layer", "sagan", "similarity", "stand_alone"):
        assert attention.has_explicit_path(name, 8)
        module, inputs = attention.make_block(name, site, "cpu")
        explicit, _ = attention.make_block(name, site, "cpu", path="explicit")
        explicit.load_state_dict(module.state_dict())
        torch.testing.assert_close(explicit(*inputs), module(*inputs))


def test_attention(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SITES", {"small": attention.Site(16, (2, 8, 8))})
    monkeypatch.setattr(attention, "GROWTH_FRAMES", (1, 2))
    monkeypatch.setattr(
        attention,
        "measure",
        lambda *args, explicit=False: attention.measure_here(*args, explicit),
    )
    attention.bench_attention(["non_local", "squeeze_excite"], rounds=1, device="cpu")
    costs, growth = tables()
    assert [row["system"] for row in costs] == ["`non_local`", "`squeeze_excite`"]
    for name in ("seconds", "peak MiB", "parameters", "MACs"):
        column(costs, name)
    assert costs[1]["explicit: seconds"] == ""
    column(costs[:1], "explicit: seconds")
    column(growth, "T = 2")
    with pytest.raises(ValueError, match=r"^system: 'hard_crop' does not exist; choose from non_"):
        attention.bench_attention(["hard_crop"])


def test_label_noise(tables: Tables, tmp_path: Path) -> None:
    """Each share trains runs of its own, and the runs are not repeated for another seed."""
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    words = [f"data.root={tmp_path / 'clips'}", "train.num_epochs=1", "train.validate_every=0"]
    label_noise.label_noise(
        recipe, words, [0.0, 1.0], ["none"], seeds=2, folder=tmp_path / "runs", device="cpu"
    )
    first, second = (table for table in tables() if "0 % wrong" in table[0])
    assert list(second[0]) == ["attention", "0 % wrong", "100 % wrong"]
    assert second[0]["attention"] == "`none`"
    for share in ("0", "1"):
        runs = [load(tmp_path / f"runs/noise_{share}/none_seed{seed}") for seed in range(2)]
        assert [run.config.seed for run in runs] == [0, 1]
        folder = tmp_path / f"runs/noise_{share}"
        accuracies = [
            100
            * json.loads((folder / f"none_seed{seed}/result.json").read_text())["video_accuracy"]
            for seed in range(2)
        ]
        name = f"{100 * float(share):g} % wrong"
        assert first[0][name].startswith(f"{accuracies[0]:.1f} % (")
        assert second[0][name].startswith(f"{sum(accuracies) / 2:.1f} % (")
    stored = (tmp_path / "runs/noise_1/none_seed0/config.yaml").read_text()
    assert "label_noise: 1.0" in stored


def test_measurements_run_in_a_process_of_their_own() -> None:
    cost = attention.measure("squeeze_excite", attention.Site(16, (1, 4, 4)), 1, "cpu")
    assert cost.seconds > 0


def test_both_annotation_lists_have_the_same_videos(tmp_path: Path) -> None:
    names = write_lists(tmp_path, 900)
    listed = read_list(tmp_path / "list.txt", tmp_path, class_names=names)
    from_csv = read_kinetics(tmp_path, "train", class_names=names)
    assert list(listed.paths) == list(from_csv.paths)
    assert listed.labels.tolist() == from_csv.labels.tolist()
    assert set(listed.labels.tolist()) == set(range(700))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_annotations(tables: Tables) -> None:
    bench_annotations(videos=900, workers=2)
    (table,) = tables()
    assert [row["list"] for row in table] == ["path label", "Kinetics csv"]
    column(table, "seconds")
    assert min(column(table, "PSS")) > 0


def test_decoders(clips: Path, tables: Tables) -> None:
    for name in ("decord", "torchcodec"):
        pytest.importorskip(name, reason=f"install videoattn[{name}]")
    (clips / "empty.mp4").touch()
    (clips / "frames.json").write_text(
        '{"a.mp4": {"frames": 13, "mean_gray": []}, "b.mkv": {"frames": 12, "mean_gray": [99.0]}, '
        '"empty.mp4": {"frames": 3, "mean_gray": []}}'
    )
    decoders.decoders(clips)
    (table,) = tables()
    rows = {row.pop("file"): row for row in table}
    mpeg = "error: is not exact in files of the kind mpeg"
    assert rows["`a.mp4`"]["pyav"] == "WRONG: 12 frames instead of 13"
    assert rows["`a.mp4`"]["decord"] == rows["`a.mp4`"]["torchcodec"] == "right"
    assert rows["`b.mkv`"]["pyav"].startswith("WRONG: a gray level is off by ")
    assert rows["`c.avi`"]["pyav"] == "right"
    assert rows["`d.mpg`"]["kind"] == "mpeg, mpeg1video yuv420p, 12 frames"
    assert rows["`d.mpg`"]["decord"] == rows["`d.mpg`"]["torchcodec"] == mpeg
    assert rows["`empty.mp4`"]["pyav"] == "WRONG: error: the file is empty (0 bytes)"


def test_frames_requested_alone_are_compared(
    clips: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(path: Path, numbers: Any, **options: Any) -> torch.Tensor:
        wrong = len(numbers) == 1 and path.name == "a.mp4" and options["decoder"] == "torchcodec"
        return real(path, [4] if wrong else numbers, **options)

    real = decoders.decode
    monkeypatch.setattr(decoders, "decode", decode)
    (clips / "b.mkv").unlink()
    decoders.decoders(clips)
    (table,) = tables()
    row = table[0]
    assert (row["pyav"], row["decord"]) == ("right", "right")
    assert re.match(r"WRONG: frame 0 alone differs by 1\d of 255", row["torchcodec"])


def test_decode_memory(clips: Path, tmp_path: Path, tables: Tables) -> None:
    picture = tmp_path / "plots" / "memory.png"
    decode_memory.decode_memory(clips, picture, count=8, decoder="pyav")
    (table,) = tables()
    assert min(column(table, "MiB at last")) > 0
    assert picture.stat().st_size > 5000


def test_memory_does_not_grow_with_the_number_of_decodes(clips: Path) -> None:
    measured = decode_memory.resident_memory(videos_under(clips), "pyav", 400, points=40)
    assert len(measured) == 40
    # 320 decodes. A decoder that leaks an open container grows by about 40 KiB per decode.
    assert max(measured[8:]) - measured[8] < 6


def test_loader(
    make_clip: MakeClip,  # noqa: F811
    tmp_path: Path,
    tables: Tables,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("decord", reason="the benchmark compares with decord")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for i in range(2):
        make_clip(f"a/{i}.mp4", 30, size=(64, 64))  # decord fails on odd row sizes
    (tmp_path / "a" / "text.avi").write_text("not a video")
    make_clip("a/short.mp4", 5)
    monkeypatch.setattr(loader, "SETTINGS", {"dense 8x8": loader.SETTINGS["dense 8x8"]})
    loader.bench_loader(tmp_path, workers=0, seconds=0.0, rounds=1)
    sides, workers, gains, views = tables()
    names = [loader.BASELINE, loader.OPENCV, loader.FIRST, "ours, pyav", "ours, decord"]
    assert [row["loader"] for row in sides[:5]] == names
    for table, name in [
        *((sides, name) for name in ("clips/s", "on one core, clips/s")),
        *((workers, name) for name in ("ours, clips/s", "decord, clips/s", "ratio")),
        (gains, "clips/s"),
        *((views, f"{name}, of ours") for name in loader_sides.READERS),
    ]:
        assert min(column(table, name)) > 0
    names = ["originals", "re-encoded", "two clips per decode", "both"]
    assert [row["videos"] for row in gains] == [loader.BASELINE, *names]


@pytest.mark.parametrize("name", loader_sides.READERS)
def test_the_readers_of_whole_frames(
    name: str,
    make_clip: MakeClip,  # noqa: F811
) -> None:
    """They return the frames with these numbers, and views of the size of ours."""
    path = make_clip("a.mp4", 30, size=(64, 64))
    reader = loader_sides.READERS[name][0](str(path))
    assert len(reader) == 30
    frames = reader.read(np.array([3, 4, 9, 3, 29, 0]))
    assert frames.shape == (6, 64, 64, 3)
    wanted = decode(path, [3, 4, 9, 3, 29, 0]).permute(0, 2, 3, 1).numpy()
    assert np.abs(frames.astype(int) - wanted).max() <= 3  # of 255: other color conversions
    sampler = view_sampler("dense", num_frames=8, frame_stride=2, num_clips=10)
    assert loader_sides.whole_frame_views(name, path, sampler) == 30


def test_training_from_files(
    make_clip: MakeClip,  # noqa: F811
    tmp_path: Path,
    tables: Tables,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_clip("a/0.mp4", 30, size=(64, 64))
    two = train_sampler("segments", num_frames=2)
    monkeypatch.setitem(from_files.SETTINGS, "8 segments", two)
    from_files.from_files(tmp_path, workers=0, seconds=0.0, device="cpu")
    (table,) = tables()
    names = ["videoattn", *loader_sides.READERS]
    assert [row["training from files"] for row in table] == names
    assert min(column(table, "clips per second")) > 0
    assert column(table, "ours to this")[0] == 1


def test_ffmpeg_and_pytorchvideo_load_clips(make_clip: MakeClip, tmp_path: Path) -> None:  # noqa: F811
    make_clip("a/0.mp4", 40, size=(64, 64))
    samples, sampler = loader.find_videos(tmp_path), loader.SETTINGS["8 segments"]
    if loader_sides.shutil.which("ffmpeg"):
        assert loader_sides.ffmpeg_rate(samples, sampler, 0.01) > 0
    else:
        with pytest.raises(FileNotFoundError, match=r"^ffmpeg is not installed"):
            loader_sides.ffmpeg_rate(samples, sampler, 0.01)
    pytest.importorskip("pytorchvideo", reason="the benchmark compares with pytorchvideo")
    (batch,) = loader_sides.pytorchvideo_clips(samples, 1.0, 8)(0)
    assert batch.shape == (1, 3, 8, 224, 224)


def test_startup(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "STATEMENTS", {"import videoattn": "import videoattn"})
    startup.startup(rounds=1)
    (table,) = tables()
    assert min(column(table, "median seconds")) > 0


def test_explorer(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "CLICK_GRID", (2, 4, 4))
    monkeypatch.setattr(explorer, "CLICKS", 2)
    monkeypatch.setattr(explorer, "OPEN_MEGABYTES", 1)
    networks = {"tiny": ("i3d_r18_stem2", "non_local", (4, 32, 32))}
    monkeypatch.setattr(explorer, "NETWORKS", networks)
    explorer.explorer(sizes=True)
    times, sizes = tables()
    assert min(column(times, "median seconds")) > 0
    assert column(sizes, "file")[0] > 0


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"contains no video$"):
        videos_under(tmp_path)
    with pytest.raises(ValueError, match=r"^decoder: 'x' does not exist; choose from all, pyav, "):
        chosen_decoders("x")
    (tmp_path / "big.mp4").write_bytes(bytes(1000))
    with pytest.raises(typer.BadParameter, match=r"contains no video of at most 10 bytes$"):
        videos_under(tmp_path, max_bytes=10)
    with pytest.raises(typer.BadParameter, match=r"contains no video of at least 8 frames that"):
        loader.find_videos(tmp_path)


def test_networks_are_not_blocks() -> None:
    assert set(SYSTEMS) - set(attention.BLOCKS) == {"hard_crop"}
