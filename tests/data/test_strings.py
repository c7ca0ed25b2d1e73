import pickle

import numpy as np

from videoattn.data.strings import PackedStrings

STRINGS = ["a b/c.mp4", "", "x", "größe/日本.webm", "latin1_\udce9.mp4", "a b/c.mp4"]


def test_packed_strings_are_unpacked() -> None:
    packed = PackedStrings.of(STRINGS)
    assert list(packed) == [packed[i] for i in range(len(packed))] == STRINGS
    assert [packed[-1], packed[-len(STRINGS)]] == [STRINGS[-1], STRINGS[0]]
    assert list(packed.take(np.array([3, 0]))) == [STRINGS[3], STRINGS[0]]
    assert list(PackedStrings.of([])) == list(packed.take([])) == []


def test_pickles_are_two_arrays() -> None:
    packed = PackedStrings.of(f"train/class {i % 7}/{i:06d}.mp4" for i in range(10_000))
    stored = pickle.dumps(packed)
    assert len(stored) < packed.data.nbytes + packed.ends.nbytes + 500
    assert list(pickle.loads(stored)) == list(packed)
