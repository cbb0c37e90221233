"""The newer margins written out from their papers, dense, in float64: logits, cross-entropy, autograd's gradients.

Nothing of the implementation is used: no clamped cosines, no blocks, no running totals; inputs have to stay away from
angles of 0 and pi.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cosines(embeddings: Tensor, kernel: Tensor) -> Tensor:
    """(B, C) of unit embeddings (B, D) and columns (D, C) of any length."""
    return embeddings @ (kernel / kernel.square().sum(0).sqrt())


def scaled(cosine: Tensor, target: Tensor, labels: Tensor, s: float) -> Tensor:
    """Logits (B, C): target (B,) in the labels' places, both times s."""
    own = F.one_hot(labels, cosine.shape[1]).bool()
    return s * torch.where(own, target[:, None], cosine)


STRAIGHT = (
    math.pi - 1e-4
)  # the papers say nothing of angles that a margin takes past pi; they stay there, as in ArcFace


def combined(embeddings, norms, labels, kernel, *, m1, m2, m3, s):
    """ArcFace, equation 4: cos(m1 theta + m2) - m3."""
    cosine = cosines(embeddings, kernel)
    theta = torch.arccos(cosine[range(len(labels)), labels])
    logits = scaled(cosine, torch.cos((m1 * theta + m2).clip(max=STRAIGHT)) - m3, labels, s)
    return logits, F.cross_entropy(logits, labels)


def subcenter_arcface(embeddings, norms, labels, kernel, *, m, sub_centers, s):
    """Sub-center ArcFace, equation 2: theta is that to the nearest of the class's centers."""
    columns = kernel.shape[1]
    each = cosines(embeddings, kernel).reshape(len(labels), columns // sub_centers, sub_centers)
    cosine = each.max(dim=2).values
    theta = torch.arccos(cosine[range(len(labels)), labels])
    logits = scaled(cosine, torch.cos((theta + m).clip(max=STRAIGHT)), labels, s)
    return logits, F.cross_entropy(logits, labels)


def magface(embeddings, norms, labels, kernel, *, l_margin, u_margin, l_a, u_a, lambda_g, s):
    """MagFace, equations 4 to 6; the margin where the target cosine is positive, gradient through the norms (B, 1)."""
    cosine = cosines(embeddings, kernel)
    a = norms[:, 0].clip(l_a, u_a)
    m = (u_margin - l_margin) / (u_a - l_a) * (a - l_a) + l_margin
    own = cosine[range(len(labels)), labels]
    with_margin = own * torch.cos(m) - (1 - own**2).sqrt() * torch.sin(m)
    logits = scaled(cosine, torch.where(own > 0, with_margin, own), labels, s)
    regulariser = (1 / a + a / u_a**2).mean()
    return logits, F.cross_entropy(logits, labels) + lambda_g * regulariser


def curricularface(embeddings, norms, labels, kernel, *, m, t_alpha, s, t=0.0):
    """CurricularFace, equations 5, 6 and 10; t is the one in use, after the batch has moved it."""
    cosine = cosines(embeddings, kernel)
    own = cosine[range(len(labels)), labels]
    with_margin = own * math.cos(m) - (1 - own**2).sqrt() * math.sin(m)
    target = torch.where(own > math.cos(math.pi - m), with_margin, own - m * math.sin(math.pi - m))
    hard = cosine > with_margin.detach()[:, None]
    logits = scaled(torch.where(hard, cosine * (t + cosine), cosine), target, labels, s)
    return logits, F.cross_entropy(logits, labels)


def moved_t(embeddings, labels, kernel, t, t_alpha):
    """The running mean of the target cosines after a batch."""
    own = cosines(embeddings, kernel)[range(len(labels)), labels]
    return float((1 - t_alpha) * t + t_alpha * own.mean().item())
