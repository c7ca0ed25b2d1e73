"""The table of public models: names, facts that can be checked, and the listing."""

import pytest
import torchvision
from torch import nn

from tests.cli.test_commands import command
from videoattn.weights import PUBLIC
from videoattn.weights.row import PublicModel

NAMES = {
    "torchvision": "resnet18 resnet34 resnet50 resnet101",
    "pytorchvideo": "i3d_r50 slow_r50 c2d_r50",
    "pyslowfast": "C2D_8x8_R50 I3D_8x8_R50 SLOW_8x8_R50 SLOW_4x16_R50 C2D_NLN_8x8_R50 "
    "I3D_NLN_8x8_R50 SLOW_NLN_8x8_R50 I3D_8x8_R101 I3D_NLN_8x8_R101",
    "mmaction2": "tsn_r50 tsm_r50 i3d_r50 i3d_r50_nl_embedded_gaussian i3d_r50_nl_gaussian "
    "i3d_r50_nl_dot_product tsm_r50_nl_embedded_gaussian tsm_r50_nl_gaussian "
    "tsm_r50_nl_dot_product slowonly_r50 slowonly_r50_nl_embedded_gaussian",
    "nonlocal": "c2d_baseline_8x8 c2d_nonlocal_8x8 i3d_baseline_8x8 i3d_nonlocal_8x8 "
    "i3d_baseline_32x2 i3d_nonlocal_32x2",
}


def test_all_names_exist() -> None:
    for ecosystem, names in NAMES.items():
        rows = {name for name in PUBLIC if name.startswith(f"{ecosystem}/")}
        assert rows == {f"{ecosystem}/{name}" for name in names.split()}


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_torchvision_rows_match_torchvision(depth: int) -> None:
    weights = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT
    row, presets = PUBLIC[f"torchvision/resnet{depth}"], weights.transforms()
    fed = row.preprocessing
    assert row.url == weights.url
    assert row.accuracy is not None
    assert row.accuracy.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert [list(fed.mean), list(fed.std)] == [presets.mean, presets.std]
    assert [[fed.short_side], [fed.test_size]] == [presets.resize_size, presets.crop_size]


@pytest.mark.parametrize("row", PUBLIC.values(), ids=PUBLIC)
def test_every_row_is_complete(row: PublicModel) -> None:
    fed = row.preprocessing
    assert all(0 < value < 1 for value in (*fed.mean, *fed.std))
    assert (row.non_local is None) == (row.after == ())
    assert row.accuracy is None or row.accuracy.source
    assert row.url is None or row.url.startswith("https://")
    name = next(name for name, other in PUBLIC.items() if other is row)
    assert row.is_noncommercial == name.startswith("nonlocal/")
    assert (row.url is None) == bool(row.file.absent)
    if name.startswith("nonlocal/"):
        assert row.license == "CC-BY-NC-4.0"
    if row.file.sha256 and not name.startswith("piergiaj/"):
        assert (row.url or "").endswith(f"-{row.file.sha256}.pth")


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("torchvision/resnet50", "1 crop"),
        ("mmaction2/tsn_r50", "25 segments x 10 crops"),
        ("mmaction2/tsm_r50_nl_gaussian", "8 segments x 10 crops"),
        ("pyslowfast/SLOW_4x16_R50", "10 clips x 3 crops"),
    ],
)
def test_views_are_named_as_published(name: str, views: str) -> None:
    assert PUBLIC[name].preprocessing.views == views


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    assert command("list", "weights") == 0
    text = capsys.readouterr().out
    assert (
        "nonlocal/i3d_nonlocal_32x2\n"
        "  i3d_r50, 32 x 2, 5 non-local (embedded gaussian), 74.9 % (10 clips x 3 crops), "
        "CC-BY-NC-4.0\n"
        "  file: https://dl.fbaipublicfiles.com/video-nonlocal/"
        "i3d_nonlocal_32x2_IN_pretrain_400k.pkl\n"
        "  accuracy: https://github.com/facebookresearch/video-nonlocal-net\n"
    ) in text
    assert (
        "pyslowfast/C2D_NLN_8x8_R50\n"
        "  c2d_r50, 8 x 8, 5 non-local (embedded gaussian), Apache-2.0\n"
        "  file: not published: PySlowFast publishes its config, but no file; train it there, and "
        "convert its checkpoint_epoch_*.pyth\n"
    ) in text
    assert "resnet18, an image, 69.758 % (ImageNet-1K, 1 crop)" in text
