"""`videoattn visualize` on networks of every kind of map: which files, and what it says."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from videoattn.cli.app import main
from videoattn.cli.visualize import _choose_maps, _owners, visualize, visualize_score
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import save_weights
from videoattn.explain import METHODS
from videoattn.recipe.load import load
from videoattn.recipe.model import make_model

MODELS = {"i3d_r18": {"width": 16}, "tsn_r18": {}}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=1, num_test_per_class=1)
    return root / "test/moves_left/0000.mp4"


def untrained(folder: Path, system: str, model: str = "i3d_r18", **options: object) -> Path:
    """A checkpoint of a network with the system."""
    values = {
        "name": "tiny",
        "data": {"root": "nowhere"},
        "clip": {"sampling": "segments", "num_frames": 4, "height": 32, "width": 32},
        "test": {"short_side": 36},
        "model": {
            "name": model,
            "options": MODELS[model],
            "attention": {"name": system, "options": options},
        },
    }
    torch.manual_seed(0)
    network = make_model(load(values, []).model, 2)
    path = folder / "best.safetensors"
    about = {"config": values, "class_names": ["left", "right"], "preprocessing": {}}
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
    written = visualize(run, video, layer=layer, folder=tmp_path / "out", device="cpu")
    names = set()
    for name in expected:
        ends = (".png", ".mp4") if name.endswith("*") else (".png",)
        names |= {f"0000_{name.rpartition('.')[0]}{end}" for end in ends}
    if system == "stand_alone":  # so many queries as lie apart on its grid
        names |= {path.name for path in written if path.stem.endswith("_2")}
    assert {path.name for path in written} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
        else:
            assert path.stat().st_size > 1000


def test_many_blocks_do_not_flood_the_folder(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "self_gating")
    written = visualize(run, video, queries=["10,60,50"], device="cpu")
    names = [f"0000_layer{stage}.1.bn2.self_gating.png" for stage in (1, 2, 3, 4)]
    assert [path.name for path in written] == names
    assert {path.parent for path in written} == {tmp_path / "pictures"}
    said = capsys.readouterr().out
    assert (
        "4 of 8 attention blocks are drawn, the last of each stage; for others give --layer a "
        "name, or the beginning of some (--layer layer1): layer1.0.bn2.self_gating, layer1.1."
    ) in said
    assert "these maps have no query: --query has only chosen the clip" in said


def choose(layer: str | None, *blocks: str, keys: tuple[str, ...] = ("",)) -> list[str]:
    names = {f"{block}.{key}".rstrip(".") for block in blocks for key in keys}
    return _choose_maps(layer, _owners(dict.fromkeys(sorted(names), 0), blocks))


def test_a_layer_is_a_beginning_that_cuts_no_number_in_two() -> None:
    blocks = ("layer1.1.bn2.se", "layer1.10.bn2.se", "layer2.1.bn2.se")
    assert choose("layer1", *blocks) == list(blocks[:2])
    assert choose("layer1.1", *blocks) == [blocks[0]]
    assert choose("layer1.10.bn2.se", *blocks) == [blocks[1]]
    assert choose("layer2.1.bn2.se.b", blocks[2], keys=("a", "b")) == ["layer2.1.bn2.se.b"]
    with pytest.raises(
        ValueError, match=r"layer 'layer3' has no attention map; choose from layer1\.1\.bn2\.se, "
    ):
        choose("layer3", *blocks)


def test_without_a_layer_few_blocks_are_all_drawn_and_of_many_the_last_of_each_stage() -> None:
    four = [f"layer2.{index}_nl" for index in range(4)]
    assert choose(None, *four) == four
    assert choose(None, *four, "layer3.0_nl", "layer3.1_nl") == ["layer2.3_nl", "layer3.1_nl"]
    stages = [f"stage{stage}.{index}.se" for stage in range(6) for index in range(2)]
    assert choose(None, *stages) == [f"stage{stage}.1.se" for stage in (2, 3, 4, 5)]
    assert choose(None, "a", "a.gate", keys=("", "b")) == ["a", "a.b", "a.gate", "a.gate.b"]


def test_a_map_belongs_to_the_longest_block_that_it_begins_with() -> None:
    maps = dict.fromkeys(("cbam", "cbam.spatial", "cbam.gates.0", "cbam.gates.0.x", "cbam2"), 0)
    owners = _owners(maps, ["cbam", "cbam.gates.0", "cbam2"])
    assert list(owners.values()) == ["cbam", "cbam", "cbam.gates.0", "cbam.gates.0", "cbam2"]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_score_rests_on(tmp_path: Path, video: Path, method: str) -> None:
    run = untrained(tmp_path, "non_local")
    written = visualize_score(run, video, method=method, target="right")
    stem = tmp_path / "pictures" / f"0000_{method}_right"
    assert written == [Path(f"{stem}.png"), Path(f"{stem}.mp4")]
    assert all(path.stat().st_size > 1000 for path in written)
    own = visualize_score(run, video, method=method, folder=tmp_path / "own")
    assert own[0].name in (f"0000_{method}_left.png", f"0000_{method}_right.png")


def test_errors_of_methods(tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained(tmp_path, "non_local")

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["visualize", str(run), str(video), *words])
        return str(stop.value.code)

    assert "method: 'gradcam' is not one of cam, grad_cam," in refused("--method", "gradcam")
    assert "layer: saliency looks at the input; --layer is for cam, grad_cam, hires_cam" in refused(
        "--method", "saliency", "--layer", "layer4"
    )
    assert "target: 'rigth' is no class of" in refused("--method", "cam", "--target", "rigth")
    assert "did you mean right?" in refused("--method", "cam", "--target", "rigth")
    assert "cam has no query: leave --query" in refused("--method", "cam", "--query", "0,1,1")
    assert "--target is the class of a --method" in refused("--target", "right")
    assert "layer 'layer9' does not exist" in refused("--method", "grad_cam", "--layer", "layer9")
