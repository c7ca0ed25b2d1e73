"""Removal scores on networks whose exact map is known, in float64."""

import pytest
import torch
from torch import Tensor, nn

from tests.explain.faithful.linear import linear_case
from videoattn.explain.faithful.removal import (
    Groups,
    Hider,
    area,
    descending,
    first_hidden,
    hide,
    removal_curves,
    remove_groups,
    saco,
    sign_agreement,
    steps,
    time_deletion,
)
from videoattn.explain.faithful.statistics import bootstrap
from videoattn.explain.post_hoc import filled

GRID = (2, 2, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_orders(count: int, num_cells: int, seed: int = 3) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.randperm(num_cells, generator=generator) for _ in range(count)]


def test_deletion_and_insertion_of_a_linear_network_mirror_each_other() -> None:
    hider, _ = linear_case((4, 5, 5))
    for order in random_orders(5, 100):
        curves = removal_curves(hider, order)
        whole, empty = curves.deletion.y[0], curves.deletion.y[-1]
        total = (curves.deletion.y + curves.insertion.y) - (whole + empty)
        assert total.abs().max() < 1e-12


def test_the_ends_of_curves_are_the_whole_and_the_empty_clip() -> None:
    hider, exact = linear_case((4, 5, 5))
    curves = removal_curves(hider, descending(exact, seeded()))
    with torch.no_grad():
        whole, empty = (
            hider.model(clip)[0, 0] for clip in (hider.video, filled(hider.video, "mean"))
        )
    for curve, ends in ((curves.deletion, (whole, empty)), (curves.insertion, (empty, whole))):
        assert len(curve.y) == len(curve.p) == 21
        torch.testing.assert_close(curve.y[[0, -1]], torch.stack(ends), rtol=0, atol=1e-12)
        expected = torch.stack(ends).mul(2).sigmoid()  # of y and -y
        torch.testing.assert_close(curve.p[[0, -1]], expected, rtol=0, atol=1e-12)
    assert steps(200)[:3] == [0, 10, 20]
    assert steps(8) == list(range(9))


def test_the_area_of_the_exact_map_has_a_closed_form_and_is_the_least() -> None:
    hider, exact = linear_case(GRID)
    n = exact.numel()
    curves = removal_curves(hider, descending(exact, seeded()), num_points=n + 1)
    got = area(curves.deletion.y, n)
    ordered = exact.flatten().sort(descending=True).values
    shares = 1 - (torch.arange(n, dtype=torch.float64) + 0.5) / n
    expected = curves.deletion.y[0] - (ordered * shares).sum()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    # A linear score of a mask is the sum over its cells, which the test above checked.
    generator = seeded(5)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(4000)])
    hidden = exact.flatten()[orders].cumsum(1)
    areas = area(torch.nn.functional.pad(curves.deletion.y[0] - hidden, (1, 0)), n)
    areas += (curves.deletion.y[0] / n) / 2  # the pad is y(x), not 0
    assert (got <= areas + 1e-12).all()
    ends = (curves.deletion.y[0] + curves.deletion.y[-1]) / 2
    error = areas.std() / len(areas) ** 0.5
    assert abs(float(areas.mean() - ends)) < 3 * float(error)


def test_the_groups_of_the_exact_map() -> None:
    for grid in ((4, 5, 5), (2, 3, 4)):  # ten equal groups, and groups of 2 or 3 cells
        hider, exact = linear_case(grid)
        groups = remove_groups(hider, exact, descending(exact, seeded()))
        torch.testing.assert_close(groups.effects, groups.means, rtol=0, atol=1e-12)
        assert float(saco(groups)) == pytest.approx(1)
        assert float(sign_agreement(groups, signed=True)) == 1
        opposite = remove_groups(hider, -exact, descending(-exact, seeded()))
        assert float(saco(opposite)) == pytest.approx(-1)
        assert float(sign_agreement(opposite, signed=True)) == 0


def test_saco_of_random_maps_is_zero_on_average() -> None:
    hider, exact = linear_case((4, 5, 5))
    found = []
    for seed in range(200):
        values = torch.rand(exact.shape, generator=seeded(seed), dtype=torch.float64)
        found.append(saco(remove_groups(hider, values, descending(values, seeded(seed)))))
    scores = torch.stack(found)
    assert abs(float(scores.mean())) < 3 * float(scores.std()) / len(scores) ** 0.5


def test_saco_is_a_sum_over_pairs() -> None:
    means, effects = (torch.randn(10, generator=seeded(s), dtype=torch.float64) for s in (1, 2))
    total, size = 0.0, 0.0
    for i in range(10):
        for j in range(i + 1, 10):
            weight = abs(float(means[i] - means[j]))
            same = (means[i] > means[j]) == (effects[i] > effects[j])
            total += weight if same else -weight
            size += weight
    assert float(saco(Groups(means, effects))) == pytest.approx(total / size)


