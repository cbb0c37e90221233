"""Slow, obvious re-computations in float64 plain Python, one number at a time, straight from the papers' formulas."""

import math
from collections.abc import Sequence

import numpy as np

ADAFACE_EPS = 1e-3
OTHER_EPS = 1e-4


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def cosine_matrix(embeddings: np.ndarray, kernel: np.ndarray, eps: float) -> np.ndarray:
    """Clamped cosines (B, C) of unit embeddings (B, D) and the columns of kernel (D, C)."""
    out = np.zeros((len(embeddings), kernel.shape[1]))
    for i, embedding in enumerate(embeddings):
        for j in range(kernel.shape[1]):
            column = kernel[:, j]
            length = math.sqrt(sum(float(v) ** 2 for v in column))
            dot = sum(float(a) * float(b) for a, b in zip(embedding, column, strict=True))
            out[i, j] = clip(dot / length, -1 + eps, 1 - eps)
    return out


def angular_margin(cosine: float, g_angle: float, eps: float) -> float:
    return math.cos(clip(math.acos(cosine) + g_angle, eps, math.pi - eps))


def cosface_target(cosine: float, m: float) -> float:
    return cosine - m


def arcface_target(cosine: float, m: float) -> float:
    return angular_margin(cosine, m, OTHER_EPS)


def adaface_target(cosine: float, norm: float, mean: float, std: float, m: float, h: float) -> float:
    z = clip(h * (clip(norm, 0.001, 100.0) - mean) / (std + ADAFACE_EPS), -1.0, 1.0)
    return angular_margin(cosine, -m * z, ADAFACE_EPS) - (m + m * z)


def adaface_statistics(norms: Sequence[float], mean: float, std: float, t_alpha: float) -> tuple[float, float]:
    """Running mean and standard deviation after one batch; one sample leaves the deviation as it is."""
    clipped = [clip(float(n), 0.001, 100.0) for n in norms]
    batch_mean = sum(clipped) / len(clipped)
    new_mean = t_alpha * batch_mean + (1 - t_alpha) * mean
    if len(clipped) == 1:
        return new_mean, std
    variance = sum((n - batch_mean) ** 2 for n in clipped) / (len(clipped) - 1)
    return new_mean, t_alpha * math.sqrt(variance) + (1 - t_alpha) * std


def logits(
    head: str,
    embeddings: np.ndarray,
    norms: np.ndarray,
    labels: np.ndarray,
    kernel: np.ndarray,
    m: float,
    s: float,
    h: float = 0.333,
    mean: float = 20.0,
    std: float = 100.0,
) -> np.ndarray:
    """Scaled logits (B, C) with the given statistics (those in use, that is after the update)."""
    out = cosine_matrix(embeddings, kernel, ADAFACE_EPS if head == "adaface" else OTHER_EPS)
    for i, label in enumerate(labels):
        cosine = out[i, label]
        if head == "adaface":
            out[i, label] = adaface_target(cosine, float(norms[i]), mean, std, m, h)
        elif head == "arcface":
            out[i, label] = arcface_target(cosine, m)
        else:
            out[i, label] = cosface_target(cosine, m)
    return out * s


def mean_cross_entropy(logits_: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for row, label in zip(logits_, labels, strict=True):
        highest = max(row)
        total += highest + math.log(sum(math.exp(v - highest) for v in row)) - row[label]
    return total / len(labels)
