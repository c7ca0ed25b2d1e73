"""Keys and shapes of public models without a record, derived from records or from the published
names, and state dicts that need no memory."""

import re

import torch
from torch import Tensor

from tests.reference import fill

Shapes = dict[str, list[int]]

_MM_I3D = "mmaction2_i3d_imagenet-pretrained-r50{}_8xb8-32x2x1-100e_kinetics400-rgb"
RECORDS = {
    "torchvision/resnet50": "torchvision_resnet50",
    "pytorchvideo/i3d_r50": "pytorchvideo_i3d_r50",
    "pytorchvideo/slow_r50": "pytorchvideo_slow_r50",
    "pyslowfast/C2D_8x8_R50": "pyslowfast_C2D_8x8_R50",
    "pyslowfast/I3D_8x8_R50": "pyslowfast_I3D_8x8_R50",
    "pyslowfast/I3D_NLN_8x8_R50": "pyslowfast_I3D_NLN_8x8_R50",
    "pyslowfast/SLOW_NLN_8x8_R50": "pyslowfast_SLOW_NLN_8x8_R50",
    "mmaction2/tsn_r50": "mmaction2_tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb",
    "mmaction2/tsm_r50": "mmaction2_tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb",
    "mmaction2/i3d_r50": _MM_I3D.format(""),
    "mmaction2/i3d_r50_nl_embedded_gaussian": _MM_I3D.format("-nl-embedded-gaussian"),
    "mmaction2/i3d_r50_nl_dot_product": _MM_I3D.format("-nl-dot-product"),
}

# Published parameter counts. R101 is counted by hand: 17 blocks of 1,117,184, of which 9 have
# three frames in their first convolution, which adds 2·1024·256 each.
_R101 = 17 * 1_117_184 + 9 * 2 * 1024 * 256
DERIVED = {
    "pytorchvideo/c2d_r50": 24_327_632,
    "pyslowfast/SLOW_8x8_R50": 32_454_096,
    "pyslowfast/SLOW_4x16_R50": 32_454_096,
    "pyslowfast/C2D_NLN_8x8_R50": 24_327_632 + 35_401_936 - 28_043_472,
    "pyslowfast/I3D_8x8_R101": 28_043_472 + _R101,
    "pyslowfast/I3D_NLN_8x8_R101": 35_401_936 + _R101,
    "mmaction2/i3d_r50_nl_gaussian": 31_723_728,
    "mmaction2/tsm_r50_nl_embedded_gaussian": 31_682_000,
    "mmaction2/tsm_r50_nl_gaussian": 28_007_888,
    "mmaction2/tsm_r50_nl_dot_product": 31_682_000,
    "mmaction2/slowonly_r50": 32_454_096,
    "mmaction2/slowonly_r50_nl_embedded_gaussian": 39_808_464,
    "nonlocal/c2d_baseline_8x8": 24_327_632,
    "nonlocal/c2d_nonlocal_8x8": 24_327_632 + 35_401_936 - 28_043_472,
    "nonlocal/i3d_baseline_8x8": 28_043_472,
    "nonlocal/i3d_nonlocal_8x8": 35_401_936,
    "nonlocal/i3d_baseline_32x2": 28_043_472,
    "nonlocal/i3d_nonlocal_32x2": 35_401_936,
}


def recorded(name: str) -> Shapes:
    return dict(fill.read("models", RECORDS[name])["keys"])


def derived(name: str) -> Shapes:
    if name.startswith("nonlocal/"):
        return blobs(name.removeprefix("nonlocal/"))
    match name.partition("/")[2]:
        case "c2d_r50":
            c2d = _short_kernels(recorded("pytorchvideo/i3d_r50"), r"blocks\..*conv(_a)?\.weight")
        case "SLOW_8x8_R50" | "SLOW_4x16_R50":
            return _without_non_local(recorded("pyslowfast/SLOW_NLN_8x8_R50"))
        case "C2D_NLN_8x8_R50":
            c2d = _short_kernels(
                recorded("pyslowfast/I3D_NLN_8x8_R50"), r".*(a|stem\.conv)\.weight"
            )
        case "I3D_8x8_R101":
            return _deeper(recorded("pyslowfast/I3D_8x8_R50"))
        case "I3D_NLN_8x8_R101":
            return _deeper(recorded("pyslowfast/I3D_NLN_8x8_R50"))
        case "i3d_r50_nl_gaussian":
            return _gaussian(recorded("mmaction2/i3d_r50_nl_embedded_gaussian"))
        case "tsm_r50_nl_gaussian":
            return _gaussian(_tsm_non_local())
        case "tsm_r50_nl_embedded_gaussian" | "tsm_r50_nl_dot_product":
            return _tsm_non_local()
        case "slowonly_r50":
            return _slow_kernels(recorded("mmaction2/i3d_r50"))
        case _:
            return _slow_kernels(_even(recorded("mmaction2/i3d_r50_nl_embedded_gaussian")))
    return c2d