@pytest.mark.parametrize("change", [lambda a: 3 * a, lambda a: a + 2])
def test_a_scaled_or_shifted_map_has_the_same_scores(change: object) -> None:
    assert callable(change)
    hider, exact = linear_case((2, 3, 4))
    noisy = exact + torch.randn(exact.shape, generator=seeded(4), dtype=torch.float64)
    results = []
    for values in (noisy, change(noisy)):
        order = descending(values, seeded())
        curves, groups = removal_curves(hider, order), remove_groups(hider, values, order)
        results.append(torch.cat([*curves.deletion, *curves.insertion, saco(groups)[None],
                                  sign_agreement(groups, signed=False)[None]]))  # fmt: skip
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_a_constant_map_is_a_random_order() -> None:
    """For every score: inside the interval of the random orders of the same clips."""
    hider, exact = linear_case((4, 5, 5))

    def scores(values: Tensor, seed: int) -> Tensor:
        order = descending(values, seeded(seed))
        curves, groups = removal_curves(hider, order), remove_groups(hider, values, order)
        areas = [area(curve.p, 100) for curve in curves]
        return torch.stack([*areas, areas[1] - areas[0], curves.deletion.p[2], saco(groups),
                            sign_agreement(groups, signed=False)])  # fmt: skip

    constant = torch.stack([scores(torch.ones_like(exact), seed) for seed in range(40)])
    random = torch.stack(
        [scores(torch.rand(exact.shape, generator=seeded(s)), 100 + s) for s in range(40)]
    )
    assert float(constant[:, 4].abs().max()) == 0  # SaCo has no pair to compare
    for column in (0, 1, 2, 3, 5):
        difference = bootstrap(constant[:, column] - random[:, column])
        assert difference.low <= 0 <= difference.high


def test_ties_have_a_random_order() -> None:
    constant = torch.ones(2, 5, 5)
    first, second = (descending(constant, seeded(seed)) for seed in (0, 1))
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(50))
    assert descending(torch.tensor([0.0, 2.0, 1.0]), seeded()).tolist() == [1, 2, 0]


def test_a_constant_network_is_an_error() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_tensor([[1.0, 0.0]]).expand(len(x), 2)

    hider, _ = linear_case(GRID)
    constant = Hider(Constant(), hider.video, GRID, 0)
    p = removal_curves(constant, torch.arange(16)).deletion.p
    ends = p[0][None], p[-1][None]
    with pytest.raises(ValueError, match="score of the whole clip is that of the empty one"):
        bootstrap(torch.ones(1), over=ends[0] - ends[1])


def test_relative_scores_are_shares_of_the_range() -> None:
    amount, whole, empty = torch.tensor([[0.1, 0.3], [0.9, 0.7], [0.1, 0.2]])
    assert bootstrap(amount, over=whole - empty).mean == pytest.approx(0.4 / 1.3)


def test_hidden_cells_show_the_fill() -> None:
    """Against loops, on a grid that does not divide the clip."""
    video = torch.randn(1, 3, 5, 7, 6, generator=seeded(), dtype=torch.float64)
    grid = (2, 3, 2)
    masks = torch.rand(4, 12, generator=seeded(1)) < 0.5
    for fill in ("mean", "blur", "freeze"):
        got = hide(video, masks, grid, fill)
        for m, mask in enumerate(masks):
            for t in range(5):
                for y in range(7):
                    for x in range(6):

                        def hidden(frame: int, mask: Tensor = mask, y: int = y, x: int = x) -> bool:
                            cell = (frame * 2 // 5, y * 3 // 7, x * 2 // 6)
                            return bool(mask.view(grid)[cell])

                        if fill == "freeze":
                            seen = [f for f in range(t + 1) if not hidden(f)]
                            expected = video[0, :, max(seen, default=0), y, x]
                        else:
                            source = filled(video, fill) if hidden(t) else video
                            expected = source[0, :, t, y, x]
                        assert torch.equal(got[m, :, t, y, x], expected)


def test_a_grid_finer_than_the_clip_and_an_unknown_fill_are_errors() -> None:
    video, mask = torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 75, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"grid: got \(3, 5, 5\) for a clip of \(2, 4, 4\)"):
        hide(video, mask, (3, 5, 5), "mean")
    with pytest.raises(ValueError, match="fill: 'black' does not exist; choose from mean"):
        hide(video, mask, (1, 1, 1), "black")


def test_time_deletion_freezes_frames_in_the_order_of_their_means() -> None:
    hider, _ = linear_case((3, 2, 2))
    frozen = Hider(hider.model, hider.video, (3, 2, 2), 0, fill="freeze")
    values = torch.tensor([1.0, 5.0, 3.0]).view(3, 1, 1).expand(3, 2, 2)
    got = time_deletion(frozen, values, seeded()).y
    clips = [hider.video]
    for cells in ((1,), (1, 2), (0, 1, 2)):
        clip = hider.video.clone()
        for frame in range(6):
            if frame // 2 in cells:
                clip[:, :, frame] = clip[:, :, max(frame - 1, 0)]
        clips.append(clip)
    with torch.no_grad():
        expected = torch.cat([hider.model(clip)[:, 0] for clip in clips])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_against_another_class() -> None:
    hider, _ = linear_case(GRID)
    versus = Hider(hider.model, hider.video, GRID, 0, against=1)
    masks = first_hidden(torch.arange(16), [0, 4])
    plain, contrast = hider(masks), versus(masks)
    torch.testing.assert_close(contrast.y, 2 * plain.y)
    torch.testing.assert_close(contrast.p, plain.p)  # with two classes
