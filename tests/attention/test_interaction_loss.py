"""Properties of the two losses that follow from principal component analysis, in float64."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from tests.reference.interaction import literal_diversity, literal_interaction
from videoattn.attention.blocks.pyramid import (
    FORMS,
    diversity_loss,
    interaction_loss,
    unit_rows,
)

D, P, C = 3, 7, 11


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(d: int = D, p: int = P, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(p, d, seed=seed))[0].T


def eigen(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the descending eigenvalues of X Xᵀ and the eigenvectors as rows, by numpy."""
    values, vectors = np.linalg.eigh((x @ x.T).numpy())
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].T.copy())


def literal(rows: Tensor, x: Tensor) -> float:
    return interaction_loss(rows[None], x[None], "literal").item()


def normalized(rows: Tensor, x: Tensor) -> float:
    return interaction_loss(rows[None], x[None], "normalized").item()


def softmax_rows(seed: int = 0, scale: float = 1.0) -> Tensor:
    return unit_rows(scale * random(1, D, P, seed=seed))[0]


def test_equals_the_printed_formulas() -> None:
    x, scores = random(2, P, C), random(2, D, P, seed=1)
    levels = [random(2, D, P, seed=seed).softmax(-1) for seed in (2, 3)]
    rows, fused = unit_rows(scores), scores.softmax(-1)
    one, two = interaction_loss(rows, x, "literal"), diversity_loss(fused, levels, "literal")
    mean = diversity_loss(fused, levels, "normalized")
    for n in range(2):
        expected = literal_interaction(rows[n].numpy(), x[n].numpy())
        assert one[n].item() == pytest.approx(expected, rel=1e-12)
        expected = literal_diversity(fused[n].numpy(), [own[n].numpy() for own in levels])
        assert two[n].item() == pytest.approx(expected, rel=1e-12)
        assert mean[n].item() == pytest.approx(expected / math.sqrt(2 * D * P), rel=1e-12)
        scaled = (x[n] / x[n].norm()).numpy()
        expected = literal_interaction(rows[n].numpy(), scaled)
        assert normalized(rows[n], x[n]) == pytest.approx(expected, rel=1e-12)


def test_kept_and_remaining_variance_of_orthonormal_rows_add_up() -> None:
    a, x = orthonormal(), random(P, C)
    left = (x - a.T @ a @ x).square().sum()
    assert left.item() == pytest.approx((x.square().sum() - (a @ x).square().sum()).item())
    assert literal(a, x) == pytest.approx((left - x.square().sum()).item(), rel=1e-12)


def test_the_eigenvectors_are_best_among_orthonormal_rows() -> None:
    x = random(P, C)
    values, vectors = eigen(x)
    best = literal(vectors[:D], x)
    assert best == pytest.approx(-values[:D].sum().item(), rel=1e-12)
    left = (x - vectors[:D].T @ vectors[:D] @ x).square().sum().item()
    assert left == pytest.approx(values[D:].sum().item(), rel=1e-10)
    assert all(literal(orthonormal(seed=seed), x) > best for seed in range(50))


def test_rows_that_span_the_features_keep_all_variance() -> None:
    basis = orthonormal()
    x = basis.T @ random(D, C, seed=1)  # has rank D
    assert (x - basis.T @ basis @ x).square().sum() < 1e-25
    turned = orthonormal(D, D, seed=2) @ basis
    assert literal(turned, x) == pytest.approx(-x.square().sum().item(), rel=1e-12)
    assert literal(orthonormal(seed=3), x) > -0.99 * x.square().sum().item()


def test_centered_rows_match_scikit_learn() -> None:
    """Positions are features and channels are samples."""
    x = random(P, C) + 3 * random(P, 1, seed=1)
    pca = PCA(D, svd_solver="full").fit(x.T.numpy())
    centered = x - x.mean(1, keepdim=True)
    values, vectors = eigen(centered)
    np.testing.assert_allclose(pca.explained_variance_ * (C - 1), values[:D], rtol=1e-11)
    components = torch.from_numpy(pca.components_)
    overlap = (components * vectors[:D]).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(D, dtype=torch.float64), rtol=0, atol=1e-11)
    expected = -pca.explained_variance_.sum() * (C - 1)
    assert literal(components, centered) == pytest.approx(expected, rel=1e-11)
    assert literal(components, x) != pytest.approx(expected, rel=1e-2)


