"""Writes the clips with two motions each that docs/benchmarks.md trains on.

python tools/bench/pairs.py FOLDER
"""

from itertools import combinations
from pathlib import Path

import typer

from videoattn.data.synthetic import MOTIONS, Split, demo_clip, encode_clip
from videoattn.files import write_text


def write_pair_clips(
    root: Path, *, seed: int = 0, num_train: int = 480, num_test: int = 144
) -> None:
    """Writes clips with two motions each to `root/{train,test}/<number>.mp4`, and their lists.

    A line of `root/train.txt` or `root/test.txt` is `train/0000.mp4 grows;moves_left`.

    Raises:
        ValueError: If a count is below 1.
    """
    splits: dict[Split, int] = {"train": num_train, "test": num_test}
    pairs = [pair for pair in combinations(MOTIONS, 2) if len({MOTIONS[m][0] for m in pair}) == 2]
    for split, count in splits.items():
        if count < 1:
            raise ValueError(f"num_{split}: got {count}; need at least 1")
        lines = []
        for number in range(count):
            pair, path = pairs[number % len(pairs)], root / split / f"{number:04d}.mp4"
            encode_clip(path, demo_clip(pair, seed=seed, split=split, number=number))
            lines.append(f"{split}/{path.name} {';'.join(pair)}\n")
        write_text(root / f"{split}.txt", "".join(lines))


if __name__ == "__main__":
    typer.run(write_pair_clips)
