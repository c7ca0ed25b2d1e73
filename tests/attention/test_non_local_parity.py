"""Parity with recorded outputs of the non-local blocks of mmcv and PySlowFast."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.reference import fill
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.weights import keys

_mmcv = partial(NonLocal, 8, pool_order="after", out_bias=False)
_pyslowfast = partial(NonLocal, 8)
BLOCKS = {
    "mmcv_nonlocal3d_concatenation_sub1_scale0": partial(_mmcv, form="concatenation"),
    "mmcv_nonlocal3d_dot_product_sub0_scale0": partial(_mmcv, form="dot_product", key_pool=None),
    "mmcv_nonlocal3d_embedded_gaussian_sub0_scale1": partial(_mmcv, scale=True, key_pool=None),
    "mmcv_nonlocal3d_embedded_gaussian_sub1_scale0": partial(_mmcv, scale=False),
    "mmcv_nonlocal3d_gaussian_sub0_scale0": partial(_mmcv, form="gaussian", key_pool=None),
    "pyslowfast_nonlocal_dot_product_pool0": partial(
        _pyslowfast, form="dot_product", key_pool=None
    ),
    "pyslowfast_nonlocal_softmax_pool1": _pyslowfast,
}


def _our_state(name: str, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts keys by the key map of a whole network, with the block after layer2.0."""
    ours = {}
    for key, value in theirs.items():
        if key == "concat_project.conv.weight":  # not in public networks: (1, 2D, 1, 1)
            ours["pair.weight"] = value.flatten(1)
            continue
        if name.startswith("mmcv"):
            renamed = keys.mmaction2.ours(f"backbone.layer2.0.non_local_block.{key}")
        else:
            renamed = keys.pyslowfast.ours(f"s3.pathway0_nonlocal0.{key}")
        assert renamed is not None
        ours[renamed.removeprefix("layer2.0_non_local.")] = value
    return ours


@pytest.mark.parametrize("name", BLOCKS)
def test_block_reproduces_the_outputs_of_the_public_code(name: str) -> None:
    record = fill.read("blocks", name)
    block = BLOCKS[name]().eval()
    block.load_state_dict(_our_state(name, fill.state_dict(record)))  # strict, so every key matches
    with torch.no_grad():
        y = block(fill.clip(record))
    assert list(y.shape) == record["output_shape"]
    expected = torch.tensor(record["output"])
    error = (y.flatten()[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-5
    assert y.mean().item() == pytest.approx(record["output_mean"], abs=1e-5)
