"""Learn to pay attention (Jetley et al., ICLR 2018, arXiv 1804.02391).

Each level's local features l_i and a global feature g give one attended vector g_a:

| form   | compatibility c_i              | normaliser | g_a                      |
| pc     | u · (l_i + g)                  | softmax    | Σ softmax(c)_i l_i       |
| dp     | g · l_i                        | sigmoid    | mean of sigmoid(c_i) l_i |
| pc_mlp | u · tanh(W_l l_i + W_g g + b)  |

    concat: logits = W [g_a of level 1; ...; g_a of level S]
    indep:  probabilities = mean over s of softmax(W_s g_a of level s)

Positions are those of all frames. With the softmax this is `attend`, with u or g as its one query.
For indep the logits are the logs of those probabilities: their softmax gives them back, and cross
entropy of them is the paper's negative log-likelihood.

What the paper leaves to be found out: in pc the term u · g is the same at every position, so the
softmax removes it. That map does not depend on g, which gets no gradient through it and no
projection here. With the sigmoid g does count; pc_mlp is our form in which it always does.

Where widths differ the paper projects g down to l's; SaoYan's public code projects l up to g's
(`project="local"`), has the sigmoid as an option, and returns c as the map: `compatibility` gives
that, while recorded maps are the weights. u starts small: each level about as its average.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.blocks.pyramid import Level
from videoattn.attention.common import check_choice, grid_of
from videoattn.attention.functional import Path, attend, autocast_off, to_tokens
from videoattn.attention.record import GateMap
from videoattn.types import Video

COMPATIBILITIES = ("pc", "dp", "pc_mlp")
NORMALISERS = ("softmax", "sigmoid")
SCOPES = ("joint", "per_frame")
PROJECTIONS = ("global", "local")
CLASSIFIERS = ("concat", "indep")


class LevelAttention(nn.Module):
    """One level: local (N, C, T, H, W), g (N, G) -> the attended vector (N, D), where D is C.

    compatibility, normaliser: as in the tables above.
    scope: positions compete over all frames ("joint"), or within each, and the frames' vectors are
        averaged ("per_frame").
    project: where C and G differ, which one takes the other's width: g ("global") or the local
        features ("local"; D is then G).
    """

    path: Path = "auto"
    """How `attend` computes the map; "explicit" builds all of it, for comparison."""

    def __init__(
        self,
        channels: int,
        global_channels: int,
        *,
        compatibility: str = "pc",
        normaliser: str = "softmax",
        scope: str = "joint",
        project: str = "global",
    ) -> None:
        super().__init__()
        check_choice("compatibility", compatibility, COMPATIBILITIES)
        check_choice("normaliser", normaliser, NORMALISERS)
        check_choice("scope", scope, SCOPES)
        check_choice("project", project, PROJECTIONS)
        self.form, self.normaliser, self.scope = compatibility, normaliser, scope
        self.out_channels = global_channels if project == "local" else channels
        self.project_local: nn.Linear | None = None
        self.project_global: nn.Linear | None = None
        if self.out_channels != channels:
            self.project_local = nn.Linear(channels, global_channels, bias=False)
        # pc with a softmax does not use g: its projection would never get a gradient.
        uses_global = compatibility == "dp" or (compatibility, normaliser) == ("pc", "sigmoid")
        if self.out_channels != global_channels and uses_global:
            self.project_global = nn.Linear(global_channels, channels, bias=False)
        if compatibility == "pc_mlp":
            self.mix_local = nn.Linear(self.out_channels, self.out_channels)
            self.mix_global = nn.Linear(global_channels, self.out_channels, bias=False)
            nn.init.zeros_(self.mix_local.bias)
        if compatibility != "dp":
            self.u = nn.Parameter(0.01 * torch.randn(self.out_channels))

    def forward(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N D"]:
        values, num_frames = self._values(local), local.shape[2]
        q, k = self._query_and_keys(values, g)
        with autocast_off(local):  # products of whole features, such as g · l, outgrow bfloat16
            v = values.to(k.dtype)
            if self.normaliser == "sigmoid":  # per frame it is the same: a mean of equal means
                weights = (self._logits(q, k) + self._offset(g, k)).sigmoid() / k.shape[1]
                return (weights.unsqueeze(1) @ v).squeeze(1).to(values.dtype)
            if self.scope == "joint":
                return attend(q, k, v, path=self.path).squeeze(1).to(values.dtype)
            k, v = (x.unflatten(1, (num_frames, -1)).flatten(0, 1) for x in (k, v))
            attended = attend(q.repeat_interleave(num_frames, 0), k, v, path=self.path).squeeze(1)
            return attended.unflatten(0, (-1, num_frames)).mean(1).to(values.dtype)

    def compatibility(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N T H W"]:
        """c, before any normalisation. In pc with a softmax, u · g is in it where g has l's width,
        and left out, as it would be by the softmax, where it does not."""
        q, k = self._query_and_keys(self._values(local), g)
        with autocast_off(local):
            return (self._logits(q, k) + self._offset(g, k)).unflatten(1, grid_of(local))

    def weights(self, local: Video, g: Float[Tensor, "N G"]) -> Float[Tensor, "N T H W"]:
        """What each position weighs. By the softmax, in the sum that is the attended vector (all
        add up to 1); by the sigmoid, in (0, 1), in the mean."""
        c = self.compatibility(local, g)
        if self.normaliser == "sigmoid":
            return c.sigmoid()
        if self.scope == "joint":
            return c.flatten(1).softmax(1).view_as(c)
        return c.flatten(2).softmax(2).view_as(c) / c.shape[1]

    def _values(self, local: Video) -> Float[Tensor, "N P D"]:
        tokens = to_tokens(local)
        return tokens if self.project_local is None else self.project_local(tokens)

    def _query_and_keys(self, values: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, C) and (N, P, C), in float32 or wider."""
        wide = torch.promote_types(values.dtype, torch.float32)
        if self.form == "dp":
            return self._global(g).to(wide).unsqueeze(1), values.to(wide)
        if self.form == "pc_mlp":
            values = torch.tanh(self.mix_local(values) + self.mix_global(g).unsqueeze(1))
        return self.u.to(wide).expand(values.shape[0], 1, -1), values.to(wide)

    def _offset(self, g: Tensor, like: Tensor) -> Tensor | float:
        """u · g of pc, (N, 1)."""
        if self.form != "pc" or (self.project_global is None and g.shape[1] != len(self.u)):
            return 0.0
        return (self._global(g).to(like.dtype) @ self.u.to(like.dtype)).unsqueeze(1)

    def _global(self, g: Tensor) -> Tensor:
        return g if self.project_global is None else self.project_global(g)

    @staticmethod
    def _logits(q: Tensor, k: Tensor) -> Float[Tensor, "N P"]:
        return (k @ q.transpose(1, 2)).squeeze(2)


