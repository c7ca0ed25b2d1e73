from typing import cast

import pytest
import torch

from videoattn.engine.precision import (
    Precision,
    autocast,
    has_bfloat16,
    resolve_precision,
    unsafe_convolutions,
)

CPU = torch.device("cpu")


def test_auto_asks_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
    assert not has_bfloat16(torch.device("meta"))


def test_a_named_precision_is_what_it_says() -> None:
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ValueError, match=r"'float16' is not one of auto, float32, bfloat16"):
        _resolve_unchecked("float16")


def _resolve_unchecked(name: str) -> torch.dtype:
    # The type checker of the tests would refuse the name before the function could.
    unchecked = getattr(resolve_precision, "__wrapped__", resolve_precision)
    return cast(torch.dtype, unchecked(cast(Precision, name), CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype) -> None:
    with autocast(dtype, CPU):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype


@pytest.mark.parametrize(("num_frames", "unsafe"), [(1, 0), (2, 1), (3, 0)])
def test_convolutions_that_bfloat16_corrupts_are_found(num_frames: int, unsafe: int) -> None:
    video = torch.zeros(1, 3, num_frames, 4, 4)
    model = torch.nn.Sequential(
        torch.nn.Conv3d(3, 2, 3, padding=1), torch.nn.Conv3d(2, 2, (1, 3, 3), padding=(0, 1, 1))
    )
    found = unsafe_convolutions(model, video)
    assert found == [f"a kernel of (3, 3, 3) over {num_frames} frames"] * unsafe
    assert model.training
    padded_before = torch.nn.Sequential(
        torch.nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0), torch.nn.Conv3d(3, 2, 3, padding=(0, 1, 1))
    )
    assert not unsafe_convolutions(padded_before, video)