def test_loss_of_unit_rows_stays_within_its_bounds() -> None:
    x = random(P, C)
    first = eigen(x)[0][0].item()
    for seed in range(30):
        rows = torch.nn.functional.normalize(random(D, P, seed=seed), dim=1)
        for some in (rows, softmax_rows(seed, 5.0)):
            assert -D * first <= literal(some, x) <= D * (D - 1)
            assert -D <= normalized(some, x) <= D * (D - 1)
    equal = rows[:1].expand(D, P)
    assert literal(equal, torch.zeros(P, C, dtype=torch.float64)) == pytest.approx(D * (D - 1))
    nothing = normalized(equal, torch.zeros(P, C, dtype=torch.float64))
    assert nothing == pytest.approx(D * (D - 1))


def test_softmax_rows_have_length_one_and_always_overlap() -> None:
    rows = unit_rows(torch.cat([random(2, D, P), 4 * random(2, D, P, seed=1)]))
    gram = rows @ rows.transpose(1, 2)
    torch.testing.assert_close(gram.diagonal(dim1=1, dim2=2), torch.ones(4, D).double())
    assert (gram > 0).all()


def test_unit_rows_match_softmax_and_division() -> None:
    scores = random(2, D, P)
    a = scores.softmax(-1)
    torch.testing.assert_close(unit_rows(scores), a / a.norm(dim=-1, keepdim=True))
    steep = (1e4 * scores.float()).requires_grad_()
    rows = unit_rows(steep)
    rows.sum().backward()
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, D))
    assert steep.grad is not None
    assert steep.grad.isfinite().all()


def collapse_gain(values: Tensor, d: int) -> float:
    """Returns how much more D copies of the first eigenvector keep than D components."""
    return (d * values[0] - values[:d].sum()).item()


@pytest.mark.parametrize("scale", [0.1, 0.9, 1.1, 10.0])
def test_literal_loss_collapses_above_a_threshold(scale: float) -> None:
    x = random(P, C).abs()
    x = x * math.sqrt(D * (D - 1) / collapse_gain(eigen(x)[0], D))  # exactly the threshold
    values, vectors = eigen(scale * x)
    collapsed = literal(vectors[:1].expand(D, P), scale * x)
    assert collapsed == pytest.approx(-D * values[0].item() + D * (D - 1))
    assert (collapsed < literal(vectors[:D], scale * x)) == (scale > 1)


@pytest.mark.parametrize("seed", range(5))
def test_normalized_loss_never_collapses(seed: int) -> None:
    """The threshold is at most 1/D, even for features with one component."""
    for x in (random(P, C, seed=seed), 1e3 * random(P, 1, seed=seed) @ random(1, C, seed=seed + 9)):
        unit = x / x.norm()
        values, vectors = eigen(unit)
        assert collapse_gain(values, D) / (D * (D - 1)) <= 1 / D + 1e-12
        assert normalized(vectors[:1].expand(D, P), x) > normalized(vectors[:D], x)


def test_softmax_rows_reach_the_collapse_of_rectified_features() -> None:
    """Their first eigenvector is nonnegative (Perron-Frobenius), so a softmax can reach it."""
    x = 10 * random(P, C).relu()
    values, vectors = eigen(x)
    first = vectors[0] * vectors[0].sign()[0]
    assert (first > 0).all()
    rows = unit_rows(first.log().expand(1, D, P))[0]
    expected = -D * values[0].item() + D * (D - 1)
    assert literal(rows, x) == pytest.approx(expected, rel=1e-12)
    assert expected < -values[:D].sum().item()


