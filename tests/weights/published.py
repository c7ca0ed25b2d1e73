"""Files of public models in the layouts in which the projects publish them, with small weights."""

import io
import pickle
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from tests.weights.public_states import DERIVED, RECORDS, derived, recorded
from tests.weights.test_inception import published
from videoattn.weights import PUBLIC
from videoattn.weights.keys import caffe2

Shapes = dict[str, list[int]]

DOWNLOADED = [name for name, row in PUBLIC.items() if row.url is not None]


def published_file(name: str) -> bytes:
    """Returns a file of the public model `name`, as at its address but with other weights.

    PyTorch's files are small, because each of their tensors is one number that is repeated.
    """
    row, shapes = PUBLIC[name], shapes_of(name)
    if row.url is not None and row.url.endswith(".pkl"):
        arrays = {key: value.numpy() for key, value in weights(blob_names(name, shapes)).items()}
        return pickle.dumps({"blobs": {**arrays, "lr": np.float32(0.1)}}, protocol=2)
    wrapper = {"pytorchvideo": "model_state", "mmaction2": "state_dict"}.get(name.split("/")[0])
    content: Any = weights(shapes)
    file = io.BytesIO()
    torch.save(content if wrapper is None else {"meta": {}, wrapper: content}, file)
    return file.getvalue()


def shapes_of(name: str) -> Shapes:
    if name in RECORDS:
        return recorded(name)
    if name in DERIVED:
        return derived(name)
    if name.startswith("torchvision/"):
        with torch.device("meta"):
            model = torchvision.models.get_model(PUBLIC[name].network)
        return {key: list(value.shape) for key, value in model.state_dict().items()}
    return published(PUBLIC[name].layouts[0])


def blob_names(name: str, shapes: Shapes) -> Shapes:
    """Returns Caffe2's names and shapes of the parameters; other names are left as they are."""
    layout, found = PUBLIC[name].layouts[0], {}
    for key, shape in shapes.items():
        ours = layout.ours(key)
        theirs = caffe2.theirs(ours) if ours is not None else None
        if theirs is not None:
            found[theirs] = list(caffe2.shape_there(ours or "", torch.Size(shape)))
    return found


def weights(shapes: Shapes) -> dict[str, Tensor]:
    """Returns weights whose logits are finite, and differ between the classes."""
    found = {}
    for index, (key, shape) in enumerate(shapes.items()):
        if shape in ([400], [1000]):  # the classifier's bias
            found[key] = torch.linspace(-100, 100, shape[0])  # above the rounding of logits
        elif key.endswith("num_batches_tracked"):
            found[key] = torch.tensor(0)
        elif len(shape) == 1:  # of a norm: scale, shift, mean or variance
            is_shift = key.endswith(("bias", "_b", "mean", "_rm"))
            found[key] = torch.tensor(0.01 if is_shift else 1.0).expand(shape)
        else:
            found[key] = torch.tensor((index % 3 - 1) / shape[1]).expand(shape)
    return found
