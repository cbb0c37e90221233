"""Identification on a private folder of aligned faces, clear or degraded; the folder's layouts are in identity_folder.

The gallery holds one feature per identity, the mean of its images' unit embeddings, scaled to length 1 again. The mean
is not weighted by norm: the specification of the comparison says mean, and a weight that one of two compared models
gets wrong would be one more difference between them.

A probe's prediction is the identity of the most similar gallery feature. Numbers are of the mated probes, whose
identity is in the gallery:

    f1_score      macro: the mean over their identities of 2 TP / (2 TP + FP + FN), as scikit-learn's
    accuracy      share of right predictions; the same as rank-1, under the name by which some look for it
    rank-k        share with the right identity among the k most similar
    TPIR at FPIR  where there are also non-mated probes: ``identification.open_set_rates``, the mate at any rank

Intervals are over identities, not over images: a folder of few people tells little, however many images each has.
That of f1_score is described in ``macro_f1``.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.evaluation.degradation import DEGRADATIONS, DegradedImages
from adaface.evaluation.identity_folder import IdentityFolder, assign_roles, open_identity_folder
from adaface.evaluation.template_pooling import pool_templates
from adaface.inference.search import most_similar, search
from adaface.metrics.identification import macro_f1, open_set_rates, rank_rates
from adaface.metrics.intervals import rate_interval, tar_intervals
from adaface.metrics.outcome import Embedded, EmbedImages, Outcome, unreadable_note

PROTOCOL = "folder"
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
DEGRADED_PARTS = ("all", "probe")


@dataclass(frozen=True)
class Identification:
    """What a model said about each probe.

    Attributes:
        labels: (M,) the mated probes' identities.
        predicted: (M,) the identity of the most similar gallery feature.
        mate_scores: (M,) cosine with the feature of the right one.
        mate_ranks: (M,) its rank, from 1.
        unknown_labels: (U,) the non-mated probes' identities.
        unknown_scores: (U,) their largest cosine with anybody.
        norms: (M + U,) of all probes, in the folder's order.
        gallery_size: number G of identities in the gallery.
        notes: what is unusual about the data.
    """

    labels: np.ndarray
    predicted: np.ndarray
    mate_scores: np.ndarray
    mate_ranks: np.ndarray
    unknown_labels: np.ndarray
    unknown_scores: np.ndarray
    norms: np.ndarray
    gallery_size: int
    notes: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """Whether each mated probe was identified, (M,) booleans."""
        return self.predicted == self.labels


def run(
    embed: EmbedImages,
    root: Path,
    *,
    gallery_images: int = 1,
    unknown_share: float = 0.0,
    degrade: str | None = None,
    degraded_part: str = "all",
    strength: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
) -> Outcome:
    """Measure identification on a private folder.

    Args:
        embed: the model.
        root: the folder.
        gallery_images: images of each identity that make up its gallery.
        unknown_share: share of the identities, in [0, 1), that get no gallery, for open-set numbers.
        degrade: None, or ``blur``.
        degraded_part: ``all`` images, gallery and probes (the specification's comparison), or ``probe`` images alone.
        strength: of the degradation, in [0, 1].
        seed: of the degradation, and of the draw of unknown identities.
        limit: for a quick look, about how many images.

    Raises:
        FileNotFoundError: no such folder, or another layout.
        ValueError: options out of range, images that cannot be used, no probe with a gallery.
    """
    if degrade not in (None, *DEGRADATIONS) or degraded_part not in DEGRADED_PARTS:
        raise ValueError(
            f"got the degradation {degrade!r} of {degraded_part!r}, expected None or one of {', '.join(DEGRADATIONS)}, "
            f"and one of {', '.join(DEGRADED_PARTS)}"
        )
    folder = open_identity_folder(root, limit)
    probes = gallery = embed(folder.images if degrade is None else DegradedImages(folder.images, seed, strength))
    if degrade is not None and degraded_part == "probe":
        gallery = embed(folder.images)
    found = identify(folder, gallery, probes, gallery_images=gallery_images, unknown_share=unknown_share, seed=seed)
    if degrade is None:
        return outcome_of(found, folder.images.name)
    note = degradation_note(degraded_part, strength=strength, seed=seed)
    return outcome_of(found, f"{folder.images.name} blurred", (note,))


def degradation_note(degraded_part: str, *, strength: float, seed: int) -> str:
    """Return what to say about numbers of degraded images.

    Args:
        degraded_part: one of ``DEGRADED_PARTS``.
        strength: of the degradation.
        seed: of the degradation.
    """
    which = "the probes" if degraded_part == "probe" else "gallery and probes"
    return f"{which} degraded: blur of strength {strength:g}, seed {seed}"


def identify(
    folder: IdentityFolder,
    gallery: Embedded,
    probes: Embedded,
    *,
    gallery_images: int = 1,
    unknown_share: float = 0.0,
    seed: int = 0,
) -> Identification:
    """Search for each probe in the gallery.

    Args:
        folder: the images.
        gallery: embeddings of all of them, from which those of the gallery are taken.
        probes: the same for the probes; other ones where probes alone are degraded.
        gallery_images: as ``assign_roles``.
        unknown_share: as ``assign_roles``.
        seed: as ``assign_roles``.

    Raises:
        ValueError: as ``assign_roles``; or embeddings that are not finite.
    """
    readable = gallery.readable & probes.readable
    roles = assign_roles(folder, readable, gallery_images=gallery_images, unknown_share=unknown_share, seed=seed)
    known, features = _mean_by_identity(gallery.embeddings, folder.labels, roles.gallery)
    rows = np.flatnonzero(roles.probes)
    labels, embeddings = folder.labels[rows], probes.embeddings[rows]
    searched = search(embeddings, features, labels, known)
    mated = searched.mate_ranks > 0
    places, _ = most_similar(embeddings[mated], features, 1)
    ignored = (f"left out because hidden or no images: {folder.ignored:,} files",) if folder.ignored else ()
    return Identification(
        labels=labels[mated],
        predicted=known[places[:, 0]],
        mate_scores=searched.mate_scores[mated],
        mate_ranks=searched.mate_ranks[mated],
        unknown_labels=labels[~mated],
        unknown_scores=searched.best_nonmate_scores[~mated],
        norms=probes.norms[rows, 0],
        gallery_size=len(known),
        notes=(*roles.notes, *unreadable_note(readable), *ignored),
    )


def outcome_of(found: Identification, data: str, notes: tuple[str, ...] = ()) -> Outcome:
    """Return the numbers of an identification, with 95 % intervals.

    Args:
        found: what the model said.
        data: name of the set.
        notes: what else to say about it.
    """
    numbers, intervals = {}, {}

    def add(name: str, value: float, ends: tuple[float, float] | None) -> None:
        numbers[name] = 100 * value
        if ends is not None:
            intervals[name] = (100 * ends[0], 100 * ends[1])

    f1 = macro_f1(found.labels, found.predicted)
    add("f1_score", f1.score, f1.interval())
    add("accuracy", float(found.correct.mean()), rate_interval(found.correct, found.labels))
    for rank, rate in rank_rates(found.mate_ranks, RANKS).items():
        if rank < found.gallery_size:
            add(f"rank-{rank}", rate, rate_interval(found.mate_ranks <= rank, found.labels))
        else:  # nothing but 100 % is possible
            add(f"rank-{rank}", math.nan, None)
    for fpir, (rate, ends) in _open_set(found).items():
        add(f"TPIR at FPIR {fpir:g}", rate, ends)
    return Outcome(PROTOCOL, data, numbers, intervals, (_sizes(found), *notes, *found.notes), norms=found.norms)


def _open_set(found: Identification) -> dict[float, tuple[float, tuple[float, float] | None]]:
    """Return TPIR and its interval by FPIR; nothing without non-mated probes."""
    if not len(found.unknown_scores):
        return {}
    rates = open_set_rates(found.mate_scores, found.mate_ranks, found.unknown_scores, FPIRS)
    measurable = [fpir for fpir in FPIRS if fpir * len(found.unknown_scores) >= 1]
    people = np.concatenate([found.labels, found.unknown_labels])
    intervals = tar_intervals(
        np.concatenate([found.mate_scores, found.unknown_scores]),
        np.arange(len(people)) < len(found.labels),
        measurable,
        np.stack([people, people], axis=1),
    )
    return {fpir: (rates[fpir].tpir if fpir in intervals else math.nan, intervals.get(fpir)) for fpir in FPIRS}


def _mean_by_identity(embeddings: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the G identities of the chosen rows, ascending, and their mean embeddings, (G, D) unit vectors."""
    rows = np.flatnonzero(chosen)
    return pool_templates(lambda some: embeddings[rows[some]], labels[rows], rows)


def _sizes(found: Identification) -> str:
    text = f"{found.gallery_size:,} identities in the gallery, {len(found.labels):,} probes of them"
    return f"{text}, {len(found.unknown_labels):,} probes of others" if len(found.unknown_labels) else text
