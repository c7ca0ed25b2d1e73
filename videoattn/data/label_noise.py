"""Replaces a share of the training labels with wrong ones, to measure robustness."""

import hashlib
import struct


class LabelNoise:
    """Decides which samples have a wrong label, and the label.

    A sample's label is wrong with probability `share`, independently of the others. The wrong label
    is any other class with equal probability. Both are functions of the seed and the sample only,
    so that a sample keeps its label in all epochs, processes and resumed runs. If the share grows,
    wrong labels stay as they are, and further labels become wrong.

    Args:
        share: Expected share of wrong labels, 0 to 1.
        seed: The seed of the run.

    Raises:
        ValueError: If the share is out of range, or there is no other class.
    """

    def __init__(self, share: float, num_classes: int, seed: int) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"label_noise: got {share}; need a share of the labels, 0 to 1")
        if share and num_classes < 2:
            raise ValueError("label_noise: got one class; need another class, or no noise")
        self.share = share
        self.num_classes = num_classes
        self.seed = seed

    def label(self, label: int, index: int) -> int:
        """Returns the label to train with of sample `index`; -1 (unknown) stays -1."""
        chance, step = self._draw(index)
        if label < 0 or chance >= self.share:
            return label
        return (label + step) % self.num_classes

    def count(self, num_samples: int) -> int:
        """Returns how many of the first `num_samples` samples have a wrong label."""
        return sum(self._draw(index)[0] < self.share for index in range(num_samples))

    def _draw(self, index: int) -> tuple[float, int]:
        """Returns a uniform number in [0, 1), and the distance to the wrong class."""
        packed = struct.pack("<2q", self.seed, index)
        digest = hashlib.blake2b(packed, digest_size=16, person=b"label noise").digest()
        first, second = struct.unpack("<2Q", digest)
        # 53 bits are exact in a float, so the quotient is below 1.
        return (first >> 11) / 2**53, 1 + second % max(self.num_classes - 1, 1)