def minimized(x: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """Returns the minimum of the literal loss over unit rows, and these rows."""
    free = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=300, tolerance_grad=1e-11, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        rows = torch.nn.functional.normalize(free, dim=1)
        loss = interaction_loss(rows[None], x[None], "literal")[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    rows = torch.nn.functional.normalize(free.detach(), dim=1)
    return literal(rows, x), rows


@pytest.mark.parametrize("mu", [0.3, 1.0, 5.0, 0.1])
def test_overlap_of_two_rows_in_the_plane(mu: float) -> None:
    """The overlap is min(1, (l_1 - l_2) / 4 mu); penalty mu is 1 for features / sqrt(mu)."""
    values = torch.tensor([1.5, 0.5], dtype=torch.float64)
    _, rows = minimized((values / mu).sqrt().diag(), random(2, 2))
    overlap = (rows[0] @ rows[1]).abs().item()
    assert overlap == pytest.approx(min(1.0, 1.0 / (4 * mu)), abs=1e-6)


def test_free_rows_reach_the_components_as_the_penalty_grows() -> None:
    """The loss is that of the components minus the gain (l_1 - l_2)² / 8 mu from the overlap above.

    Any two orthonormal rows in the plane of two components keep the same variance.
    """
    x, rows = random(P, C), random(2, P, seed=1)
    values, _ = eigen(x)
    kept = values[:2].sum().item()
    for price in (1.0, 10.0, 100.0, 1000.0):
        mu = price * values[0].item()
        reached, rows = minimized(x / math.sqrt(mu), rows)
        gain = (values[0] - values[1]).item() ** 2 / (8 * mu)
        assert mu * reached == pytest.approx(-kept - gain, rel=1e-7)
    assert gain < 2e-5 * kept


@pytest.mark.parametrize(
    ("form", "reaches"),
    [("balanced", False), ("normalized", False), ("scaled", True), ("literal", True)],
)
def test_features_get_a_gradient_only_in_the_scaled_and_literal_forms(
    form: str, reaches: bool
) -> None:
    x, scores = random(2, P, C).requires_grad_(), random(2, D, P, seed=1).requires_grad_()
    interaction_loss(unit_rows(scores), x, form).sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() > 1e-3
    assert (x.grad is not None and bool(x.grad.abs().max() > 1e-3)) == reaches


def test_only_the_literal_loss_gains_from_larger_features() -> None:
    x, rows = random(P, C)[None], softmax_rows()[None]
    for form in FORMS:
        small, large = interaction_loss(rows, x, form), interaction_loss(rows, 10 * x, form)
        assert torch.allclose(small, large, rtol=1e-12) == (form != "literal")
    assert large < small


@pytest.mark.parametrize("num_levels", [1, 3])
def test_diversity_loss_stays_within_its_bounds(num_levels: int) -> None:
    lower = math.sqrt(num_levels * D * (P - 2))
    upper = math.sqrt(num_levels * D * P)
    for scale in (0.0, 1.0, 100.0):
        a = (scale * random(4, D, P)).softmax(-1)
        own = [(scale * random(4, D, P, seed=s + 1)).softmax(-1) for s in range(num_levels)]
        value = diversity_loss(a, own, "literal")
        assert ((lower - 1e-12 <= value) & (value <= upper + 1e-12)).all()
    one_hot = torch.eye(P, dtype=torch.float64)
    apart = diversity_loss(one_hot[None, :D], [one_hot[None, -D:]] * num_levels, "literal")
    assert apart.item() == pytest.approx(lower, rel=1e-12)
    same = diversity_loss(a, [a] * num_levels)
    torch.testing.assert_close(same, torch.ones(4, dtype=torch.float64))


def test_diversity_of_two_positions_has_a_gradient_everywhere() -> None:
    scores = torch.tensor([[[40.0, -40.0]]], dtype=torch.float64, requires_grad=True)
    loss = diversity_loss(scores.softmax(-1), [(-scores.detach()).softmax(-1)], "literal")
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


# --- the balanced form --------------------------------------------------------------------------


def gradients(d: int, p: int, c: int, form: str) -> tuple[float, float, float]:
    """Returns the norms of the gradients for the scores, at the start of training: of the cross
    entropy of a classifier of all rows, of the interaction loss, and of the diversity loss.

    Features are rectified mixtures of eight patterns and noise; three levels have random scores.
    """
    torch.manual_seed(0)
    scores = [(0.17 * random(4, d, p, seed=seed)).requires_grad_() for seed in range(3)]
    x = (
        random(4, p, 8, seed=5) @ random(8, c, seed=6) / 8**0.5 + random(4, p, c, seed=7) / 2
    ).relu()
    fused = sum(scores)
    assert isinstance(fused, Tensor)
    rows, own = unit_rows(fused), [y.softmax(-1) for y in scores]
    classifier = torch.nn.Linear(d * c, 10).double()
    logits = classifier((rows @ x).flatten(1) / (p * d) ** 0.5)
    losses = (
        torch.nn.functional.cross_entropy(logits, torch.arange(4)),
        interaction_loss(rows, x, form).mean(),
        diversity_loss(fused.softmax(-1), own, form).mean(),
    )
    parts = (torch.autograd.grad(loss, scores, retain_graph=True) for loss in losses)
    entropy, interaction, diversity = (torch.stack(part).norm().item() for part in parts)
    return entropy, interaction, diversity


SIZES = [(d, p, c) for d in (4, 8, 49) for p in (49, 392) for c in (64, 512)]


def test_balanced_gradients_keep_their_size_relative_to_cross_entropy() -> None:
    ratios = {form: ([], []) for form in ("balanced", "normalized")}
    for form, (interaction, diversity) in ratios.items():
        for size in SIZES:
            entropy, one, two = gradients(*size, form)
            interaction.append(one / entropy)
            diversity.append(two / entropy)
    for found in ratios["balanced"]:
        middle = sum(found) / len(found)
        assert 0.1 < middle < 10
        assert max(found) < 1.2 * middle
        assert min(found) > 0.8 * middle
    interaction, diversity = ratios["normalized"]
    assert max(interaction) > 100 * min(interaction)
    assert max(diversity) < 1e-3


def test_balanced_loss_is_the_normalized_one_per_pair() -> None:
    x, rows = random(2, P, C), unit_rows(random(2, D, P, seed=1))
    expected = interaction_loss(rows, x, "normalized") / (D * (D - 1))
    torch.testing.assert_close(interaction_loss(rows, x), expected)
    one = interaction_loss(rows[:, :1], x)
    torch.testing.assert_close(one, interaction_loss(rows[:, :1], x, "normalized"))


def test_balanced_diversity_is_one_for_equal_rows_and_zero_for_rows_apart() -> None:
    a = random(2, D, P).softmax(-1)
    torch.testing.assert_close(diversity_loss(a, [a, a]), torch.ones(2).double())
    one_hot = torch.eye(P, dtype=torch.float64)
    assert diversity_loss(one_hot[None, :D], [one_hot[None, -D:]]).item() == 0
    for scale in (0.1, 1.0, 10.0):
        own = [(scale * random(2, D, P, seed=s)).softmax(-1) for s in (1, 2)]
        value = diversity_loss(a, own)
        assert ((value > 0) & (value < 1)).all()


# --- what rows can reach ------------------------------------------------------------------------


def best_rows(x: Tensor, d: int, positive: bool) -> Tensor:
    """Minimizes the loss over rows of length 1, or over those of softmaxes."""
    free = random(d, len(x), seed=3).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def rows() -> Tensor:
        return unit_rows(free[None])[0] if positive else torch.nn.functional.normalize(free, dim=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = interaction_loss(rows()[None], x[None])[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    return rows().detach()


@pytest.mark.parametrize("rectified", [False, True])
def test_free_rows_find_the_principal_subspace_and_positive_rows_do_not(rectified: bool) -> None:
    """By the smallest cosine between their span and that of the first four eigenvectors."""
    x = random(24, 64, seed=11)
    x = x.relu() if rectified else x
    values, vectors = eigen(x)
    for positive in (False, True):
        rows = best_rows(x, 4, positive)
        basis = torch.linalg.qr(rows.T)[0]
        cosine = torch.linalg.svdvals(vectors[:4] @ basis)[-1].item()
        kept = (basis.T @ x).square().sum() / values[:4].sum()
        if positive:
            assert cosine < 0.5
            assert kept < 0.97
        else:
            assert cosine > 0.99999
            assert kept > 0.99999