class LearnToPay(nn.Module):
    """A head: forward(pooled, *levels) -> logits, (N, K), or (N, 1, K) where pooled is (N, S, C).

    g is the backbone's pooled feature; of several segments', the mean. It decides where to look and
    is not classified itself. `classifier`: "concat" or "indep"; the others: see LevelAttention.

    Raises:
        ValueError: an unknown choice.
    """

    def __init__(
        self,
        width: int,
        level_channels: Sequence[int],
        num_classes: int,
        *,
        compatibility: str = "pc",
        classifier: str = "concat",
        normaliser: str = "softmax",
        scope: str = "joint",
        project: str = "global",
    ) -> None:
        super().__init__()
        check_choice("classifier", classifier, CLASSIFIERS)
        levels = [
            LevelAttention(
                channels, width, compatibility=compatibility, normaliser=normaliser, scope=scope,
                project=project,
            )
            for channels in level_channels
        ]  # fmt: skip
        self.levels = nn.ModuleList(levels)
        widths = [level.out_channels for level in levels]
        inputs = [sum(widths)] if classifier == "concat" else widths
        self.classifiers = nn.ModuleList(nn.Linear(size, num_classes) for size in inputs)
        self.classifier = classifier
        for linear in self.classifiers:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor, *levels: Level) -> Tensor:
        g = _mean_of_segments(pooled)
        attended = [level(x, g) for level, x in zip(self.levels, levels, strict=True)]
        if self.classifier == "concat":
            logits: Tensor = self.classifiers[0](torch.cat(attended, 1))
        else:
            pairs = zip(self.classifiers, attended, strict=True)
            scores = torch.stack([linear(x).log_softmax(1) for linear, x in pairs])
            logits = scores.logsumexp(0) - math.log(len(attended))
        return logits.unsqueeze(1) if pooled.ndim == 3 else logits

    def maps(self, pooled: Tensor, *levels: Level) -> dict[str, GateMap]:
        """ "0", "1", ...: what each position of the level weighs, (N, 1, T, H, W)."""
        g = _mean_of_segments(pooled)
        found = {}
        for index, (level, x) in enumerate(zip(self.levels, levels, strict=True)):
            assert isinstance(level, LevelAttention)
            weights = level.weights(x, g).unsqueeze(1)
            normalized = level.normaliser == "softmax"
            found[str(index)] = GateMap("pooling", weights, normalized=normalized)
        return found


def _mean_of_segments(pooled: Tensor) -> Float[Tensor, "N C"]:
    return pooled.mean(1) if pooled.ndim == 3 else pooled
