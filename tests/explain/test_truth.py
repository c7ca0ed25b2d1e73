"""Maps against the ground truth: values computed by hand, and by counting pixels."""

import pytest
import torch

from videoattn.explain.truth import cells, mass, meets, pointing, pointing_chance


def box(t: slice, y: slice, x: slice, size: tuple[int, int, int] = (4, 8, 8)) -> torch.Tensor:
    mask = torch.zeros(size)
    mask[t, y, x] = 1
    return mask


MASK = box(slice(0, 2), slice(0, 4), slice(2, 5))
"""2 frames of 3 x 4 pixels: 24 of 256."""


def test_cells_are_means_of_their_pixels() -> None:
    shares = cells(MASK, (2, 2, 4))
    assert shares.shape == (2, 2, 4)
    # Rows 0 - 3 are the upper cells; columns 2, 3 fill the second cell, and 4 half of the third.
    expected = torch.zeros(2, 2, 4)
    expected[0, 0] = torch.tensor([0, 1, 0.5, 0])
    assert torch.equal(shares.float(), expected)


def test_cells_that_split_pixels_keep_the_area() -> None:
    # Three cells over four columns: pixel 1 belongs to cell 0 by one third, to cell 1 by two.
    mask = box(slice(0, 1), slice(0, 1), slice(1, 2), size=(1, 1, 4))
    shares = cells(mask, (1, 1, 3))
    torch.testing.assert_close(shares[0, 0], torch.tensor([0.25, 0.5, 0.0], dtype=torch.float64))
    for grid in ((3, 5, 7), (4, 8, 8), (1, 1, 1), (4, 3, 8)):
        assert float(cells(MASK, grid).mean()) == pytest.approx(24 / 256, abs=1e-12)


@pytest.mark.parametrize("grid", [(4, 8, 8), (2, 2, 4), (3, 5, 7)])
def test_a_uniform_map_has_the_area_share(grid: tuple[int, int, int]) -> None:
    uniform = torch.full(grid, 0.37)
    assert float(mass(uniform, MASK)) == pytest.approx(24 / 256, abs=1e-6)
    chance = float(meets(MASK, grid).double().mean())
    assert float(pointing(uniform, MASK)) == pytest.approx(chance, abs=1e-6)
    assert float(pointing_chance(MASK, grid)) == pytest.approx(chance, abs=1e-12)


def test_the_mask_as_a_map() -> None:
    """The mean of the shares, weighted by themselves: (1 + 0.25) / 1.5."""
    shares = cells(MASK, (2, 2, 4))
    assert float(mass(shares, MASK)) == pytest.approx(1.25 / 1.5, abs=1e-12)
    assert float(pointing(shares, MASK)) == 1
    assert float(pointing(-shares, MASK)) == 0
    # As fine as the pixels, all of it is on the mask.
    assert float(mass(cells(MASK, (4, 8, 8)), MASK)) == 1


def test_negative_weights_have_no_mass() -> None:
    weights = torch.zeros(2, 2, 4)
    weights[0, 0, 1], weights[1, 1, 3], weights[1, 0, 0] = 3.0, 1.0, -7.0
    assert float(mass(weights, MASK)) == 0.75
    assert float(mass(-weights.abs(), MASK)) == pytest.approx(24 / 256, abs=1e-12)


def test_tied_cells_count_by_their_share() -> None:
    weights = torch.zeros(2, 2, 4)
    weights[0, 0, 1] = weights[0, 0, 2] = weights[1, 1, 1] = weights[1, 1, 2] = 1.0
    assert float(pointing(weights, MASK)) == 0.5  # two of four, one of them half covered


def test_a_faint_mask_is_not_pointed_at() -> None:
    weights = cells(MASK, (2, 2, 4))
    assert float(pointing(weights, MASK * 0.5)) == 0
    assert float(mass(weights, MASK * 0.5)) == pytest.approx(0.5 * 1.25 / 1.5, abs=1e-12)


def test_rows_of_many_queries_have_one_mask() -> None:
    rows = torch.rand(3, 5, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    together, pointed = mass(rows, MASK), pointing(rows, MASK)
    assert together.shape == pointed.shape == (3, 5)
    for n in range(3):
        for q in range(5):
            assert float(together[n, q]) == pytest.approx(float(mass(rows[n, q], MASK)), abs=1e-12)
            best = int(rows[n, q].argmax())
            assert float(pointed[n, q]) == float(meets(MASK, (2, 2, 4)).flatten()[best])
