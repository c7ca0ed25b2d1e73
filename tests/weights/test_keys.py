"""Each map sends a public network's keys to exactly our names."""

import pytest

from videoattn.weights import keys


@pytest.mark.parametrize(
    ("rename", "theirs", "ours"),
    [
        (keys.torchvision, "layer3.5.downsample.1.bias", "layer3.5.downsample.1.bias"),
        (keys.pyslowfast, "s1.pathway0_stem.bn.bias", "bn1.bias"),
        (keys.pyslowfast, "s5.pathway0_res2.branch2.c_bn.weight", "layer4.2.bn3.weight"),
        (keys.pyslowfast, "s2.pathway0_res0.branch1.weight", "layer1.0.downsample.0.weight"),
        (keys.pyslowfast, "s3.pathway0_nonlocal1.conv_g.bias", "layer2.1_non_local.g.bias"),
        (keys.pyslowfast, "s4.pathway0_nonlocal5.bn.bias", "layer3.5_non_local.bn.bias"),
        (keys.pytorchvideo, "blocks.4.res_blocks.0.branch2.norm_b.bias", "layer4.0.bn2.bias"),
        (keys.pytorchvideo, "blocks.5.proj.weight", "fc.weight"),
        (keys.pytorchvideo_pooled, "blocks.1.res_blocks.0.branch1_norm.bias",
         "layer1.0.downsample.1.bias"),
        (keys.pytorchvideo_pooled, "blocks.5.res_blocks.2.branch2.conv_a.weight",
         "layer4.2.conv1.weight"),
        (keys.pytorchvideo_pooled, "blocks.6.proj.bias", "fc.bias"),
        (keys.mmaction2, "backbone.layer2.1.conv3.bn.weight", "layer2.1.bn3.weight"),
        (keys.mmaction2, "backbone.layer2.1.non_local_block.phi.0.conv.bias",
         "layer2.1_non_local.phi.bias"),
        (keys.mmaction2, "backbone.layer2.1.non_local_block.phi.conv.bias",
         "layer2.1_non_local.phi.bias"),
        (keys.mmaction2, "backbone.layer2.1.non_local_block.conv_out.bn.bias",
         "layer2.1_non_local.bn.bias"),
        (keys.mmaction2, "cls_head.fc_cls.weight", "fc.weight"),
    ],
)  # fmt: skip
def test_a_public_key_becomes_ours(rename: keys.KeyMap, theirs: str, ours: str) -> None:
    assert rename(theirs) == ours


@pytest.mark.parametrize(
    ("rename", "key"),
    [
        (keys.torchvision, "layer5.0.conv1.weight"),
        (keys.torchvision, "layer1.0.conv1.weight_v"),
        (keys.pyslowfast, "s1.pathway1_stem.bn.bias"),
        (keys.pytorchvideo_pooled, "blocks.2.res_blocks.0.branch1_conv.weight"),
        (keys.mmaction2, "neck.conv.weight"),
    ],
)
def test_a_key_of_another_network_is_unknown(rename: keys.KeyMap, key: str) -> None:
    assert rename(key) is None
