"""Caffe2 pickles: published names, models with frozen norms, refused content."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.weights.public_states import DERIVED, blobs, derived, recorded, state
from videoattn.weights import explain, from_state_dict, load_public, read_state_dict
from videoattn.weights.keys import caffe2

NAMES = [name for name in DERIVED if name.startswith("nonlocal/")]


def _arrays(name: str) -> dict[str, Any]:
    """What the authors' script saves: weights, their momentum, the state of the run."""
    weights = {key: value.numpy() for key, value in state(derived(name)).items()}
    momenta = {f"{key}_momentum": np.zeros(1, np.float32) for key in ("conv1_w", "pred_b")}
    return {**weights, **momenta, "lr": np.float32(1e-4), "model_iter": 400001}


@pytest.mark.parametrize("name", NAMES)
def test_blob_files_load(name: str, tmp_path: Path) -> None:
    arrays = _arrays(name)
    with (tmp_path / "a.pkl").open("wb") as file:
        pickle.dump({"blobs": arrays}, file, protocol=2)
    model = load_public(name, tmp_path / "a.pkl")
    assert sum(p.numel() for p in model.parameters()) == DERIVED[name]
    ours = model.state_dict()
    for key, array in arrays.items():
        renamed = caffe2.ours(key)
        if renamed is None:
            assert key.endswith("_momentum") or key in ("lr", "model_iter")
        else:
            assert ours[renamed].shape == array.shape
            assert ours[renamed].min() == ours[renamed].max() == array.flat[0]


def test_ignored_blobs_are_listed() -> None:
    name = "nonlocal/i3d_baseline_8x8"
    weights = {key: torch.as_tensor(value) for key, value in _arrays(name).items()}
    explanation = explain(name, weights)
    assert explanation.ignored == {
        "conv1_w_momentum": "the optimizer's momentum",
        "pred_b_momentum": "the optimizer's momentum",
        "lr": "the state of the training run",
        "model_iter": "the state of the training run",
    }
    assert explanation.used.keys() | explanation.ignored.keys() == weights.keys()
    assert all(key.endswith("num_batches_tracked") for key in explanation.filled)


def test_older_files_of_pyslowfast_are_blobs() -> None:
    """Both namings give the same network."""
    name = "pyslowfast/I3D_NLN_8x8_R50"
    new = state(recorded(name))
    theirs = blobs("i3d_nonlocal_8x8")
    old = {}
    for key, value in new.items():
        blob = _published_name(key)
        if blob is not None:
            assert list(value.shape) == theirs[blob]
            old[blob] = value
    assert old.keys() == theirs.keys()
    a, b = from_state_dict(name, new).state_dict(), from_state_dict(name, old).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def _published_name(key: str) -> str | None:
    """Returns the blob of a PySlowFast key: the inverse of their converter."""
    ends = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    front, _, end = key.rpartition(".")
    if end == "num_batches_tracked":
        return None
    front = front.replace("s1.pathway0_stem.conv", "conv1").replace("head.projection", "pred")
    front = front.replace("s1.pathway0_stem.bn", "res_conv1_bn")
    front = re.sub(r"s(\d)\.pathway0_res(\d+)\.branch1", r"res\1_\2_branch1", front)
    front = re.sub(r"s(\d)\.pathway0_res(\d+)\.branch2\.", r"res\1_\2_branch2", front)
    front = re.sub(r"s(\d)\.pathway0_nonlocal(\d)\.(conv_)?", r"nonlocal_conv\1_\2_", front)
    return f"{front}_{ends[end] if front.endswith('bn') else end[0]}"


def test_a_model_with_frozen_norms() -> None:
    """Batch norm without statistics becomes y = s x + b, the authors' affine layer."""
    name = "nonlocal/i3d_nonlocal_8x8"
    affine = {k: v for k, v in state(derived(name)).items() if not k.endswith(("_rm", "_riv"))}
    model = from_state_dict(name, affine)
    norm = model.get_submodule("layer2.0.bn1")
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(torch.tensor(1 - 1e-5)).all()
    x = torch.randn(2, 128, 1, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), norm.weight[0] * x + norm.bias[0], rtol=1e-6, atol=1e-5)
    filled = explain(name, affine).filled
    assert filled["layer2.0.bn1.running_mean"] == "0"
    assert filled["layer2.0.bn1.running_var"] == "1 - epsilon"


def test_one_statistic_without_the_other_is_missing() -> None:
    weights = state(derived("nonlocal/i3d_baseline_8x8"))
    del weights["res_conv1_bn_rm"]
    with pytest.raises(ValueError, match=r"\(our names\): bn1\.running_mean$"):
        from_state_dict("nonlocal/i3d_baseline_8x8", weights)


