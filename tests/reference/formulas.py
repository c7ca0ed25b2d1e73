"""Formulas of the papers and articles, position by position. Slow and plain."""

import numpy as np
import torch
from torch import Tensor, nn

from videoattn.attention.blocks.attention_stem import AttentionStem
from videoattn.attention.blocks.channel_attention import ChannelAttention
from videoattn.attention.blocks.interaction import InteractionLayer, InteractionPyramid
from videoattn.attention.blocks.pay_attention import LearnToPay, LevelAttention
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SimilarityAttention


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Applies a 1x1x1 convolution."""
    y = torch.einsum("ncthw,dc->ndthw", x, conv.weight[:, :, 0, 0, 0])
    return y if conv.bias is None else y + conv.bias.view(1, -1, 1, 1, 1)


def softmax(x: Tensor) -> Tensor:
    """Returns the softmax of a vector."""
    return x.exp() / x.exp().sum()


def channel_gate(block: ChannelAttention, x: Tensor) -> Tensor:
    """CBAM's channel gate as queries, keys and values: each channel attends to all channels."""
    q, k, v = (pointwise(conv, x).flatten(2) for conv in (block.theta, block.phi, block.g))
    clips = []
    for n in range(len(x)):
        rows = [softmax(k[n] @ q[n, c]) @ v[n] for c in range(x.shape[1])]
        clips.append(torch.stack(rows).view(x.shape[1:]))
    return torch.stack(clips)


def spatial_gate(block: SimilarityAttention, x: Tensor) -> Tensor:
    """CBAM's spatial gate as queries, keys and values: each position attends to all positions."""
    q, k, v = (pointwise(conv, x).flatten(2) for conv in (block.theta, block.phi, block.g))
    clips = []
    for n in range(len(x)):
        columns = [v[n] @ softmax(q[n, :, i] @ k[n]) for i in range(q.shape[2])]
        clips.append(torch.stack(columns, 1).view(x.shape[1:]))
    return torch.stack(clips)


