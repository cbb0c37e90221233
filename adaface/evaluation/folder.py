"""Identification on a private folder of aligned faces, clear or degraded; for its layouts see identity_folder.

The gallery has one feature per identity: the mean of the unit embeddings of its images, normalized to length 1. The
mean is not weighted by norm, as the specification of the comparison defines it: otherwise two compared models could
also differ in the quality of their weights.

The prediction for a probe is the identity of the most similar gallery feature. The numbers are computed over the mated
probes, whose identity is in the gallery:

    f1_score      macro: the mean over their identities of 2 TP / (2 TP + FP + FN), as scikit-learn's
    accuracy      share of correct predictions; the same as rank-1
    rank-k        share with the correct identity among the k most similar
    TPIR at FPIR  if there are non-mated probes: ``identification.open_set_rates``, the mate at any rank

Intervals are over identities, not over images: a folder of few people gives wide intervals, however many images each
has. That of f1_score is described in ``metrics.identification``.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.config.choices import DEGRADATIONS, DEGRADED_PARTS
from adaface.data.image_list import ImageList
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.identity_folder import IdentityFolder, assign_roles, open_identity_folder
from adaface.evaluation.template_pooling import pool_templates
from adaface.inference.search import most_similar, search
from adaface.metrics.identification import macro_f1, open_set_rates, rank_rates
from adaface.metrics.intervals import including, rate_interval, tar_intervals
from adaface.metrics.outcome import Embedded, EmbedImages, Outcome, unreadable_note
from adaface.reporting.hardest_pairs import HardestPairs, HardPair, picture

PROTOCOL = "folder"
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_SHOWN_MATCHES = 16


@dataclass(frozen=True)
class Identification:
    """Predictions of a model for all probes.

    Attributes:
        labels: (M,) identities of the mated probes.
        predicted: (M,) identity of the most similar gallery feature.
        mate_scores: (M,) cosine to the feature of the correct identity.
        mate_ranks: (M,) rank of the correct identity, from 1.
        unknown_labels: (U,) identities of the non-mated probes.
        unknown_scores: (U,) their largest cosine to any identity.
        norms: (M + U,) feature norms of all probes, in the folder's order.
        gallery_size: number G of identities in the gallery.
        notes: remarks on the data.
        probes: (M,) indices of the mated probes in the folder.
        embeddings: (M, D) of the mated probes, unit vectors.
        scores: (M,) cosine to the most similar gallery feature.
        in_gallery: (N,) booleans, which images of the folder are in the gallery.
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
    probes: np.ndarray
    embeddings: np.ndarray
    scores: np.ndarray
    in_gallery: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each mated probe was identified, (M,) booleans."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class FolderSplit:
    """Split of a private folder into gallery and probes.

    Attributes:
        gallery_images: number of gallery images of each identity.
        unknown_share: share of the identities, in [0, 1), without a gallery.
        seed: random seed of the degradation and of the choice of unknown identities.
        limit: approximate number of images, for a quick test; None for all.
    """

    gallery_images: int = 1
    unknown_share: float = 0.0
    seed: int = 0
    limit: int | None = None


def run(
    embed: EmbedImages,
    root: Path,
    split: FolderSplit = FolderSplit(),
    *,
    degrade: str | None = None,
    degraded_part: str = "all",
    strength: float = 1.0,
) -> Outcome:
    """Measure identification on a private folder; for the arguments see ``run_and_show``."""
    return run_and_show(embed, root, split, degrade=degrade, degraded_part=degraded_part, strength=strength)[0]


def run_and_show(
    embed: EmbedImages,
    root: Path,
    split: FolderSplit = FolderSplit(),
    *,
    degrade: str | None = None,
    degraded_part: str = "all",
    strength: float = 1.0,
) -> tuple[Outcome, HardestPairs]:
    """Measure identification on a private folder, and read the images of its worst errors.

    Args:
        embed: the model.
        root: folder of images.
        split: of the folder, into gallery and probes.
        degrade: None, or ``blur``.
        degraded_part: degrade ``all`` images (the specification's comparison) or ``probe`` images only.
        strength: strength of the degradation, in [0, 1].

    Returns:
        The numbers, and the wrong matches of the largest similarity.

    Raises:
        FileNotFoundError: there is no such folder, or it has another layout.
        ValueError: options out of range, images that cannot be read, or no probe with a gallery.
    """
    if degrade not in (None, *DEGRADATIONS) or degraded_part not in DEGRADED_PARTS:
        raise ValueError(
            f"got the degradation {degrade!r} of {degraded_part!r}, expected None or one of {', '.join(DEGRADATIONS)}, "
            f"and one of {', '.join(DEGRADED_PARTS)}"
        )
    folder = open_identity_folder(root, split.limit)
    seen: ImageList = folder.images if degrade is None else DegradedImages(folder.images, split.seed, strength)
    in_gallery = folder.images if degraded_part == "probe" else seen
    probes = embed(seen)
    gallery = probes if in_gallery is seen else embed(in_gallery)
    result = identify(
        folder,
        gallery,
        probes,
        gallery_images=split.gallery_images,
        unknown_share=split.unknown_share,
        seed=split.seed,
    )
    wrong = _wrong_matches(result, folder, gallery, seen, in_gallery)
    if degrade is None:
        return outcome_of(result, folder.images.name), wrong
    note = degradation_note(degraded_part, strength=strength, seed=split.seed)
    return outcome_of(result, f"{folder.images.name} blurred", (note,)), wrong


