"""Heads, special tokens, factors, resampling, adapters and the archive of maps."""

import io
import itertools
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videoattn.attention import (
    GateMap,
    PairwiseMap,
    load_maps,
    record_attention,
    save_maps,
    to_input,
)
from videoattn.attention.adapters import multihead_maps
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.non_local import FORMS, NonLocal
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SIMILARITIES, SimilarityAttention
from videoattn.attention.functional import NORMALIZERS
from videoattn.attention.maps import Factors, PairwiseAttention
from videoattn.types import Grid, ModelInfo

GRID = (2, 3, 4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def token_grid(clip: Grid) -> Grid:
    return clip[0], clip[1] // 4, clip[2] // 4


class Tokens(nn.Module):
    """A transformer of (N, T, C, H, W): a class token, and a token for each 4 x 4 pixels."""

    info = ModelInfo("head", axes="NTCHW", token_grid=token_grid, special_tokens=("class",))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv3d(3, 8, (1, 4, 4), stride=(1, 4, 4))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.pooler = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        pooled = self.pooler(self.query.expand(len(tokens), -1, -1), key=tokens, value=tokens)[0]
        return self.head(pooled[:, 0])


def expected_maps(model: Tokens, pixels: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model.patch(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.cls.expand(len(tokens), -1, -1), tokens], dim=1)
    y, weights = model.attention(tokens, tokens, tokens, average_attn_weights=False)
    query = model.query.expand(len(tokens), -1, -1)
    tokens = tokens + y
    return weights, model.pooler(query, tokens, tokens, average_attn_weights=False)[1]


def test_a_transformer_called_by_keyword_is_recorded_by_head() -> None:
    model, pixels = Tokens().eval(), torch.randn(2, 2, 3, 12, 16)
    queries = [(1, 5, 9), "class", (0, 0, 0)]
    with torch.no_grad():
        before = model(pixels)
        with record_attention(model, queries=queries, received=True) as maps:
            assert torch.equal(model(pixels=pixels), before)
        weights, pooled = expected_maps(model, pixels)
    assert list(maps) == ["attention", "pooler"]
    found = maps["attention"]
    assert (found.grid_q, found.grid_k) == (GRID, GRID)
    assert found.queries.tolist() == [[1, 1, 2], [-1, -1, -1], [0, 0, 0]]
    assert found.special == {"class": 1}
    tokens = [1 + 12 + 4 + 2, 0, 1]
    torch.testing.assert_close(found.rows.flatten(3), weights[:, :, tokens, 1:])
    torch.testing.assert_close(found.elsewhere, weights[:, :, tokens, 0])
    torch.testing.assert_close(found.weights, found.rows.mean(1))
    torch.testing.assert_close(found.received.flatten(1), weights[:, :, 1:, 1:].mean((1, 2)))
    assert maps["pooler"].received is None
    assert maps["pooler"].special == {"class": 0}
    torch.testing.assert_close(maps["pooler"].rows.flatten(3), pooled[..., 1:])
    torch.testing.assert_close(maps["pooler"].elsewhere, pooled[..., 0])


def test_no_queries_record_only_received_attention() -> None:
    model, pixels = Tokens().eval(), torch.randn(1, 2, 3, 12, 16)
    with torch.no_grad(), record_attention(model, queries=[], received=True) as maps:
        model(pixels)
    assert maps["attention"].rows.shape == (1, 2, 0, *GRID)
    assert maps["attention"].received.shape == (1, *GRID)


def test_all_rows_and_factors_give_the_same_map() -> None:
    model, pixels = Tokens().eval(), torch.randn(1, 2, 3, 12, 16)
    with torch.no_grad(), record_attention(model, factors=True) as maps:
        model(pixels)
    found = maps["attention"]
    assert found.rows.shape == (1, 2, 25, *GRID)
    assert found.special == {"class": 24}
    again = found.factors.rows(torch.arange(25))
    torch.testing.assert_close(again[..., :24], found.rows.flatten(3))
    torch.testing.assert_close(again[..., 24], found.elsewhere)


OPTIONS = {
    "plain": {},
    "without bias": {"bias": False},
    "bias_kv and a zero key": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 5, "vdim": 7},
}