def sagan(block: SelfAttention, x: Tensor) -> Tensor:
    """The text's o_j = v(Σ_i β_ji h(x_i)), with C/8 channels in f, g and h."""
    f, g, h = (pointwise(conv, x).flatten(2) for conv in (block.query, block.key, block.value))
    assert len({f.shape[1], g.shape[1], h.shape[1], x.shape[1] // 8}) == 1
    clips = []
    for n in range(len(x)):
        columns = [h[n] @ softmax(f[n, :, j] @ g[n]) for j in range(f.shape[2])]
        clips.append(torch.stack(columns, 1).unflatten(1, x.shape[2:]))
    return x + block.gamma * pointwise(block.out, torch.stack(clips))


def stem_values(block: AttentionStem, x: Tensor) -> Tensor:
    """Returns (Σ_m p(a, b, m) W_v^m) x_j of every pixel."""
    matrices = block.value.weight[:, :, 0, 0, 0].unflatten(0, (block.mixtures, -1))
    v = x.new_zeros(len(x), matrices.shape[1], *x.shape[2:])
    for i, j in np.ndindex(*x.shape[3:]):
        p = softmax(torch.stack([(block.row[i % 4] + block.column[j % 4]) @ nu for nu in block.nu]))
        matrix = sum(share * w for share, w in zip(p, matrices, strict=True))
        v[..., i, j] = torch.einsum("dc,nct->ndt", matrix, x[..., i, j])
    return v


def stem(block: AttentionStem, x: Tensor) -> Tensor:
    """The attention stem: pixels of a 4x4 block attend to the block, in each frame and head."""
    q, k = (pointwise(conv, x) for conv in (block.query, block.key))
    v = stem_values(block, x)
    y = torch.zeros_like(q)
    width = q.shape[1] // block.heads
    for n, t, i, j, head in np.ndindex(len(x), *x.shape[2:], block.heads):
        own = slice(head * width, (head + 1) * width)
        cell = (slice(i // 4 * 4, i // 4 * 4 + 4), slice(j // 4 * 4, j // 4 * 4 + 4))
        keys, values = (z[n, own, t, cell[0], cell[1]].flatten(1) for z in (k, v))
        y[n, own, t, i, j] = values @ softmax(q[n, own, t, i, j] @ keys)
    return y


def masked(mask: Tensor, trunk: Tensor) -> Tensor:
    """Naive attention learning."""
    return torch.stack([m * f for m, f in zip(mask.flatten(), trunk.flatten(), strict=True)]).view(
        trunk.shape
    )


def compatibility(made: LevelAttention, x: Tensor) -> Tensor:
    """Returns u · l, or u · tanh(W l + b), of one position (N, C)."""
    if made.form == "local_mlp":
        x = torch.tanh(x @ made.mix_local.weight.T + made.mix_local.bias)
    return x @ made.u


def attended(made: LevelAttention, local: Tensor) -> Tensor:
    """Returns the attended vector (N, C) of the forms without g."""
    c = torch.stack([compatibility(made, x) for x in local.flatten(2).unbind(2)], 1)
    if made.normalizer == "sigmoid":
        weights = 1 / (1 + (-c).exp()) / c.shape[1]
    else:
        weights = c.exp() / c.exp().sum(1, keepdim=True)
    return torch.einsum("np,ncp->nc", weights, local.flatten(2))


def global_feature(head: LearnToPay, last: Tensor) -> Tensor:
    """Returns g: the mean of 3x3 convolutions with norms (in evaluation mode) and ReLUs."""
    layers = list(head.global_layers)
    for conv, norm, _ in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        padded = torch.nn.functional.pad(last, (1, 1, 1, 1))
        y = torch.zeros_like(last)
        for a, b in np.ndindex(3, 3):
            part = padded[..., a : a + last.shape[3], b : b + last.shape[4]]
            y = y + torch.einsum("ncthw,dc->ndthw", part, conv.weight[:, :, 0, a, b])
        mean, var = (z.view(-1, 1, 1, 1) for z in (norm.running_mean, norm.running_var))
        scale, shift = (z.view(-1, 1, 1, 1) for z in (norm.weight, norm.bias))
        last = ((y - mean) / (var + norm.eps).sqrt() * scale + shift).clamp(min=0)
    return last.flatten(2).sum(2) / last[0, 0].numel()


def tokens(module: InteractionLayer | InteractionPyramid, levels: list[Tensor]) -> Tensor:
    """Returns M (N, D, C) by loops over rows and positions; levels have equal grids."""
    pyramid = module.pyramid
    clips = []
    for n in range(len(levels[0])):
        x = levels[-1][n].flatten(1)
        rows = []
        for m in range(pyramid.num_rows):
            y = sum(
                linear.weight[m] @ level[n].flatten(1)
                for linear, level in zip(pyramid.scores, levels, strict=True)
            )
            a = softmax(y)
            rows.append(x @ a / (a * a).sum().sqrt())
        clips.append(torch.stack(rows))
    return torch.stack(clips)


def interaction_layer(layer: InteractionLayer, levels: list[Tensor]) -> Tensor:
    """x + γ M / sqrt(P), with M (N, H·W, C) at the positions of every frame of x."""
    x = levels[-1]
    m = tokens(layer, levels).transpose(1, 2).unflatten(2, (1, *x.shape[3:]))
    return x + layer.gamma * m / x[0, 0].numel() ** 0.5


def all_rows(head: InteractionPyramid, levels: list[Tensor]) -> Tensor:
    """Σ_m W_m M_m / sqrt(D P) + b."""
    m = tokens(head, levels)
    count, channels = m.shape[1:]
    weights = head.linear.weight.unflatten(1, (count, channels))
    logits = sum(m[:, row] @ weights[:, row].T for row in range(count))
    return logits / (count * levels[-1][0, 0].numel()) ** 0.5 + head.linear.bias


def balanced_interaction(rows: Tensor, x: Tensor) -> Tensor:
    """Returns the mean squared overlap of pairs of rows of one clip, minus what they keep of
    X / |X| over the number of pairs."""
    x = x / (x * x).sum().sqrt()
    pairs = [(rows[m] @ rows[k]) ** 2 for m, k in np.ndindex(len(rows), len(rows)) if k != m]
    kept = sum(((row @ x) ** 2).sum() for row in rows)
    return (sum(pairs) - kept) / len(pairs)


def balanced_diversity(fused: Tensor, levels: list[Tensor]) -> Tensor:
    """Returns the mean over rows and levels of 1 - |a - s|² / (|a|² + |s|²)."""
    terms = [
        1 - ((a - s) ** 2).sum() / ((a * a).sum() + (s * s).sum())
        for own in levels
        for a, s in zip(fused, own, strict=True)
    ]
    return sum(terms) / len(terms)


def per_frame_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-(1/K) Σ_t Σ_c y_tc log ŷ_tc of logits (N, K, classes), for each clip."""
    losses = []
    for clip, label in zip(logits, labels, strict=True):
        losses.append(-sum(softmax(frame)[label].log() for frame in clip) / len(clip))
    return torch.stack(losses)
