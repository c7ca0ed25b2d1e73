"""`videoattn visualize` on networks with every kind of map: its files and its output."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from videoattn.cli.app import main
from videoattn.cli.clip import map_owners, read_clip
from videoattn.cli.visualize import choose_maps
from videoattn.cli.visualize import command as visualize
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import save_weights
from videoattn.explain import METHODS
from videoattn.recipe.load import load as load_recipe
from videoattn.recipe.model import make_model
from videoattn.recipe.run import load

MODELS = {"i3d_r18": {"width": 16}, "tsn_r18": {}}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=1, num_test_per_class=1)
    return root / "test/moves_left/0000.mp4"


def untrained(
    folder: Path,
    system: str,
    model: str = "i3d_r18",
    class_names: tuple[str, ...] = ("left", "right"),
    **options: object,
) -> Path:
    """Writes a checkpoint of a network with an attention system."""
    values = {
        "name": "tiny",
        "data": {"root": "nowhere"},
        "clip": {"sampling": "segments", "num_frames": 4, "height": 32, "width": 32},
        "test": {"short_side": 36},
        "model": {
            "name": model,
            "options": MODELS[model],
            "attention": {"name": system, "options": options},
            "edition": 2,
        },
    }
    torch.manual_seed(0)
    network = make_model(load_recipe(values, []).model, len(class_names))
    path = folder / "best.safetensors"
    about = {"config": values, "class_names": list(class_names), "preprocessing": {}}
    save_weights(path, network.state_dict(), about)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("system", "model", "layer", "expected"),
    [
        ("squeeze_excite", "tsn_r18", "layer4.1", {"layer4.1.bn2.squeeze_excite.png"}),
        ("residual_attention", "i3d_r18", "layer3", {"layer3.residual_attention.*"}),
        ("interaction", "i3d_r18", None, {"fc.*", "fc_0.*", "fc_1.*", "fc_2.*"}),
        ("stand_alone", "tsn_r18", "layer4.1.conv2", {"layer4.1.conv2_1.*"}),
        ("hard_crop", "i3d_r18", None, {"hard_crop.*", "hard_crop_heat.*"}),
        (
            "cbam",
            "i3d_r18",
            "layer2.1",
            {f"layer2.1.bn2.cbam_{gate}" for gate in ("channel.png", "spatial.*", "temporal.png")},
        ),
    ],
)
def test_the_files_of_every_kind(
    system: str, model: str, layer: str | None, expected: set[str], video: Path, tmp_path: Path
) -> None:
    run = untrained(tmp_path, system, model)
    written = visualize(run, video, layer=layer, output=tmp_path / "out", device="cpu")
    names = set()
    for name in expected:
        ends = (".png", ".mp4") if name.endswith("*") else (".png",)
        names |= {f"0000_{name.rpartition('.')[0]}{end}" for end in ends}
    if system == "stand_alone":  # a second query if its grid holds one far enough away
        names |= {path.name for path in written if path.stem.endswith("_2")}
    assert {path.name for path in written} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
        else:
            assert path.stat().st_size > 1000


def test_overlays_of_large_frames_are_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.mp4"
    with av.open(str(large), "w") as file:
        stream = file.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 2400, "yuv420p"
        gray = np.full((2400, 4096, 3), 90, np.uint8)
        for _ in range(2):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        file.mux(stream.encode())
    run = untrained(tmp_path, "cbam")
    written = visualize(run, large, layer="layer2.1", device="cpu")
    (overlay,) = (path for path in written if path.suffix == ".mp4")
    with av.open(str(overlay)) as file:
        assert file.streams.video[0].width == 1920
    printed = capsys.readouterr().out
    assert "the overlay is drawn at 1920 x 1920 pixels; the clip has 2133 x 2133\n" in printed


def test_the_last_block_of_each_stage_is_drawn_if_there_are_many(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "self_gating")
    written = visualize(run, video, query=["10,60,50"], device="cpu")
    blocks = ("layer1.1", "layer2.0", "layer3.0", "layer4.1")  # after temporal convolutions
    names = [f"0000_{block}.bn1.self_gating.png" for block in blocks]
    assert [path.name for path in written] == names
    assert {path.parent for path in written} == {tmp_path / "pictures"}
    printed = capsys.readouterr().out
    assert (
        "drawing 4 of 5 attention blocks, the last of each stage; for others pass --layer with a "
        "name or a prefix (--layer layer1): layer1.0.bn1.self_gating, layer1.1."
    ) in printed
    assert "these maps have no query; --query only selected the clip" in printed


def choose(layer: str | None, *blocks: str, keys: tuple[str, ...] = ("",)) -> list[str]:
    names = {f"{block}.{key}".rstrip(".") for block in blocks for key in keys}
    return choose_maps(layer, map_owners(dict.fromkeys(sorted(names), 0), blocks))


def test_a_layer_is_a_prefix_that_does_not_split_a_number() -> None:
    blocks = ("layer1.1.bn2.se", "layer1.10.bn2.se", "layer2.1.bn2.se")
    assert choose("layer1", *blocks) == list(blocks[:2])
    assert choose("layer1.1", *blocks) == [blocks[0]]
    assert choose("layer1.10.bn2.se", *blocks) == [blocks[1]]
    assert choose("layer2.1.bn2.se.b", blocks[2], keys=("a", "b")) == ["layer2.1.bn2.se.b"]
    with pytest.raises(
        ValueError, match=r"layer 'layer3' has no attention map; choose from layer1\.1\.bn2\.se, "
    ):
        choose("layer3", *blocks)


def test_without_a_layer_few_blocks_are_drawn_or_the_last_of_each_stage() -> None:
    four = [f"layer2.{index}_nl" for index in range(4)]
    assert choose(None, *four) == four
    assert choose(None, *four, "layer3.0_nl", "layer3.1_nl") == ["layer2.3_nl", "layer3.1_nl"]
    stages = [f"stage{stage}.{index}.se" for stage in range(6) for index in range(2)]
    assert choose(None, *stages) == [f"stage{stage}.1.se" for stage in (2, 3, 4, 5)]
    assert choose(None, "a", "a.gate", keys=("", "b")) == ["a", "a.b", "a.gate", "a.gate.b"]


def test_a_map_belongs_to_the_longest_matching_block() -> None:
    maps = dict.fromkeys(("cbam", "cbam.spatial", "cbam.gates.0", "cbam.gates.0.x", "cbam2"), 0)
    owners = map_owners(maps, ["cbam", "cbam.gates.0", "cbam2"])
    assert list(owners.values()) == ["cbam", "cbam", "cbam.gates.0", "cbam.gates.0", "cbam2"]


@pytest.mark.parametrize("method", METHODS)
def test_the_files_of_every_method(tmp_path: Path, video: Path, method: str) -> None:
    run = untrained(tmp_path, "non_local")
    written = visualize(run, video, method=method, target="right")
    stem = tmp_path / "pictures" / f"0000_{method}_right"
    assert written == [Path(f"{stem}.png"), Path(f"{stem}.mp4")]
    assert all(path.stat().st_size > 1000 for path in written)
    own = visualize(run, video, method=method, output=tmp_path / "own")
    assert own[0].name in (f"0000_{method}_left.png", f"0000_{method}_right.png")


def test_errors_of_methods(tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained(tmp_path, "non_local")

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["visualize", str(run), str(video), *words])
        return str(stop.value.code)

    assert (
        "method: 'gradcam' does not exist (did you mean grad_cam?); choose from cam, grad_cam,"
        in refused("--method", "gradcam")
    )
    assert (
        "layer: saliency explains the input; only cam, grad_cam, hires_cam take --layer"
        in refused("--method", "saliency", "--layer", "layer4")
    )
    misspelled = refused("--method", "cam", "--target", "rigth")
    assert "target: 'rigth' does not exist (did you mean right?); choose from" in misspelled
    words = ("--method", "cam", "--query", "0,1,1")
    assert "cam has no query; leave out --query, or --method" in refused(*words)
    assert "--target needs a --method" in refused("--target", "right")
    assert "layer 'layer9' does not exist" in refused("--method", "grad_cam", "--layer", "layer9")


def test_the_files_of_a_swap(tmp_path: Path, video: Path) -> None:
    """Both videos at each of three levels, with both global vectors."""
    run = untrained(tmp_path, "pay_attention", compatibility="dp")
    other = video.parents[1] / "grows/0000.mp4"
    second = tmp_path / "second.mp4"
    second.write_bytes(other.read_bytes())
    words = ["visualize", str(run), str(video), "--swap", str(second), "--out", str(tmp_path / "d")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    pairs = (("0000", "second"), ("second", "0000"))
    assert {path.name for path in (tmp_path / "d").iterdir()} == {
        f"{one}_fc.{level}_swapped_with_{two}.png" for one, two in pairs for level in range(3)
    }
    for path in (tmp_path / "d").iterdir():
        with Image.open(path) as picture:
            assert picture.height > 500
    with pytest.raises(SystemExit) as stop:
        main([*words, "--method", "saliency"])
    assert stop.value.code == (
        "error: --swap draws a head; leave out --query, --method, --target, --score"
    )
    with pytest.raises(SystemExit) as stop:
        main([*words, "--layer", "fc.9"])
    assert "layer: 'fc.9' does not exist" in str(stop.value.code)


@pytest.mark.parametrize("name", ["2/../../../escaped", "..", "a" * 300, "tab\tnul\0", "$x$"])
def test_class_names_stay_in_the_output_folder(name: str, tmp_path: Path, video: Path) -> None:
    run = untrained(tmp_path, "non_local", class_names=("left", name))
    (tmp_path / "out" / "0000_saliency_2").mkdir(parents=True)
    folder = tmp_path / "out"
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    written = visualize(run, video, method="saliency", target=name, output=folder)
    assert [path.parent for path in written] == [folder, folder]
    assert all(path.is_file() for path in written)
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before


def test_a_link_in_the_output_folder_is_replaced(tmp_path: Path, video: Path) -> None:
    run = untrained(tmp_path, "self_gating")
    outside = tmp_path / "outside.png"
    (tmp_path / "pictures").mkdir()
    link = tmp_path / "pictures" / "0000_layer4.1.bn1.self_gating.png"
    link.symlink_to(outside)
    visualize(run, video, layer="layer4.1")
    assert not outside.exists()
    assert not link.is_symlink()


def test_a_video_is_opened_once_and_only_the_drawn_frames_are_cropped(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_file = av.open

    def counting(*words: object, **options: object) -> object:
        opened.append(words[0])
        return open_file(*words, **options)

    monkeypatch.setattr(av, "open", counting)
    clip = read_clip(load(untrained(tmp_path, "non_local")), video, 10)
    assert len(opened) == 1
    assert clip.frames.shape[0] == len(clip.numbers) == 4
    assert clip.frames.shape[2:] == (clip.box.y1 - clip.box.y0, clip.box.x1 - clip.box.x0)
    whole = decode(video, clip.numbers)
    box = clip.box
    assert torch.equal(clip.frames, whole[..., box.y0 : box.y1, box.x0 : box.x1])


def test_a_damaged_video_is_read_as_far_as_it_decodes(tmp_path: Path, video: Path) -> None:
    num_frames = count_frames(video)[0]
    error = DecodeError(video, "too few frames", num_frames // 2)
    calls = []

    def failing(source: object, numbers: list[int], **options: object) -> object:
        calls.append(list(numbers))
        if len(calls) == 1:
            raise error
        return decode(video, numbers, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("videoattn.cli.clip.decode", failing)
        clip = read_clip(load(untrained(tmp_path, "non_local")), video)
    assert max(calls[0]) >= num_frames // 2 > max(calls[1])
    assert clip.numbers == calls[1]


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    run = load(untrained(tmp_path, "non_local"))
    text = tmp_path / "a.mp4"
    text.write_text("text")
    for path in (text, tmp_path / "absent.mp4"):
        with pytest.raises(DecodeError, match=str(path)):
            read_clip(run, path)
