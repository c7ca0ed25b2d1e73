"""The page makes the rows that `record_attention` records in float64, from every stored form."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.pages import archive, fields, frames, random_map
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.explain.choose import summarize
from videoattn.explain.explorer.encode import LIMITS, Encoder, distances, encode_field
from videoattn.explain.explorer.pack import Budget, write_explorer
from videoattn.models import info
from videoattn.models.table import make_network

FURTHEST = {**LIMITS, "qk32": 1e-5, "rows8": 1.5e-2, "rows16": 1e-3}
"""The largest distance of a row in the page from the recorded one, by stored form."""

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "i3d": ("i3d_r18_stem2", {"width": 8}),
    "tsn": ("tsn_r18", {}),
    "inception": ("inception_i3d", {"width": 0.25}),
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "I3D": ("i3d", "non_local", {}),
    "TSN": ("tsn", "non_local", {"key_pool": None}),
    "Inception": ("inception", "non_local", {}),
    "cross-layer": ("i3d", "cross_layer", {}),
    "joint cross-layer": ("i3d", "cross_layer", {"mode": "joint"}),
    "stand-alone": ("tsn", "stand_alone", {"window": [3, 3, 3], "heads": 4}),
    "gaussian": ("", "non_local", {"form": "gaussian"}),
    "dot product": ("", "non_local", {"form": "dot_product"}),
    "concatenation": ("", "non_local", {"form": "concatenation"}),
    "one frame": ("", "non_local", {"scope": "space"}),
    "one pixel": ("", "non_local", {"scope": "time"}),
    "SAGAN": ("", "sagan", {"variant": "authors"}),
    "plain SAGAN": ("", "sagan", {"variant": "plain"}),
    **{
        f"{similarity} {normalizer}": (
            "",
            "similarity",
            {"similarity": similarity, "normalizer": normalizer},
        )
        for similarity in ("dot", "scaled", "cosine", "rbf", "additive", "concat")
        for normalizer in ("softmax", "sigmoid", "count")
    },
}
"""Name -> network ("" is the block alone), system, and its options."""


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns all rows of a network in float64, and its maps as the explorer records them."""
    network, system, options = CASES[name]
    torch.manual_seed(len(name))
    found = SYSTEMS[system]

    def make(*words: Any, **more: Any) -> nn.Module:
        return found.make(*words, **more, **options)

    if network:
        model = make_network(*NETWORKS[network], num_classes=3)
        model = found.attach(model, info(model), make, (), system)
        video = torch.randn(1, 3, 8, 48, 64, dtype=torch.float64)
    else:
        model = nn.Sequential(make(16))
        video = torch.randn(1, 16, 4, 6, 8, dtype=torch.float64)
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():  # blocks start flat: maps with peaks are harder
            if weight.ndim > 1 and weight.std() < 0.02:
                weight.mul_(40)
        with record_attention(model) as all_rows:
            model(video)
        with record_attention(model, factors="instead") as whole:
            model(video)
    return all_rows, whole


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PairwiseMap]]:
    """A page with the maps of every case, and their rows."""
    rows: dict[str, PairwiseMap] = {}
    maps = {}
    for name in CASES:
        all_rows, whole = recorded(name)
        last = list(all_rows)[-2:]
        maps |= {f"{name}: {key}": whole[key] for key in last}
        rows |= {f"{name}: {key}": all_rows[key] for key in last}
    path = tmp_path_factory.mktemp("pages") / "explorer.html"
    assert write_explorer(path, [archive(maps)], Budget(megabytes=96)) == []
    return path, rows


def rows_of_page(run: Callable[..., Any], name: str, queries: list[int], head: object) -> Any:
    script = "arguments[1].map((query) => [...videoattn.row(arguments[0], arguments[2], query)])"
    return torch.tensor(run(script, name, queries, head), dtype=torch.float64)


