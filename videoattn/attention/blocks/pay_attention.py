"""A head from "Learn to pay attention" (Jetley et al., ICLR 2018, arXiv 1804.02391).

Each level's local features l_i and a global feature g give one attended vector g_a:

| compatibility | c_i                            | | normalizer | g_a                      |
| pc            | u · (l_i + g)                  | | softmax    | Σ softmax(c)_i l_i       |
| dp            | g · l_i                        | | sigmoid    | mean of sigmoid(c_i) l_i |
| pc_mlp        | u · tanh(W_l l_i + W_g g + b)  |
| local         | u · l_i                        |
| local_mlp     | u · tanh(W_l l_i + b)          |

    concat: logits = W [g_a of level 1; ...; g_a of level S]
    indep:  probabilities = mean over s of softmax(W_s g_a of level s)

Positions are those of all frames. For indep, the logits are the logs of those probabilities, so
cross-entropy of the logits is the paper's negative log-likelihood.

In pc, the term u · g is the same at every position, so the softmax cancels it. The map then does
not depend on g, and g has no gradient and no projection. (An article remarks that g is not needed;
here that is exact.) The network's own pooling and dropout then have no effect. With the sigmoid,
and in pc_mlp (which is ours), the map depends on g; local and local_mlp (ours) omit g.

Where g comes from. In the paper g comes from layers after the last local level. With
`global_layers=n`, g has such layers here too: n 3x3 convolutions with norms and ReLUs on the last
level, and a mean over positions (SaoYan's public code has such layers). By default g is the
network's own pooled feature. That is the mean of the last stage, which by default is itself the
last level; with `after` naming earlier stages only, the last stage is a layer after them. With the
softmax of pc, g has no effect, so the default levels include the last stage.

Where we differ. If widths differ, the paper projects g to the width of l. SaoYan's public code
projects l to the width of g (`project="local"`), has the sigmoid as an option, and returns c as the
map. Here recorded maps are the weights, and the method `compatibility` returns c. u starts small,
so each level starts near its average.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.blocks.gates import keep_statistics
from videoattn.attention.blocks.pyramid import Level
from videoattn.attention.common import grid_of, mean_of_segments, small_weights
from videoattn.attention.functional import autocast_off, to_tokens, widen
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video

FORMS = ("pc", "dp", "pc_mlp", "local", "local_mlp")


class LevelAttention(nn.Module):
    """The attention of one level: forward(local, g) maps (N, C, T, H, W) and (N, G) to g_a (N, D).

    Args:
        compatibility: "pc", "dp", "pc_mlp", "local" or "local_mlp".
        normalizer: "softmax" or "sigmoid".
        scope: With "joint", positions compete over all frames. With "per_frame", they compete
            within each frame, and the vectors of the frames are averaged.
        project: If C and G differ, project g to C channels ("global"; D = C) or the local features
            to G channels ("local"; D = G).

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(
        self,
        channels: int,
        global_channels: int,
        *,
        compatibility: str = "pc",
        normalizer: str = "softmax",
        scope: str = "joint",
        project: str = "global",
    ) -> None:
        super().__init__()
        self.form = one_of("compatibility", compatibility, FORMS)
        self.normalizer = one_of("normalizer", normalizer, ("softmax", "sigmoid"))
        self.scope = one_of("scope", scope, ("joint", "per_frame"))
        one_of("project", project, ("global", "local"))
        self.out_channels = global_channels if project == "local" else channels
        self.project_local: nn.Linear | None = None
        self.project_global: nn.Linear | None = None
        if self.out_channels != channels:
            self.project_local = nn.Linear(channels, global_channels, bias=False)
        # Without g in the result, its projection would never get a gradient.
        needs_projection = reads_global(compatibility, normalizer) and compatibility != "pc_mlp"
        if self.out_channels != global_channels and needs_projection:
            self.project_global = nn.Linear(global_channels, channels, bias=False)
        if compatibility in ("pc_mlp", "local_mlp"):
            self.mix_local = nn.Linear(self.out_channels, self.out_channels)
            if compatibility == "pc_mlp":
                self.mix_global = nn.Linear(global_channels, self.out_channels, bias=False)
            nn.init.zeros_(self.mix_local.bias)
        if compatibility != "dp":
            self.u = nn.Parameter(0.01 * torch.randn(self.out_channels))

    def forward(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N D"]:
        values = self._values(local)
        c = self._scores(values, g).unflatten(1, grid_of(local))
        weights = self._normalize(c).flatten(1).unsqueeze(1)
        if self.normalizer == "sigmoid":  # for both scopes: a mean of means over equal counts
            weights = weights / weights.shape[2]
        with autocast_off(local):
            return (weights @ values.to(weights.dtype)).squeeze(1).to(values.dtype)

    def compatibility(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N T H W"]:
        """Returns the compatibility scores c of all positions.

        For pc with a softmax, c includes u · g if g has the width of l. Otherwise it does not,
        because the softmax cancels this term.
        """
        c = self._scores(self._values(local), g).unflatten(1, grid_of(local))
        if self.form == "pc" and self.normalizer == "softmax" and g.shape[1] == len(self.u):
            c = c + (g.to(c.dtype) * self.u.to(c.dtype)).sum(1).view(-1, 1, 1, 1)
        return c

    def weights(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N T H W"]:
        """Returns the weight of each position.

        With the softmax, weights sum to 1 and g_a is the weighted sum. With the sigmoid they lie in
        (0, 1), and g_a is the mean of weighted features.
        """
        return self._normalize(self.compatibility(local, g))

    def _normalize(self, c: Float[Tensor, "N T H W"]) -> Float[Tensor, "N T H W"]:
        if self.normalizer == "sigmoid":
            return c.sigmoid()
        if self.scope == "joint":
            return c.flatten(1).softmax(1).view_as(c)
        return c.flatten(2).softmax(2).view_as(c) / c.shape[1]

    def _scores(self, values: Float[Tensor, "N P D"], g: Tensor) -> Float[Tensor, "N P"]:
        """Returns c, without u · g if the softmax cancels it, in float32 or wider: products of
        features such as g · l overflow bfloat16."""
        if self.form in ("pc_mlp", "local_mlp"):
            mixed = self.mix_local(values)
            mixed = mixed + self.mix_global(g).unsqueeze(1) if self.form == "pc_mlp" else mixed
            values = torch.tanh(mixed)
        k = widen(values)
        g = (g if self.project_global is None else self.project_global(g)).to(k.dtype)
        with autocast_off(values):
            if self.form == "dp":
                return (k @ g.unsqueeze(2)).squeeze(2)
            u = self.u.to(k.dtype).unsqueeze(1)
            adds_g = self.form == "pc" and self.normalizer == "sigmoid"
            scores = (k @ u).squeeze(2)
            return scores + g @ u if adds_g else scores

    def _values(self, local: Video) -> Float[Tensor, "N P D"]:
        tokens = to_tokens(local)
        return tokens if self.project_local is None else self.project_local(tokens)


def reads_global(compatibility: str, normalizer: str) -> bool:
    """Returns whether the weights depend on g."""
    return compatibility in ("dp", "pc_mlp") or (compatibility, normalizer) == ("pc", "sigmoid")


class LearnToPay(nn.Module):
    """A head that classifies the attended vectors of all levels.

    forward(pooled, *levels) returns logits: (N, K) for pooled features (N, C) of the backbone, or
    (N, 1, K) for those of S segments (N, S, C). g is `pooled`, or its mean over segments, unless
    `global_layers` is set. g only selects positions; the classifier does not read it.

    Args:
        level_channels: Channels of each level.
        classifier: "concat" or "indep".
        compatibility, normalizer, scope, project: See `LevelAttention`.
        global_layers: Number of (1, 3, 3) convolutions on the last level; g is their mean output,
            or `pooled` if the number is 0, as it must be if the weights do not depend on g.

    Raises:
        ValueError: If a name is unknown, or `global_layers` is negative or has no effect.
    """

    def __init__(
        self,
        width: int,
        level_channels: Sequence[int],
        num_classes: int,
        *,
        compatibility: str = "pc",
        classifier: str = "concat",
        normalizer: str = "softmax",
        scope: str = "joint",
        project: str = "global",
        global_layers: int = 0,
    ) -> None:
        super().__init__()
        self.reads_global = reads_global(compatibility, normalizer)
        if global_layers < 0 or (global_layers and not self.reads_global):
            raise ValueError(
                f"global_layers: got {global_layers}; need 0 with compatibility={compatibility!r} "
                f"and normalizer={normalizer!r}, whose weights do not depend on g"
                if not self.reads_global
                else f"global_layers: got {global_layers}; need 0 or more"
            )
        self.global_layers = _convolutions(level_channels[-1], global_layers)
        width = level_channels[-1] if global_layers else width
        self.classifier = one_of("classifier", classifier, ("concat", "indep"))
        options = {
            "compatibility": compatibility,
            "normalizer": normalizer,
            "scope": scope,
            "project": project,
        }
        levels = [LevelAttention(channels, width, **options) for channels in level_channels]
        self.levels = nn.ModuleList(levels)
        widths = [level.out_channels for level in levels]
        inputs = [sum(widths)] if classifier == "concat" else widths
        self.classifiers = nn.ModuleList(nn.Linear(size, num_classes) for size in inputs)
        small_weights(self.classifiers)

    @property
    def ignores_pooled(self) -> bool:
        """Whether the network's own pooling and its dropout have no effect."""
        return not self.reads_global or len(self.global_layers) > 0

    def forward(self, pooled: Tensor, *levels: Level) -> Tensor:
        g = self._global(pooled, levels[-1])
        attended = [level(x, g) for level, x in zip(self.levels, levels, strict=True)]
        if self.classifier == "concat":
            logits: Tensor = self.classifiers[0](torch.cat(attended, 1))
        else:
            pairs = zip(self.classifiers, attended, strict=True)
            scores = torch.stack([linear(x).log_softmax(1) for linear, x in pairs])
            logits = scores.logsumexp(0) - math.log(len(attended))
        return logits.unsqueeze(1) if pooled.ndim == 3 else logits

    def maps(self, pooled: Tensor, *levels: Level) -> dict[str, GateMap]:
        """Returns the weights of each level's positions, (N, 1, T, H, W), as "0", "1", ..."""
        with keep_statistics(self):
            g = self._global(pooled, levels[-1])
        found = {}
        for index, (level, x) in enumerate(zip(self.levels, levels, strict=True)):
            assert isinstance(level, LevelAttention)
            normalized = level.normalizer == "softmax"
            weights = level.weights(x, g).unsqueeze(1)
            found[str(index)] = GateMap("pooling", weights, normalized=normalized)
        return found

    def _global(self, pooled: Tensor, last: Level) -> Float[Tensor, "N G"]:
        if not self.global_layers:
            return mean_of_segments(pooled)
        return self.global_layers(last).mean((2, 3, 4))


def _convolutions(channels: int, count: int) -> nn.Sequential:
    layers = nn.Sequential()
    for _ in range(count):
        conv = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers.extend([conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True)])
    return layers