_SMALL = {"conv1_w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "pred_b": np.zeros(0)}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_protocol_is_read(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    """Affine models were saved at protocol 0, and without the wrapper."""
    arrays = OrderedDict(_SMALL, lr=np.float32(0.5), half=np.asfortranarray(_SMALL["conv1_w"]))
    arrays["swapped"] = _SMALL["conv1_w"].astype(">f8")
    content = {"blobs": arrays} if wrapped else arrays
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_state_dict(tmp_path / "a.pkl")
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        assert torch.equal(found[key], torch.tensor(np.array(value).astype(float)).to(found[key]))
    assert found["conv1_w"].dtype == torch.float32
    assert found["swapped"].dtype == torch.float64


def test_a_file_of_python_2(tmp_path: Path) -> None:
    """What cPickle wrote at protocol 2: {"a": array([1., 2.], float32)}, text as bytes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tb"
    )
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x05blobs}U\x01a" + array + b"ss.")
    assert torch.equal(read_state_dict(tmp_path / "a.pkl")["a"], torch.tensor([1.0, 2.0]))


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "protocol"), [("a.pkl", 0), ("a.pkl", 2), ("a.pkl", 4), ("a.pth", 2), ("a.pth", 4)]
)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, name: str, protocol: int
) -> None:
    mark = tmp_path / "it-ran"
    content = {"blobs": {**_SMALL, "conv2_w": _Runs(mark)}}
    (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
    message = r"refused without running it: the pickle needs \S+; a Caffe2 file holds"
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("program", "asks_for"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "torch.storage._load_from_bytes"),
        (b"\x80\x04\x8c\x05numpy\x8c\x08f2py.sys\x93.", "numpy.f2py.sys"),
    ],
)
def test_the_refused_name_is_shown(tmp_path: Path, program: bytes, asks_for: str) -> None:
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(ValueError, match=f"the pickle needs {re.escape(asks_for)};"):
        read_state_dict(tmp_path / "a.pkl")


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["x"]), np.zeros(2, [("a", "f4")])])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": {"a": array}}, protocol=2))
    with pytest.raises(ValueError, match=r"damaged \(an array of .*, not of numbers\)"):
        read_state_dict(tmp_path / "a.pkl")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("protocol", [0, 2])
def test_a_truncated_pickle(tmp_path: Path, share: float, protocol: int) -> None:
    whole = pickle.dumps({"blobs": {"a": np.zeros(500), "b": np.ones(3)}}, protocol=protocol)
    (tmp_path / "a.pkl").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        ValueError, match=r"the pickle is cut short or damaged \(.*\); fetch it again"
    ):
        read_state_dict(tmp_path / "a.pkl")


def _shared(depth: int) -> bytes:
    """A dict that holds the next one twice, `depth` deep."""
    value: dict[str, Any] = {"x": 1}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return pickle.dumps({"blobs": {"w": np.ones(2)}, "more": value}, protocol=2)


def test_a_shared_dict_is_converted_once(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(_shared(depth=60))
    assert torch.equal(read_state_dict(tmp_path / "a.pkl")["w"], torch.ones(2, dtype=torch.double))


def test_a_dict_that_contains_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"blobs": {"w": np.ones(2)}}
    value["self"] = value
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=2))
    assert read_state_dict(tmp_path / "a.pkl").keys() == {"w"}


def test_a_dict_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02" + b"}U\x01a" * 5000 + b"K\x01" + b"s" * 5000 + b"."
    )
    with pytest.raises(ValueError, match=r"a.pkl: the pickle is damaged or too large; fetch it"):
        read_state_dict(tmp_path / "a.pkl")


def test_running_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}, protocol=2))
    monkeypatch.setattr("videoattn.weights.caffe2._to_tensors", exhausted)
    with pytest.raises(ValueError, match=r"a.pkl: the pickle is damaged or too large; fetch it"):
        read_state_dict(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # LONG_BINPUT 2^31 - 1
        b"\x80\x02}r\x00\x00\x00\x08.",
        b"\x80\x02}p999999999\n.",
    ],
)
def test_a_memo_number_that_would_allocate_gigabytes(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(ValueError, match=r"damaged \(memo number \d+ is too large\)"):
        read_state_dict(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "name",
    ["c_codecs\nencode\n", "cnumpy.core.multiarray\nscalar\n", "ccollections\nOrderedDict\n",
     "cnumpy\nndarray\n", "cnumpy.core.numeric\n_frombuffer\n"],
)  # fmt: skip
@pytest.mark.parametrize("state", [b"}S'x'\nK\x01s", b"N}S'__defaults__'\nK\x01s\x86"])
def test_the_stand_ins_cannot_be_changed(tmp_path: Path, name: str, state: bytes) -> None:
    """The pickle sets the attributes of a function or class that it named."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + name.encode() + state + b"b.")
    with pytest.raises(ValueError, match=r"the pickle is cut short or damaged \(.*\); fetch it"):
        read_state_dict(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}, protocol=2))
    assert read_state_dict(tmp_path / "a.pkl")["w"].tolist() == [1, 1]