@pytest.mark.parametrize("masked", ["", "bool", "float", "by head", "padding"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_multihead_attention_equals_its_own_weights(
    options: dict, batch_first: bool, masked: str
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    query, value = noise(3, 25, 8), noise(3, 25, options.get("vdim", 8), seed=1)
    key = noise(3, 25, options.get("kdim", 8), seed=2)
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = {
        "bool": {"attn_mask": noise(25, 25) > 0.5},
        "float": {"attn_mask": noise(25, 25)},
        "by head": {"attn_mask": noise(6, 25, 25)},
        "padding": {"key_padding_mask": noise(3, 25) > 0.5},
    }.get(masked, {})
    _, expected = module(query, key, value, average_attn_weights=False, **masks)
    found = multihead_maps(module, (query, key), {"value": value, **masks}, GRID, ("class",))[""]
    rows, elsewhere = found.rows_by_head(torch.tensor([0, 7, 23, 24]))
    tokens = [1, 8, 24, 0]
    torch.testing.assert_close(rows.flatten(3), expected[:, :, tokens, 1:25])
    rest = expected[:, :, tokens, 0] + expected[:, :, tokens, 25:].sum(-1)
    torch.testing.assert_close(elsewhere, rest)
    assert (found.factors is None) == bool(masked)


def test_a_wrong_token_grid_is_refused() -> None:
    module, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 20, 8)
    with pytest.raises(ValueError, match=r"got 20 keys; the network's token grid \(2, 3, 4\)"):
        multihead_maps(module, (x, x, x), {}, GRID, ("class",))


@pytest.mark.parametrize("rule", ["softmax", "sigmoid", "count", "relu_sum"])
def test_factors_follow_their_rule(rule: str) -> None:
    q, k = noise(2, 3, 5, 4), noise(2, 3, 6, 4, seed=1)
    logits = torch.einsum("nhqd,nhpd->nhqp", q, k) * 0.5
    expected = {
        "softmax": logits.exp() / logits.exp().sum(-1, keepdim=True),
        "sigmoid": 1 / (1 + 6 * (-logits).exp()),
        "count": logits / 6,
        "relu_sum": logits.clamp_min(0) / 6,
    }[rule]
    rows = Factors(q, k, rule, 0.5).rows(torch.tensor([4, 0]))
    torch.testing.assert_close(rows, expected[:, :, [4, 0]])


def pairwise_blocks() -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {f"non_local {form}": NonLocal(8, form=form) for form in FORMS}
    for similarity, normalizer in itertools.product(SIMILARITIES, NORMALIZERS):
        name = f"{similarity} {normalizer}"
        blocks[name] = SimilarityAttention(8, similarity=similarity, normalizer=normalizer)
    for variant in ("authors", "plain"):
        blocks[f"sagan {variant}"] = SelfAttention(8, variant=variant)
    return blocks


@pytest.mark.parametrize("name", pairwise_blocks())
def test_factors_of_every_block_give_its_rows(name: str) -> None:
    torch.manual_seed(0)
    block = pairwise_blocks()[name].double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        (found,) = block.maps(noise(2, 8, *GRID)).values()
    if found.factors is None:
        assert "additive" in name or name in ("concat softmax", "concat sigmoid")
        return
    positions = torch.tensor([5, 0, 23])
    rows = found.factors.rows(positions)[:, 0]
    torch.testing.assert_close(rows, found.rows(positions).flatten(2))


def test_factors_of_each_source() -> None:
    torch.manual_seed(0)
    block = CrossLayerNonLocal(8, [4, 6], scale=False).double()
    found = block.maps(noise(2, 8, *GRID), noise(2, 4, 2, 5, 5), noise(2, 6, 1, 2, 3))
    for each in found.values():
        rows = each.factors.rows(torch.tensor([7]))[:, 0]
        torch.testing.assert_close(rows, each.rows(torch.tensor([7])).flatten(2))


def test_one_head_without_special_tokens_reads_as_before() -> None:
    weights = noise(2, 24, 24)
    found = PairwiseAttention(GRID, GRID, normalized=False, weigh=lambda at: weights[:, at])
    assert torch.equal(found.rows(torch.tensor([3])).flatten(2), weights[:, [3]])
    rows, elsewhere = found.rows_by_head(torch.tensor([3]))
    assert rows.shape == (2, 1, 1, *GRID)
    assert elsewhere is None


def a_map(rows: Tensor, grid: Grid) -> PairwiseMap:
    return PairwiseMap("pairwise", rows, torch.zeros(rows.shape[2], 3).long(), grid, grid, True)


def test_maps_are_resampled_to_the_clip() -> None:
    rows = torch.arange(8.0).view(1, 1, 1, 2, 2, 2)
    at_input = to_input(a_map(rows, (2, 2, 2)), (4, 6, 8))
    assert at_input.shape == (1, 1, 4, 6, 8)
    for t, y, x in ((0, 0, 0), (1, 2, 3), (2, 3, 4), (3, 5, 7)):
        assert at_input[0, 0, t, y, x] == rows[0, 0, 0, t // 2, y // 3, x // 4]
    smooth = to_input(a_map(rows, (2, 2, 2)), (4, 6, 8), smooth=True)
    down = torch.tensor([0, 0, 2 / 3, 4 / 3, 2, 2])  # pixel centers lie at (y + 1/2) / 3 - 1/2
    torch.testing.assert_close(smooth[0, 0, 0, :, 0], down)
    torch.testing.assert_close(smooth[0, 0, 3, :, 0], down + 4)


def test_each_kind_is_resampled_to_the_clip() -> None:
    clip = (4, 6, 8)
    assert to_input(GateMap("spatial", torch.rand(2, 2, 3, 4)), clip).shape == (2, *clip)
    assert to_input(GateMap("mask", torch.rand(2, 5, 2, 3, 4)), clip).shape == (2, 5, *clip)
    times = to_input(GateMap("temporal", torch.tensor([[0.0, 1.0]])), clip)
    assert times.shape == (1, *clip)
    assert times.mean((2, 3)).tolist() == [[0, 0, 1, 1]]
    inside = to_input(GateMap("box", torch.tensor([[[1.0, 2.0, 4.0, 5.0]] * 4])), clip)
    assert inside.sum((2, 3)).tolist() == [[9, 9, 9, 9]]
    assert inside[0, 0, 1:4, 2:5].all()
    with pytest.raises(ValueError, match="a channel gate has no positions"):
        to_input(GateMap("channel", torch.rand(2, 5)), clip)


def test_an_archive_returns_what_was_saved(tmp_path: Path) -> None:
    factors = Factors(torch.randn(1, 2, 24, 3), torch.randn(1, 2, 25, 3), "softmax", 0.5)
    pairwise = PairwiseMap(
        kind="local",
        rows=torch.rand(1, 2, 3, *GRID),
        queries=torch.tensor([[0, 1, 2], [-1, -1, -1], [1, 0, 0]]),
        grid_q=GRID,
        grid_k=GRID,
        normalized=True,
        received=torch.rand(1, *GRID),
        elsewhere=torch.rand(1, 2, 3),
        special={"class": 1},
        factors=factors,
    )
    gate = GateMap("cam", torch.rand(1, *GRID), identity_value=0.0, description="score of a_b")
    frames = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8)
    path = tmp_path / "clip.maps.npz"
    about = {"video": "höhe.mp4", "classes": ["a", "b"], "share": 0.25}
    save_maps(path, {"layer3.1": pairwise, "cam": gate}, frames=frames, about=about)
    found = load_maps(path)
    assert found.about == about
    assert torch.equal(found.frames, frames)
    assert list(found.maps) == ["layer3.1", "cam"]
    for name, saved in {"layer3.1": pairwise, "cam": gate}.items():
        for key, value in vars(saved).items():
            other = getattr(found.maps[name], key)
            if isinstance(value, Tensor):
                assert torch.equal(other, value), key
            elif isinstance(value, Factors):
                assert torch.equal(other.q, value.q)
                assert torch.equal(other.k, value.k)
                assert other[2:] == value[2:]
            else:
                assert other == value, key
    with np.load(path, allow_pickle=False) as archive:  # as a notebook without this package
        assert json.loads(archive["index.json"])["maps"][0]["name"] == "layer3.1"
        assert np.array_equal(archive["0.rows"], pairwise.rows.numpy())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"no zip", None):
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("index.json", json.dumps({"format": "videoattn-maps/9"}))
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.npz is not an archive of attention maps \("):
            load_maps(path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, frames=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(
            "index.json", json.dumps({"format": "videoattn-maps/1", "about": {}, "maps": []})
        )
    with pytest.raises(ValueError, match=r"frames is damaged: object \(1,\) in"):
        load_maps(path)


def archive_of(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Saves two maps, and changes their description."""
    rows = torch.rand(1, 2, 3, *GRID)
    pairwise = PairwiseMap("pairwise", rows, torch.zeros(3, 3, dtype=torch.int64), GRID, GRID, True)
    factors = Factors(torch.randn(1, 2, 24, 3), torch.randn(1, 2, 24, 3), "softmax", 0.5)
    maps = {"a": replace(pairwise, factors=factors), "b": GateMap("channel", torch.rand(1, 4))}
    save_maps(path, maps, frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    index = json.loads(members["index.json"])
    change(index)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in {**members, "index.json": json.dumps(index)}.items():
            new.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["maps"][0].update(grid_k=[1, 1, 1]),
        lambda index: index["maps"][0].update(grid_q=[0, 0, 0]),
        lambda index: index["maps"][0].update(grid_q="abc"),
        lambda index: index["maps"][0].update(special={"class": 7}),
        lambda index: index["maps"][0].update(rule="eval"),
        lambda index: index["maps"][1].update(kind="spatial"),
        lambda index: index["maps"][1].update(kind=["channel"]),
        lambda index: index["maps"][1].update(other=3),
        lambda index: index["maps"].append(7),
        lambda index: index.update(maps=None),
        lambda index: index.update(about=[]),
    ],
)
def test_descriptions_that_do_not_fit_the_arrays(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    load_maps(archive_of(tmp_path / "x.npz", lambda _: None))
    with pytest.raises(ValueError, match=r"x.npz is not an archive of attention maps \(") as raised:
        load_maps(archive_of(tmp_path / "x.npz", change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [2**33, 2**24 + 1])
def test_archives_larger_than_the_limit(size: int, tmp_path: Path) -> None:
    """Zeros are a thousand times smaller in a compressed file."""
    path = archive_of(tmp_path / "x.npz", lambda _: None)
    is_array = size > 2**31
    with zipfile.ZipFile(path, "a" if is_array else "w", zipfile.ZIP_DEFLATED) as archive:
        name = "frames2.npy" if is_array else "index.json"
        archive.writestr(name, bytes(min(size, 2**25)))
        archive.getinfo(name).file_size = size  # in the directory, which is written at the end
    with pytest.raises(ValueError, match=r"the limit is (2,147,483,648|16,777,216)"):
        load_maps(path)


def test_a_limit_of_the_caller(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "x.npz", lambda _: None)
    assert len(load_maps(path, max_bytes=10_000).maps) == 2
    with pytest.raises(ValueError, match=r"it holds [\d,]+ bytes; the limit is 1,000"):
        load_maps(path, max_bytes=1000)


@pytest.mark.parametrize("shape", [(10**13,), (2**62,), (10**6, 10**6), (3,), (-1,)])
def test_arrays_whose_headers_state_other_sizes(shape: tuple[int, ...], tmp_path: Path) -> None:
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    path = archive_of(tmp_path / "x.npz", lambda _: None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.npy", header.getvalue() + bytes(16))
    with pytest.raises(ValueError, match=r"x.npz is not an archive of attention maps \(other is"):
        load_maps(path)


def test_maps_recorded_whole_return_any_row_later() -> None:
    """As factors or as rows; the other maps have the rows of the queries, if all are too many."""
    torch.manual_seed(0)
    model = nn.Sequential(NonLocal(8), NonLocal(8, scope="space")).double().eval()
    video = torch.randn(1, 8, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        with record_attention(model) as exact:
            model(video)
        with record_attention(model, factors="instead") as whole:
            model(video)
        with (
            pytest.MonkeyPatch.context() as patch,
            record_attention(model, [(1, 2, 3)], factors="instead") as some,
        ):
            patch.setattr("videoattn.attention.record.MOST_ENTRIES", 100)
            model(video)
    numbers = torch.tensor([0, 77, 143])
    for name, found in whole.items():
        assert isinstance(found, PairwiseMap)
        assert isinstance(exact[name], PairwiseMap)
        selected = found.select(numbers)
        assert torch.equal(selected.queries, exact[name].queries[numbers])
        assert torch.allclose(selected.rows, exact[name].rows[:, :, numbers], atol=1e-6)
    first, second = some.values()
    assert isinstance(first, PairwiseMap)
    assert isinstance(second, PairwiseMap)
    assert (first.is_whole, second.is_whole) == (True, False)
    assert second.queries.tolist() == [[1, 2, 3]]
