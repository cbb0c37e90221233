"""TinyFace: closed-set identification of low-resolution faces among 153,428 distractors.

    <root>/tinyface/Testing_Set/gallery_match_img_ID_pairs.mat, probe_img_ID_pairs.mat     the protocol's file names
    <root>/aligned_pad_0.1_pad_high/{Gallery_Match,Probe,Gallery_Distractor}/              aligned images of 112x112

The gallery consists of Gallery_Match and all images of Gallery_Distractor. The identity is the part of the file name
before the first ``_``. Rank-k is the share of probes with any image of their identity among the k most similar.

Sources: Cheng, Zhu, Gong, "Low-Resolution Face Recognition" (ACCV 2018); AdaFace's official ``validate_tinyface.py``.
Differs from it: the 3,728 x 157,871 similarities are computed in blocks; unreadable images are counted, and an
unreadable probe counts as a miss.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adaface.data.image_files import find_image_files, report_skipped
from adaface.data.image_list import ImageFiles
from adaface.evaluation.matlab_file import read_texts
from adaface.inference.search import search
from adaface.metrics.identification import rank_rates
from adaface.metrics.intervals import rate_interval
from adaface.metrics.outcome import Embedded, EmbedImages, Outcome

RANKS = (1, 5, 20)
_ALIGNED = "aligned_pad_0.1_pad_high"
_PARTS = ("Gallery_Match", "Probe", "Gallery_Distractor")
_DISTRACTOR = -1  # label of distractors
_BLOCK_BYTES = 256_000_000


def run(embed: EmbedImages, root: Path, limit: int = 0) -> Outcome:
    """Evaluate a model on TinyFace.

    Args:
        embed: the model.
        root: the folder that contains ``tinyface`` and the aligned images.
        limit: for a quick test, number of probes, and number of distractors; 0 for all.

    Returns:
        Rank-1, rank-5 and rank-20.

    Raises:
        FileNotFoundError: files or folders are missing; the message names all of them.
        ValueError: lists cannot be read or do not match, or a probe has no mate in the gallery.
    """
    lists, folders = lists_and_folders(root)
    match, probes = (read_texts(path, key) for path, key in zip(lists, ("gallery_set", "probe_set"), strict=True))
    found = find_image_files(folders[2])
    report_skipped(found, "distractors")
    distractors = sorted(folders[2] / name for name in found.names)
    if not distractors:
        raise ValueError(f"{folders[2]} contains no images: the gallery needs distractors")
    limited = 0 < limit < max(len(probes), len(distractors))
    if limited:
        probes, distractors = probes[:: -(-len(probes) // limit)], distractors[:: -(-len(distractors) // limit)]
    match_labels, probe_labels = identity_labels(match, probes)
    paths = [*(folders[0] / name for name in match), *(folders[1] / name for name in probes), *distractors]
    embedded = embed(ImageFiles("TinyFace", paths))
    if not len(embedded.embeddings) == len(embedded.readable) == len(paths):
        raise ValueError(f"got {len(embedded.embeddings)} embeddings for the {len(paths)} images of TinyFace")
    ranks = _mate_ranks(embedded, match_labels, probe_labels)
    numbers = {f"rank-{k}": 100 * rate for k, rate in rank_rates(ranks, RANKS).items()}
    notes = [f"{len(probes)} probes, gallery of {len(match)} images and {len(distractors)} distractors"]
    if limited:
        notes.append("quick test: ranks are computed in a smaller gallery")
    if not embedded.readable.all():
        of_probes = (~embedded.readable[len(match) : len(match) + len(probes)]).sum()
        notes.append(
            f"{(~embedded.readable).sum()} images could not be read: {of_probes} probes, which count as misses; the "
            "others are left out of the gallery"
        )
    hits_at = {k: (ranks > 0) & (ranks <= k) for k in RANKS}
    ends = {f"rank-{k}": rate_interval(hits, probe_labels) for k, hits in hits_at.items()}
    intervals = {name: (100 * low, 100 * high) for name, (low, high) in ends.items()}
    return Outcome("tinyface", "TinyFace", numbers, intervals, tuple(notes))


def identity_labels(gallery: Sequence[str], probes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the identities of gallery and probes as integers from 0.

    Args:
        gallery: file names; the identity is the part before the first ``_``.
        probes: file names.

    Raises:
        ValueError: a name without ``_``, or a probe without a mate in the gallery.
    """
    odd = [name for name in (*gallery, *probes) if "_" not in name]
    if odd:
        raise ValueError(f"{len(odd)} file names have no identity before a `_`, such as {odd[0]!r}")
    known = {identity: label for label, identity in enumerate(dict.fromkeys(map(_identity, gallery)))}
    without = [name for name in probes if _identity(name) not in known]
    if without:
        raise ValueError(
            f"{len(without)} probes have no image of their identity in the gallery, expected at least one for each: "
            f"{', '.join(without[:5])}"
        )
    return tuple(np.array([known[_identity(name)] for name in names]) for names in (gallery, probes))  # type: ignore[return-value]


def _identity(name: str) -> str:
    return name.partition("_")[0]


def lists_and_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the two lists and the three folders of images.

    Args:
        root: as in ``run``.

    Raises:
        FileNotFoundError: files or folders are missing; the message names all of them.
    """
    testing = root / "tinyface" / "Testing_Set"
    lists = [testing / f"{part}_img_ID_pairs.mat" for part in ("gallery_match", "probe")]
    folders = [root / _ALIGNED / part for part in _PARTS]
    missing = [str(path) for path in (*lists, *folders) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"TinyFace is incomplete in {root}, missing: {', '.join(missing)}")
    return lists, folders


def _mate_ranks(embedded: Embedded, match_labels: np.ndarray, probe_labels: np.ndarray) -> np.ndarray:
    """Return the rank of each probe's best mate; 0 if the probe or all of its mates are unreadable.

    Args:
        embedded: embeddings of gallery match, probes and distractors, in this order.
        match_labels: labels of the gallery match.
        probe_labels: labels of the probes.
    """
    labels = np.full(len(embedded.embeddings), _DISTRACTOR)
    labels[: len(match_labels)] = match_labels
    is_probe = np.zeros(len(labels), dtype=bool)
    is_probe[len(match_labels) : len(match_labels) + len(probe_labels)] = True
    gallery = embedded.readable & ~is_probe
    result = search(
        embedded.embeddings[is_probe],
        embedded.embeddings[gallery],
        probe_labels,
        labels[gallery],
        block_bytes=_BLOCK_BYTES,
    )
    return np.where(embedded.readable[is_probe], result.mate_ranks, 0)
