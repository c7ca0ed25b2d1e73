from typing import cast

import pytest
import torch

from videoattn.engine.precision import (
    Precision,
    autocast,
    has_bfloat16,
    resolve_precision,
)

CPU = torch.device("cpu")


def test_auto_depends_on_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
    assert not has_bfloat16(torch.device("meta"))


def test_precisions_by_name() -> None:
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ValueError, match=r"'float16' does not exist .*; choose from auto, f"):
        _resolve_unchecked("float16")


def _resolve_unchecked(name: str) -> torch.dtype:
    # The type checker of the tests would refuse the name before the function does.
    unchecked = getattr(resolve_precision, "__wrapped__", resolve_precision)
    return cast(torch.dtype, unchecked(cast(Precision, name), CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype) -> None:
    with autocast(dtype, CPU):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype
