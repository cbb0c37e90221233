"""IJB-B and IJB-C: template verification (1:1) and mixed identification (1:N).

The metadata is read (``ijb_metadata.py``), the photographs are aligned by their landmarks and embedded, images are
pooled into templates (``template_pooling.py``), and templates are compared: TAR at FAR over the pairs of the protocol;
rank-k and TPIR at FPIR of all mixed probes against the gallery of both parts.

Sources: IARPA Janus Benchmark B and C (Whitelam et al. 2017, Maze et al. 2018) as InsightFace and AdaFace's official
``validate_IJB_BC.py`` evaluate them. As there, images are not weighted by the detector's score. Differs from them:
bounded memory; unreadable images are left out of their templates and counted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from adaface.alignment.landmark_file import check_landmarks
from adaface.alignment.warp import warp_listed_face
from adaface.config.choices import POOLINGS
from adaface.data.image_list import ImageFiles, ImageList
from adaface.evaluation.ijb_metadata import (
    TITLES,
    IJBMetadata,
    TemplateSubjects,
    examples,
    read_metadata,
    template_subjects,
    with_fewer_pairs,
)
from adaface.evaluation.template_pooling import (
    UNFUSED_POOLINGS,
    FeaturesOf,
    fused_features,
    pool_templates,
    unfused_features,
)
from adaface.inference.search import search
from adaface.metrics.identification import nonmates_needed, rank_rates, tpir_at_fpir
from adaface.metrics.intervals import Interval, rate_interval, tar_intervals
from adaface.metrics.outcome import Embedded, EmbedImages, Outcome, unreadable_note
from adaface.metrics.verification import tar_at_far

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_BLOCK_BYTES = 128_000_000


def run(embed: EmbedImages, root: Path, name: str, *, pooling: str = POOLINGS[0], limit: int = 0) -> Outcome:
    """Evaluate a model on IJB-B or IJB-C.

    Args:
        embed: the model; the poolings of ``UNFUSED_POOLINGS`` embed images and mirror images separately.
        root: the folder that contains ``IJBB`` or ``IJBC``.
        name: ``IJBB`` or ``IJBC``.
        pooling: one of ``template_pooling.POOLINGS``; the paper uses the first.
        limit: for a quick test, number of 1:1 pairs, spread evenly, without 1:N; 0 for everything.

    Returns:
        The numbers of 1:1, those of 1:N if its lists are there, and the similarity of each pair.

    Raises:
        FileNotFoundError: metadata is missing.
        ValueError: inconsistent metadata, an unknown pooling, images that the landmarks do not fit, or a
            template without readable images.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"got the pooling {pooling!r}, expected one of {', '.join(POOLINGS)}")
    metadata = read_metadata(root, name)
    notes = [f"template pooling: {pooling}"]
    limited = 0 < limit < len(metadata.issame)
    if limited:
        notes.append(f"quick test: {limit:,} of {len(metadata.issame):,} pairs, no 1:N")
        metadata = with_fewer_pairs(metadata, limit)
    if metadata.missing_lists:
        missing = ", ".join(map(str, metadata.missing_lists))
        notes.append(f"no 1:N, and intervals by template instead of subject: missing {missing}")
    images = aligned_images(metadata)
    notes += check_landmarks(metadata.folder, images.paths, metadata.landmarks)
    features_of, readable = _embed(embed, images, pooling)
    ids, templates = _pool_readable(features_of, readable, metadata)
    del features_of  # a gigabyte for IJB-C, unless it is cached

    similarity = pair_scores(templates, metadata.pairs)
    rates = tar_at_far(similarity, metadata.issame, FARS)
    numbers = {_tar_name(far): 100 * rate for far, rate in rates.items()}
    ends = tar_intervals(similarity, metadata.issame, FARS, template_subjects(metadata)[metadata.pairs.T])
    intervals = {_tar_name(far): interval for far, interval in ends.items()}
    if not limited and not metadata.missing_lists:
        of_search, ends_of_search = _identification(ids, templates, metadata.probes, metadata.gallery)
        numbers |= of_search
        intervals |= ends_of_search
    return Outcome(
        name.lower(),
        TITLES[name],
        numbers,
        {key: (100 * low, 100 * high) for key, (low, high) in intervals.items()},
        notes=(*notes, *unreadable_note(readable)),
        similarity=similarity,
        issame=metadata.issame,
    )


def aligned_images(metadata: IJBMetadata) -> ImageFiles:
    """Return the photographs of a set, each aligned by its landmarks when it is read.

    Args:
        metadata: metadata of the set.
    """
    landmarks = np.ascontiguousarray(metadata.landmarks)
    return ImageFiles(
        TITLES[metadata.name],
        _FilesIn(metadata.folder, metadata.file_names),
        prepare=_Warp(landmarks),
        prepared_as=f"five landmarks, linear {hashlib.sha256(landmarks.tobytes()).hexdigest()}",
    )


def pair_scores(templates: np.ndarray, pairs: np.ndarray, *, block_bytes: int = _BLOCK_BYTES) -> np.ndarray:
    """Return the dot product of each pair of templates.

    Protocols compare a template with many others, so it is cheaper to multiply matrices and select from the product
    than to gather two vectors for each pair.

    Args:
        templates: (T, D) float32 unit vectors.
        pairs: (2, P) indices of templates.
        block_bytes: limit on the memory for products; at least a row of T is computed.

    Returns:
        (P,) float32 in [-1, 1].
    """
    first, second = pairs
    firsts, seconds = (np.flatnonzero(np.bincount(side, minlength=len(templates))) for side in pairs)
    row, column = np.zeros((2, len(templates)), dtype=np.int64)  # index of a template in the products
    row[firsts], column[seconds] = np.arange(len(firsts)), np.arange(len(seconds))
    order = np.argsort(first)  # pairs of one block follow each other
    across = templates[seconds].T  # (D, S)
    rows = max(1, block_bytes // (across.itemsize * len(seconds)))
    scores = np.empty(len(first), dtype=np.float32)
    begin = 0
    for start in range(0, len(firsts), rows):
        block = firsts[start : start + rows]
        end = int(np.searchsorted(first, block[-1], side="right", sorter=order))
        chosen = order[begin:end]
        products = templates[block] @ across  # (rows, S)
        scores[chosen] = products[row[first[chosen]] - start, column[second[chosen]]]
        begin = end
    return scores


@dataclass(frozen=True)
class _FilesIn(Sequence[Path]):
    """Paths created on demand: half a million Path objects would take more memory than their names.

    Attributes:
        folder: folder of the files.
        names: (N,) file names.
    """

    folder: Path
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "_FilesIn": ...
    def __getitem__(self, index: int | slice) -> "Path | _FilesIn":
        if isinstance(index, slice):
            return _FilesIn(self.folder, self.names[index])
        return self.folder / self.names[index]


@dataclass(frozen=True)
class _Warp:
    """Aligns the image of an index, in any process.

    Attributes:
        landmarks: (N, 5, 2) float32, x and y in px.
    """

    landmarks: np.ndarray

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        return warp_listed_face(image, self.landmarks[index].astype(np.float64))


def _embed(embed: EmbedImages, images: ImageList, pooling: str) -> tuple[FeaturesOf, np.ndarray]:
    """Return a function that gives image features, and which images could be read."""
    if pooling not in UNFUSED_POOLINGS:
        embedded = _counted(embed(images), images)
        return fused_features(pooling, embedded.embeddings, embedded.norms), embedded.readable
    sides = [_counted(embed(images, view), images) for view in ("image", "mirror")]
    features_of = unfused_features(pooling, *(side.embeddings for side in sides))
    return features_of, sides[0].readable & sides[1].readable


def _counted(embedded: Embedded, images: ImageList) -> Embedded:
    counts = {len(embedded.embeddings), len(embedded.norms), len(embedded.readable)}
    if counts != {len(images)}:
        raise ValueError(
            f"got {len(embedded.embeddings)} embeddings, {len(embedded.norms)} norms and {len(embedded.readable)}"
            f" readable flags for the {len(images)} images of {images.name}: expected one for each"
        )
    return embedded


def _pool_readable(
    features_of: FeaturesOf, readable: np.ndarray, metadata: IJBMetadata
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (T,) and features (T, D) of all templates, pooled from readable images."""
    rows = np.flatnonzero(readable)
    without = np.setdiff1d(metadata.template_ids, metadata.template_ids[rows])
    if len(without):
        raise ValueError(
            f"no image of {len(without)} templates of {TITLES[metadata.name]} could be read: {examples(without)}"
        )
    return pool_templates(lambda part: features_of(rows[part]), metadata.template_ids[rows], metadata.media_ids[rows])


def _identification(
    ids: np.ndarray, templates: np.ndarray, probes: TemplateSubjects, gallery: TemplateSubjects
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Return the numbers of 1:N, in percent, and the intervals of its ranks, as fractions."""
    result = search(
        templates[np.searchsorted(ids, probes.template_ids)],
        templates[np.searchsorted(ids, gallery.template_ids)],
        probes.subject_ids,
        gallery.subject_ids,
        nonmate_count=nonmates_needed(len(probes.template_ids), FPIRS),
        block_bytes=_BLOCK_BYTES,
    )
    numbers = {f"rank-{k}": 100 * rate for k, rate in rank_rates(result.mate_ranks, RANKS).items()}
    rates = tpir_at_fpir(result.mate_scores, result.top_nonmate_scores, FPIRS)
    numbers |= {f"TPIR at FPIR {fpir:g}": 100 * rate for fpir, rate in rates.items()}
    intervals = {f"rank-{k}": rate_interval(result.mate_ranks <= k, probes.subject_ids) for k in RANKS}
    return numbers, intervals


def _tar_name(far: float) -> str:
    return f"TAR at FAR {far:.0e}".replace("e-0", "e-")