def test_every_system_with_a_pairwise_map(
    pages: tuple[Path, dict[str, PairwiseMap]], opened: Callable[..., Any]
) -> None:
    path, expected = pages
    run = opened(path)
    forms = run("Object.fromEntries(index.scenes[0].maps.map(({ name, form }) => [name, form]))")
    assert {"qk16", "rows8", "rows16"} <= set(forms.values())
    assert set(forms) == set(expected)
    for name, found in expected.items():
        total = prod(found.grid_q)
        queries = [0, total // 3, total // 2 + 1, total - 1]
        got = rows_of_page(run, name, queries, "mean")
        exact = found.weights[0].flatten(1)[queries]
        assert float(distances(exact, got).max()) <= FURTHEST[forms[name]], (name, forms[name])
        columns = run(
            "[...videoattn.column(arguments[0], 'mean', 1)]", name
        )  # the reverse view: the same entries, up to rounding
        again = rows_of_page(run, name, list(range(8)), "mean")[:, 1]
        assert torch.allclose(torch.tensor(columns[:8]).double(), again, rtol=1e-3, atol=1e-6), name


FORMS = {
    "qk16": Budget(96),
    "qk8": Budget(96, compact=True),
    "rows8": Budget(96),
    "mean": Budget(0.13),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["softmax", "sigmoid", "count", "relu_sum"])
def test_stored_forms_and_heads(
    form: str, rule: str, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    """Three heads, other grids for queries and keys, and class tokens."""
    special = ("class", "register") if rule == "softmax" else ()
    found = random_map(
        heads=3, width=2 if form == "qk16" else 96 if form == "rows8" else 32, grid_q=(2, 5, 6),
        grid_k=(4, 3, 2) if form == "rows8" else (4, 5, 6), rule=rule, special=special,
    )  # fmt: skip
    if form == "mean":
        found = random_map(heads=3, width=900, rule=rule, special=special)
    missing = write_explorer(tmp_path / "a.html", [archive({"x": found})], FORMS[form])
    run = opened(tmp_path / "a.html")
    stored, heads = run("index.scenes[0].maps.map(({ form, heads }) => [form, heads])[0]")
    assert stored == {"mean": "rows8", "rows8": "rows8"}.get(form, form) or rule == "count"
    numbers = torch.arange(0, prod(found.grid_q) + len(special), 7)
    exact = found.select(numbers).rows[0].flatten(2)
    for head, rows in [("mean", exact.mean(0)), ("max", exact.amax(0)), *enumerate(exact)]:
        if form == "mean" and head != "mean":
            continue
        got = rows_of_page(run, "x", numbers.tolist(), head)
        assert float(distances(rows, got).max()) <= FURTHEST[stored]
    if form == "mean":
        assert heads == 1
        assert missing == ["push.mp4: x: its heads one by one; the file has their mean"]


def test_products_that_float16_cannot_hold_are_stored_in_float32() -> None:
    found = random_map(width=64, sharp=3000.0, grid_q=(1, 2, 2), grid_k=(4, 14, 14))
    assert found.factors is not None
    encoder = Encoder(found)
    assert encoder.form == "rows8"  # of equal fidelity, and smaller here
    many = random_map(width=8, sharp=3000.0, grid_q=(4, 14, 14), grid_k=(4, 14, 14))
    assert Encoder(many).form == "qk32"
    huge = random_map(width=8, sharp=1e-10)
    assert huge.factors is not None
    huge.factors.q.mul_(1e5)
    huge.factors.k.mul_(1e5)
    assert Encoder(huge).form == "qk16"


def test_fields_of_every_kind(tmp_path: Path, opened: Callable[..., Any]) -> None:
    maps = fields()
    write_explorer(tmp_path / "a.html", [archive(maps)], Budget())
    run = opened(tmp_path / "a.html")
    listed = {found["name"]: found for found in run("videoattn.maps()")}
    heads = {"hires_cam": 2, "fc": 3}
    assert {name: found["heads"] for name, found in listed.items()} == {
        name.partition("/")[0]: heads.get(name.partition("/")[0], 1) for name in maps
    }
    for name, found in listed.items():
        assert found["grid_q"] is None
        heat = "[0, 7].map((frame) => [...videoattn.heat(frame)])"
        for head in range(found["heads"]):
            got = run(
                f"(videoattn.set({{ map: arguments[0], head: arguments[1] }}), {heat})", name, head
            )
            full = list(m for m in maps if m.partition("/")[0] == name)
            one = maps[full[head] if name == "hires_cam" else full[0]]
            assert torch.allclose(
                torch.tensor(got), expected_field(one, head), rtol=1e-3, atol=1e-6
            )


def expected_field(found: GateMap, head: int) -> torch.Tensor:
    """Returns the values of the first and the last moment, (2, P)."""
    weights = found.weights[0]
    if found.kind == "box":
        return weights[[0, 7]] / torch.tensor([56, 64, 56, 64])
    if found.kind == "channel":
        return weights.expand(2, -1)
    if found.kind == "temporal":
        return weights[[0, 3], None]
    if found.kind == "mask":
        weights = weights.mean(0)
    if found.kind == "pooling":
        weights = weights[head]
    return weights[[0, 3]].flatten(1)


def test_more_weightings_than_a_page_shows_are_the_most_peaked() -> None:
    weights = torch.full((1, 40, 1, 2, 2), 0.25)
    weights[0, 39] = torch.tensor([0.7, 0.1, 0.1, 0.1]).view(1, 2, 2)
    known, _ = encode_field(GateMap("pooling", weights, normalized=True), (8, 8))
    assert known["heads"] == 32
    assert known["head_names"][-1] == "weighting 39"


def test_summaries_of_a_map() -> None:
    """Every query looks at key 5 most."""
    rows = torch.full((1, 1, 12, 1, 3, 4), 0.05)
    rows[..., 1, 1] = 0.45
    found = PairwiseMap(
        "pairwise", rows, torch.zeros(12, 3, dtype=torch.long), (1, 3, 4), (1, 3, 4), True
    )
    summary = summarize(found)
    assert summary.strongest.tolist() == [0.0] * 5 + [1.0] + [0.0] * 6
    assert summary.received[5] == pytest.approx(0.45)
    assert summary.top == pytest.approx(0.45)


def test_frames_are_stored_once_for_two_runs(tmp_path: Path, opened: Callable[..., Any]) -> None:
    one, other = archive({"x": random_map()}), archive({"x": random_map(1)}, run="other")
    third = archive({"x": random_map(2)}, frames(4))
    write_explorer(tmp_path / "a.html", [one, other, third], Budget(num_clips=3))
    run = opened(tmp_path / "a.html")
    assert run("index.clips.length") == 2
    assert run("index.scenes.map((scene) => scene.clip)") == [0, 0, 1]