def blobs(name: str) -> Shapes:
    """Writes down the published names of the non-local paper's files."""
    i3d, shapes = name.startswith("i3d"), {}

    def conv(prefix: str, c_out: int, c_in: int, *kernel: int) -> None:
        shapes[f"{prefix}_w"] = [c_out, c_in, *kernel]

    def norm(prefix: str, channels: int) -> None:
        for end in ("s", "b", "rm", "riv"):
            shapes[f"{prefix}_bn_{end}"] = [channels]

    conv("conv1", 64, 3, 5 if i3d else 1, 7, 7)
    norm("res_conv1", 64)
    patterns = {2: (3, 3, 3), 3: (3, 1, 3, 1), 4: (3, 1, 3, 1, 3, 1), 5: (1, 3, 1)}
    channels = 64
    for stage, pattern in patterns.items():
        inner = 64 * 2 ** (stage - 2)
        for block, frames in enumerate(pattern):
            prefix = f"res{stage}_{block}_branch"
            convs = [
                ("2a", inner, channels, frames if i3d else 1, 1, 1),
                ("2b", inner, inner, 1, 3, 3),
                ("2c", inner * 4, inner, 1, 1, 1),
            ]
            if block == 0:
                convs.append(("1", inner * 4, channels, 1, 1, 1))
            for part, *shape in convs:
                conv(prefix + part, *shape)
                norm(prefix + part, shape[0])
            channels = inner * 4
            if "_nonlocal_" in name and stage in (3, 4) and block % 2:
                block_prefix = f"nonlocal_conv{stage}_{block}_"
                for part in ("theta", "phi", "g", "out"):
                    half = channels // 2
                    sides = (channels, half) if part == "out" else (half, channels)
                    conv(block_prefix + part, *sides, 1, 1, 1)
                    shapes[f"{block_prefix}{part}_b"] = [sides[0]]
                norm(block_prefix.removesuffix("_"), channels)
    return shapes | {"pred_w": [400, 2048], "pred_b": [400]}


def state(shapes: Shapes) -> dict[str, Tensor]:
    """Expands one number per tensor, different for each, without memory for the rest."""
    return {
        key: torch.tensor(0)
        if key.endswith("num_batches_tracked")
        else torch.tensor(float(index % 97 + 1)).expand(shape)
        for index, (key, shape) in enumerate(shapes.items())
    }


def _without_non_local(shapes: Shapes) -> Shapes:
    return {k: v for k, v in shapes.items() if "nonlocal" not in k and "non_local" not in k}


def _short_kernels(shapes: Shapes, pattern: str) -> Shapes:
    """Reduces kernels to one frame."""
    return {
        k: [*v[:2], 1, *v[3:]] if len(v) == 5 and re.fullmatch(pattern, k) else v
        for k, v in shapes.items()
    }


def _deeper(shapes: Shapes) -> Shapes:
    """Extends the third stage to 23 blocks that alternate like its second and third."""
    found = dict(shapes)
    for block in range(6, 23):
        like = f"s4.pathway0_res{2 if block % 2 == 0 else 1}."
        found |= {
            key.replace(like, f"s4.pathway0_res{block}."): shape
            for key, shape in shapes.items()
            if key.startswith(like)
        }
    return found


def _gaussian(shapes: Shapes) -> Shapes:
    """Removes theta and phi: the pairwise function uses x itself."""
    return {k: v for k, v in shapes.items() if not re.search("theta|phi", k)}


def _even(shapes: Shapes) -> Shapes:
    """Moves non-local blocks to the previous position."""
    return {
        re.sub(r"\.(\d)(?=\.non_local)", lambda m: f".{int(m[1]) - 1}", key): shape
        for key, shape in shapes.items()
    }


def _tsm_non_local() -> Shapes:
    wrapped = {
        re.sub(r"(layer2\.[02]|layer3\.[024])\.", r"\1.block.", key): shape
        for key, shape in recorded("mmaction2/tsm_r50").items()
    }
    blocks = _even(recorded("mmaction2/i3d_r50_nl_embedded_gaussian"))
    return wrapped | {key: shape for key, shape in blocks.items() if "non_local" in key}


def _slow_kernels(shapes: Shapes) -> Shapes:
    """Changes temporal kernels to those of SlowOnly."""
    slow = {}
    for key, shape in shapes.items():
        if key.endswith("conv1.conv.weight"):
            frames = 3 if ".layer3." in key or ".layer4." in key else 1
            shape = [*shape[:2], frames, *shape[3:]]
        slow[key] = shape
    return slow
