"""Each layout maps the keys of a public network to our names, and back."""

import pytest

from tests.weights.public_states import RECORDS, recorded
from videoattn.weights import keys
from videoattn.weights.public import PUBLIC


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (keys.torchvision, "layer3.5.downsample.1.bias", "layer3.5.downsample.1.bias"),
        (keys.pyslowfast, "s1.pathway0_stem.bn.bias", "bn1.bias"),
        (keys.pyslowfast, "s4.pathway0_res22.branch2.c_bn.weight", "layer3.22.bn3.weight"),
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
        (keys.mmaction2, "backbone.layer2.1.non_local_block.conv_out.bn.bias",
         "layer2.1_non_local.bn.bias"),
        (keys.mmaction2, "cls_head.fc_cls.weight", "fc.weight"),
        (keys.mmaction2_tsm, "backbone.layer1.2.conv1.conv.net.weight", "layer1.2.conv1.weight"),
        (keys.mmaction2_tsm_non_local, "backbone.layer3.4.block.conv1.conv.net.weight",
         "layer3.4.conv1.weight"),
        (keys.mmaction2_tsm_non_local, "backbone.layer4.2.conv2.bn.bias", "layer4.2.bn2.bias"),
        (keys.mmaction2_tsm_non_local, "backbone.layer3.4.non_local_block.g.0.conv.bias",
         "layer3.4_non_local.block.g.bias"),
        (keys.caffe2, "conv1_w", "conv1.weight"),
        (keys.caffe2, "res_conv1_bn_riv", "bn1.running_var"),
        (keys.caffe2, "res2_0_branch1_bn_rm", "layer1.0.downsample.1.running_mean"),
        (keys.caffe2, "res5_2_branch2c_bn_s", "layer4.2.bn3.weight"),
        (keys.caffe2, "nonlocal_conv4_5_theta_b", "layer3.5_non_local.theta.bias"),
        (keys.caffe2, "nonlocal_conv3_1_bn_s", "layer2.1_non_local.bn.weight"),
        (keys.caffe2, "pred_b", "fc.bias"),
    ],
)  # fmt: skip
def test_a_public_key_becomes_ours_and_back(layout: keys.Layout, theirs: str, ours: str) -> None:
    assert layout.ours(theirs) == ours
    assert layout.theirs(ours) == theirs


def test_keys_without_pooling() -> None:
    key = "backbone.layer2.1.non_local_block.phi.conv.bias"
    assert keys.mmaction2.ours(key) == "layer2.1_non_local.phi.bias"


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        (keys.torchvision, "layer5.0.conv1.weight"),
        (keys.torchvision, "layer1.0.conv1.weight_v"),
        (keys.torchvision, "layer1x0.conv1.weight"),
        (keys.pyslowfast, "s1.pathway1_stem.bn.bias"),
        (keys.pytorchvideo, "blocks.6.proj.bias"),
        (keys.pytorchvideo_pooled, "blocks.2.res_blocks.0.branch1_conv.weight"),
        (keys.mmaction2, "neck.conv.weight"),
        (keys.mmaction2, "backbone.layer1.2.conv1.conv.net.weight"),
        (keys.mmaction2_tsm, "backbone.layer1.2.conv1.conv.weight"),
        (keys.mmaction2_tsm_non_local, "backbone.layer4.0.block.conv2.conv.weight"),
        (keys.caffe2, "t_res2_0_branch2a_w"),
        (keys.caffe2, "conv1_w_momentum"),
    ],
)
def test_a_key_of_another_network_is_unknown(layout: keys.Layout, key: str) -> None:
    assert layout.ours(key) is None


@pytest.mark.parametrize("name", RECORDS)
def test_every_recorded_key_comes_back(name: str) -> None:
    layout = PUBLIC[name].layouts[0]
    for key in recorded(name):
        ours = layout.ours(key)
        assert ours is not None
        assert layout.theirs(ours) == key


def test_ignored_keys_have_a_reason() -> None:
    assert keys.caffe2.reason_to_ignore("conv1_w_momentum") == "the optimizer's momentum"
    assert keys.caffe2.reason_to_ignore("lr") == "the state of the training run"
    assert keys.caffe2.reason_to_ignore("conv1_w") is None
