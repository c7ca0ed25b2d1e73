"""Wrong training labels: their share, their classes, and what they depend on."""

import numpy as np
import pytest

from videoattn.data.classes import LabelNoise

NUM_SAMPLES, NUM_CLASSES = 20_000, 5


def labels(noise: LabelNoise, true: int = 3) -> np.ndarray:
    return np.array([noise.label(true, index) for index in range(NUM_SAMPLES)])


def test_the_share_is_wrong_and_the_other_classes_are_equally_likely() -> None:
    noise = LabelNoise(0.4, NUM_CLASSES, seed=0)
    found = labels(noise)
    shares = np.bincount(found, minlength=NUM_CLASSES) / NUM_SAMPLES
    # Six standard deviations of a share of 0.1 (0.0021) and of 0.6 (0.0035).
    np.testing.assert_allclose(shares[[0, 1, 2, 4]], 0.1, atol=0.013)
    np.testing.assert_allclose(shares[3], 0.6, atol=0.021)
    assert noise.count(NUM_SAMPLES) == (found != 3).sum()


def test_a_larger_share_adds_wrong_labels_and_keeps_the_others() -> None:
    less, more = (labels(LabelNoise(share, NUM_CLASSES, seed=7)) for share in (0.2, 0.6))
    wrong = less != 3
    assert 0 < wrong.sum() < (more != 3).sum()
    np.testing.assert_array_equal(more[wrong], less[wrong])


def test_labels_depend_on_seed_and_sample_only() -> None:
    first, second = LabelNoise(0.5, NUM_CLASSES, 0), LabelNoise(0.5, NUM_CLASSES, 0)
    np.testing.assert_array_equal(labels(first), labels(second))
    assert (labels(first) != labels(LabelNoise(0.5, NUM_CLASSES, 1))).mean() > 0.4
    # Fixed values: runs with noise can be repeated with any later version.
    assert [first.label(0, index) for index in range(10)] == [1, 1, 0, 0, 0, 0, 0, 0, 4, 0]


def test_the_ends_of_the_range() -> None:
    assert set(labels(LabelNoise(0.0, NUM_CLASSES, 0))) == {3}
    assert set(labels(LabelNoise(1.0, NUM_CLASSES, 0))) == {0, 1, 2, 4}
    assert LabelNoise(1.0, NUM_CLASSES, 0).label(-1, 0) == -1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(
        ValueError, match=r"label_noise: got .*; need a share of the labels, 0 to 1"
    ):
        LabelNoise(share, NUM_CLASSES, 0)


def test_noise_needs_another_class() -> None:
    with pytest.raises(ValueError, match="label_noise: got one class; need another class"):
        LabelNoise(0.5, 1, 0)
    assert LabelNoise(0.0, 1, 0).label(0, 0) == 0
