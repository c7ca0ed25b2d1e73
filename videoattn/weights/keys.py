"""The names that other projects gave to the parameters of one network: a key map per ecosystem.

A key map is a pure function: a public key in, our key out (torchvision's names, with inserted
non-local blocks as `layer2.1_non_local`), or None for a key that the map does not know.

A map is an ordered table of (pattern, template). The pattern matches the whole key; the template
is filled from its named groups, after the words of the ecosystem (`s3`, `conv_a`) became ours.
"""

import re
from collections.abc import Callable, Mapping

KeyMap = Callable[[str], str | None]
Rules = tuple[tuple[str, str], ...]


def _rename(key: str, rules: Rules, words: Mapping[str, str]) -> str | None:
    for pattern, template in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return template.format(**{k: words.get(v, v) for k, v in match.groupdict().items()})
    return None


_END = r"(?P<end>weight|bias|running_mean|running_var|num_batches_tracked)"

_TORCHVISION: Rules = (
    (rf"(?P<stem>conv1|bn1|fc)\.{_END}", "{stem}.{end}"),
    (
        rf"(?P<layer>layer[1-4])\.(?P<b>\d+)\.(?P<part>(conv|bn)[1-3]|downsample\.[01])\.{_END}",
        "{layer}.{b}.{part}.{end}",
    ),
)


def torchvision(key: str) -> str | None:
    """torchvision's ResNet, whose names are ours."""
    return _rename(key, _TORCHVISION, {})


_PYSLOWFAST: Rules = (
    (rf"s1\.pathway0_stem\.conv\.{_END}", "conv1.{end}"),
    (rf"s1\.pathway0_stem\.bn\.{_END}", "bn1.{end}"),
    (
        rf"(?P<layer>s[2-5])\.pathway0_res(?P<b>\d+)\.branch1\.{_END}",
        "{layer}.{b}.downsample.0.{end}",
    ),
    (
        rf"(?P<layer>s[2-5])\.pathway0_res(?P<b>\d+)\.branch1_bn\.{_END}",
        "{layer}.{b}.downsample.1.{end}",
    ),
    (
        rf"(?P<layer>s[2-5])\.pathway0_res(?P<b>\d+)\.branch2\.(?P<i>[abc])\.{_END}",
        "{layer}.{b}.conv{i}.{end}",
    ),
    (
        rf"(?P<layer>s[2-5])\.pathway0_res(?P<b>\d+)\.branch2\.(?P<i>[abc])_bn\.{_END}",
        "{layer}.{b}.bn{i}.{end}",
    ),
    (
        rf"(?P<layer>s[2-5])\.pathway0_nonlocal(?P<b>\d+)\.conv_(?P<part>theta|phi|g|out)\.{_END}",
        "{layer}.{b}_non_local.{part}.{end}",
    ),
    (
        rf"(?P<layer>s[2-5])\.pathway0_nonlocal(?P<b>\d+)\.bn\.{_END}",
        "{layer}.{b}_non_local.bn.{end}",
    ),
    (rf"head\.projection\.{_END}", "fc.{end}"),
)
_PYSLOWFAST_WORDS = {
    "s2": "layer1",
    "s3": "layer2",
    "s4": "layer3",
    "s5": "layer4",
    "a": "1",
    "b": "2",
    "c": "3",
}


def pyslowfast(key: str) -> str | None:
    """PySlowFast's single-pathway ResNets: C2D, I3D and Slow, with or without non-local blocks."""
    return _rename(key, _PYSLOWFAST, _PYSLOWFAST_WORDS)


_PYTORCHVIDEO: Rules = (
    (rf"blocks\.0\.conv\.{_END}", "conv1.{end}"),
    (rf"blocks\.0\.norm\.{_END}", "bn1.{end}"),
    (
        rf"blocks\.(?P<layer>\d)\.res_blocks\.(?P<b>\d+)\.branch1_conv\.{_END}",
        "layer{layer}.{b}.downsample.0.{end}",
    ),
    (
        rf"blocks\.(?P<layer>\d)\.res_blocks\.(?P<b>\d+)\.branch1_norm\.{_END}",
        "layer{layer}.{b}.downsample.1.{end}",
    ),
    (
        rf"blocks\.(?P<layer>\d)\.res_blocks\.(?P<b>\d+)\.branch2\.conv_(?P<i>[abc])\.{_END}",
        "layer{layer}.{b}.conv{i}.{end}",
    ),
    (
        rf"blocks\.(?P<layer>\d)\.res_blocks\.(?P<b>\d+)\.branch2\.norm_(?P<i>[abc])\.{_END}",
        "layer{layer}.{b}.bn{i}.{end}",
    ),
    (rf"blocks\.[56]\.proj\.{_END}", "fc.{end}"),
)
_LETTERS = {"a": "1", "b": "2", "c": "3"}


def pytorchvideo(key: str) -> str | None:
    """pytorchvideo's hub Slow: stages are blocks 1 to 4, the head is block 5."""
    return _rename(key, _PYTORCHVIDEO, _LETTERS)


def pytorchvideo_pooled(key: str) -> str | None:
    """pytorchvideo's hub I3D and C2D: block 2 is a pool without parameters, the stages after it
    are blocks 3 to 5, the head is block 6."""
    number = re.match(r"blocks\.([2-6])\.", key)
    if number is None:
        return _rename(key, _PYTORCHVIDEO, _LETTERS)
    if number[1] == "2":
        return None
    return pytorchvideo(f"blocks.{int(number[1]) - 1}.{key[number.end() :]}")


_BLOCK = r"backbone\.(?P<layer>layer[1-4])\.(?P<b>\d+)"
_MMACTION2: Rules = (
    (rf"backbone\.conv1\.conv\.{_END}", "conv1.{end}"),
    (rf"backbone\.conv1\.bn\.{_END}", "bn1.{end}"),
    # TSM's shift is a module around the first convolution, `net`
    (
        rf"{_BLOCK}\.conv(?P<i>[1-3])\.(?P<part>conv|bn)(\.net)?\.{_END}",
        "{layer}.{b}.{part}{i}.{end}",
    ),
    (rf"{_BLOCK}\.downsample\.conv\.{_END}", "{layer}.{b}.downsample.0.{end}"),
    (rf"{_BLOCK}\.downsample\.bn\.{_END}", "{layer}.{b}.downsample.1.{end}"),
    # phi and g are Sequential(conv, pool) where keys are pooled, the bare conv where they are not
    (
        rf"{_BLOCK}\.non_local_block\.(?P<part>theta|phi|g)(\.0)?\.conv\.{_END}",
        "{layer}.{b}_non_local.{part}.{end}",
    ),
    (rf"{_BLOCK}\.non_local_block\.conv_out\.conv\.{_END}", "{layer}.{b}_non_local.out.{end}"),
    (rf"{_BLOCK}\.non_local_block\.conv_out\.bn\.{_END}", "{layer}.{b}_non_local.bn.{end}"),
    (rf"cls_head\.fc_cls\.{_END}", "fc.{end}"),
)


def mmaction2(key: str) -> str | None:
    """mmaction2's TSN, I3D and SlowOnly recognisers, with or without non-local blocks."""
    return _rename(key, _MMACTION2, {})