def _wrong_matches(
    result: Identification, folder: IdentityFolder, gallery: Embedded, seen: ImageList, in_gallery: ImageList
) -> HardestPairs:
    """Read the wrongly identified probes of the largest similarity, each beside the image that it was taken for."""
    wrong = np.flatnonzero(~result.correct)
    pairs = []
    for probe in wrong[np.argsort(-result.scores[wrong], kind="stable")[:_SHOWN_MATCHES]]:
        images = np.flatnonzero(result.in_gallery & (folder.labels == result.predicted[probe]))
        other = int(images[np.argmax(gallery.embeddings[images] @ result.embeddings[probe])])
        taken = [folder.identities[label] for label in (result.labels[probe], result.predicted[probe])]
        pairs.append(
            HardPair(
                index=int(probe),
                similarity=float(result.scores[probe]),
                pictures=(picture(seen, int(result.probes[probe])), picture(in_gallery, other)),
                text=f"{taken[0]} taken for {taken[1]}; own similarity {result.mate_scores[probe]:.3f}, "
                f"rank {result.mate_ranks[probe]}",
            )
        )
    return HardestPairs(seen.name, (), tuple(pairs), heading="Wrong matches, most similar")


def degradation_note(degraded_part: str, *, strength: float, seed: int) -> str:
    """Return a note on the degradation of the images.

    Args:
        degraded_part: one of ``DEGRADED_PARTS``.
        strength: strength of the degradation.
        seed: random seed of the degradation.
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
        gallery: embeddings of all images, for the gallery.
        probes: embeddings of all images, for the probes; they differ if only probes are degraded.
        gallery_images: as in ``assign_roles``.
        unknown_share: as in ``assign_roles``.
        seed: as in ``assign_roles``.

    Raises:
        ValueError: as in ``assign_roles``; or embeddings that are not finite.
    """
    readable = gallery.readable & probes.readable
    roles = assign_roles(folder, readable, gallery_images=gallery_images, unknown_share=unknown_share, seed=seed)
    known, features = _mean_by_identity(gallery.embeddings, folder.labels, roles.gallery)
    rows = np.flatnonzero(roles.probes)
    labels, embeddings = folder.labels[rows], probes.embeddings[rows]
    result = search(embeddings, features, labels, known)
    mated = result.mate_ranks > 0
    places, scores = most_similar(embeddings[mated], features, 1)
    ignored = (f"{folder.skipped:,} files are skipped",) if folder.skipped else ()
    return Identification(
        labels=labels[mated],
        predicted=known[places[:, 0]],
        mate_scores=result.mate_scores[mated],
        mate_ranks=result.mate_ranks[mated],
        unknown_labels=labels[~mated],
        unknown_scores=result.best_nonmate_scores[~mated],
        norms=probes.norms[rows, 0],
        gallery_size=len(known),
        notes=(*roles.notes, *unreadable_note(readable), *ignored),
        probes=rows[mated],
        embeddings=embeddings[mated],
        scores=scores[:, 0],
        in_gallery=roles.gallery,
    )


def outcome_of(result: Identification, data: str, notes: tuple[str, ...] = ()) -> Outcome:
    """Return the numbers of an identification, with 95 % intervals.

    Args:
        result: predictions of the model.
        data: name of the data set.
        notes: further remarks.
    """
    numbers, intervals = {}, {}

    def add(name: str, value: float, ends: tuple[float, float] | None) -> None:
        numbers[name] = 100 * value
        if ends is not None:
            intervals[name] = (100 * ends[0], 100 * ends[1])

    f1 = macro_f1(result.labels, result.predicted)
    add("f1_score", f1.score, f1.interval())
    add("accuracy", float(result.correct.mean()), rate_interval(result.correct, result.labels))
    for rank, rate in rank_rates(result.mate_ranks, RANKS).items():
        if rank < result.gallery_size:
            add(f"rank-{rank}", rate, rate_interval(result.mate_ranks <= rank, result.labels))
        else:  # always 100 %
            add(f"rank-{rank}", math.nan, None)
    for fpir, (rate, ends) in _open_set(result).items():
        add(f"TPIR at FPIR {fpir:g}", rate, ends)
    return Outcome(PROTOCOL, data, numbers, intervals, (_sizes(result), *notes, *result.notes), norms=result.norms)


def _open_set(result: Identification) -> dict[float, tuple[float, tuple[float, float] | None]]:
    """Return TPIR and its interval by FPIR; empty without non-mated probes."""
    if not len(result.unknown_scores):
        return {}
    rates = open_set_rates(result.mate_scores, result.mate_ranks, result.unknown_scores, FPIRS)
    measurable = [fpir for fpir in FPIRS if fpir * len(result.unknown_scores) >= 1]
    people = np.concatenate([result.labels, result.unknown_labels])
    intervals = tar_intervals(
        np.concatenate([result.mate_scores, result.unknown_scores]),
        np.arange(len(people)) < len(result.labels),
        measurable,
        np.stack([people, people], axis=1),
    )
    measured = {fpir: rates[fpir].tpir for fpir in intervals}
    ends = {fpir: including(interval, measured[fpir]) for fpir, interval in intervals.items()}
    return {fpir: (measured.get(fpir, math.nan), ends.get(fpir)) for fpir in FPIRS}


def _mean_by_identity(embeddings: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the G identities of the chosen rows, ascending, and their mean embeddings, (G, D) unit vectors."""
    rows = np.flatnonzero(chosen)
    return pool_templates(lambda some: embeddings[rows[some]], labels[rows], rows)


def _sizes(result: Identification) -> str:
    text = f"{result.gallery_size:,} identities in the gallery, {len(result.labels):,} probes of them"
    return f"{text}, {len(result.unknown_labels):,} probes of others" if len(result.unknown_labels) else text
