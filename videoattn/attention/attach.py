"""Other ways into a backbone: several features at once, in place of a layer, around a stage.

None renames a parameter, and all survive deepcopy, torch.compile and torch.export.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from videoattn.attention.insert import VideoView, check_places, output_shapes, put_behind


class _Store:
    """Features on their way from the modules that made them to the block that uses them."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}


class _Tap:
    """A forward hook that puts a module's output into a store."""

    def __init__(self, store: _Store, place: str) -> None:
        self.store = store
        self.place = place

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.store.features[self.place] = output


class Joined(nn.Module):
    """Calls `block(x, *features)` with what the named places put out in the same forward pass."""

    def __init__(self, block: nn.Module, store: _Store, places: Sequence[str]) -> None:
        super().__init__()
        self.block = block
        self.places = tuple(places)
        self._store = store

    def forward(self, x: Tensor) -> Tensor:
        features = [self._store.features.pop(place) for place in self.places]  # nothing is kept
        result: Tensor = self.block(x, *features)
        return result


def join_layers(
    model: nn.Module,
    make_block: Callable[[int, list[int]], nn.Module],
    query: str,
    sources: Sequence[str],
    *,
    name: str,
    num_frames: int = 1,
) -> str:
    """Puts `make_block(channels, source_channels)` behind `query`: `forward(x, *sources)` gets the
    outputs of the earlier places too. Returns its name.

    Raises:
        ValueError: a place that does not exist; a source that does not run before the query.
    """
    check_places(model, [query, *sources])
    shapes = output_shapes(model, [*sources, query])
    late = [place for place in sources if list(shapes).index(place) > list(shapes).index(query)]
    if late or query in sources:
        raise ValueError(f"{late or query!r} does not run before {query!r}: choose earlier layers")
    block = make_block(shapes[query][1], [shapes[place][1] for place in sources])
    if len(shapes[query]) == 4:
        block = VideoView(block, num_frames)
    return put_behind(model, query, name, _joined(model, block, sources))


def replace_head(
    model: nn.Module,
    make_head: Callable[[int, list[int], int], nn.Module],
    levels: Sequence[str],
    *,
    num_frames: int = 1,
) -> str:
    """Replaces the classifier `fc` by `make_head(width, level_channels, num_classes)`.

    The head's `forward(pooled, *levels)` gets what the classifier got, (N, C) or (N, S, C) for each
    of S segments, and the levels as videos; it returns logits, (N, K) or (N, 1, K).

    Raises:
        ValueError: a level that does not exist; a model without a linear classifier `fc`.
    """
    check_places(model, levels)
    classifier = getattr(model, "fc", None)
    if not isinstance(classifier, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear classifier `fc` to replace")
    shapes = output_shapes(model, levels)
    channels = [shapes[level][1] for level in levels]
    head = make_head(classifier.in_features, channels, classifier.out_features)
    if len(shapes[levels[0]]) == 4:
        head = VideoView(head, num_frames)
    model.fc = _joined(model, head, levels)
    return "fc"


def replace_convolutions(
    model: nn.Module,
    make_layer: Callable[[int, int, int], nn.Module],
    stages: Sequence[str],
    *,
    num_frames: int = 1,
) -> list[str]:
    """Replaces every convolution with a 3x3 extent inside the stages by `make_layer(in_channels,
    out_channels, stride)`, where stride is that of height and width. Returns their names.

    Raises:
        ValueError: a stage that does not exist, or one without such a convolution.
    """
    check_places(model, stages)
    replaced = []
    for stage in stages:
        found = [
            (f"{stage}.{name}", module)
            for name, module in model.get_submodule(stage).named_modules()
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[-2:] == (3, 3)
        ]
        if not found:
            raise ValueError(f"{stage!r} has no 3x3 convolution to replace")
        for path, conv in found:
            layer = make_layer(conv.in_channels, conv.out_channels, conv.stride[-1])
            if isinstance(conv, nn.Conv2d):
                layer = VideoView(layer, num_frames)
            for pre_hook in conv._forward_pre_hooks.values():  # TSM's shift of the input
                layer.register_forward_pre_hook(pre_hook)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
            replaced.append(path)
    return replaced


class MaskedStage(nn.Sequential):
    """A stage whose blocks after the first are the trunk F of a mask branch M.

    u = first(x), out = combine(F(u), M(u)) where `mask.combine` is the system's. The blocks keep
    their names, so the stage's keys stay what they were.
    """

    def __init__(self, stage: nn.Sequential, mask: nn.Module, name: str) -> None:
        super().__init__()
        for child_name, child in stage.named_children():
            self.add_module(child_name, child)
        self.add_module(name, mask)
        self._mask_name = name

    def forward(self, x: Tensor) -> Tensor:
        blocks = [child for name, child in self.named_children() if name != self._mask_name]
        u: Tensor = blocks[0](x)
        trunk = u
        for block in blocks[1:]:
            trunk = block(trunk)
        out: Tensor = self.get_submodule(self._mask_name)(u, trunk)
        return out


def mask_stages(
    model: nn.Module,
    make_mask: Callable[[int], nn.Module],
    stages: Sequence[str],
    *,
    name: str,
    num_frames: int = 1,
) -> list[str]:
    """Adds `make_mask(channels)` to each stage: `forward(u, trunk)` gets the output of the stage's
    first block and that of its last, both (N, C, T, H, W), and returns the stage's output.

    Raises:
        ValueError: a name that is no stage of two or more blocks.
    """
    check_places(model, stages)
    shapes = output_shapes(model, stages)
    names = []
    for place in stages:
        stage = model.get_submodule(place)
        if not isinstance(stage, nn.Sequential) or len(stage) < 2:
            raise ValueError(f"{place!r} is not a stage of two or more blocks: nothing to mask")
        mask = make_mask(shapes[place][1])
        if len(shapes[place]) == 4:
            mask = VideoView(mask, num_frames)
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, MaskedStage(stage, mask, name))
        names.append(f"{place}.{name}")
    return names


def _joined(model: nn.Module, block: nn.Module, places: Sequence[str]) -> Joined:
    store = _Store()
    for place in places:
        model.get_submodule(place).register_forward_hook(_Tap(store, place))
    return Joined(block, store, places)
