"""Templates and searches slowly and obviously, in float64: one template, one probe, one pair at a time."""

import math

import numpy as np


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def random_units(rows: int, size: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pooled(features: np.ndarray, template_ids: np.ndarray, media_ids: np.ndarray) -> dict[int, np.ndarray]:
    """The feature of each template: the sum over its media of the mean over their images, of unit length."""
    templates = {}
    for template in sorted(set(template_ids.tolist())):
        total = np.zeros(features.shape[1])
        inside = template_ids == template
        for medium in sorted(set(media_ids[inside].tolist())):
            total += features[inside & (media_ids == medium)].astype(np.float64).mean(axis=0)
        templates[template] = unit(total)
    return templates


def image_feature(pooling: str, e1: np.ndarray, n1: float, e2: np.ndarray, n2: float) -> np.ndarray:
    """The feature of one image from its embedding and norm, and those of its mirror."""
    if pooling == "pre_norm_vector_add":
        return e1 * n1 + e2 * n2
    if pooling == "norm_weighted_avg":
        return unit(e1 * n1 / (n1 + n2) + e2 * n2 / (n1 + n2))
    if pooling == "average":
        return unit(e1 + e2)
    return np.concatenate([e1, e2])


def ranking(scores: np.ndarray) -> list[int]:
    """Places by descending score, the earlier of equal ones first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


def searched(scores: np.ndarray, probe_labels: np.ndarray, gallery_labels: np.ndarray):
    """Score and rank of each probe's best mate, best score of others, all scores of others in descending order."""
    mate_scores, mate_ranks, best_others, others = [], [], [], []
    for row, label in zip(scores, probe_labels, strict=True):
        mates = [place for place in ranking(row) if gallery_labels[place] == label]
        mate_scores.append(row[mates[0]] if mates else -math.inf)
        mate_ranks.append(ranking(row).index(mates[0]) + 1 if mates else 0)
        of_others = [float(score) for score, other in zip(row, gallery_labels, strict=True) if other != label]
        best_others.append(max(of_others, default=-math.inf))
        others += of_others
    return np.array(mate_scores), np.array(mate_ranks), np.array(best_others), sorted(others, reverse=True)
