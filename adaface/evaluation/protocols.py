"""The protocols: a model and the data in, findings out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaface.checkpoints.files import store_threshold
from adaface.checkpoints.published import RANK_1, RANK_5
from adaface.data.image_list import ChosenImages
from adaface.evaluation import folder, ijb, tinyface, verification
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.findings import Findings
from adaface.evaluation.identity_folder import open_identity_folder
from adaface.evaluation.model_comparison import compare_models, model_names
from adaface.evaluation.pair_comparison import FAR, compare_on_pairs
from adaface.evaluation.published import (
    Measurement,
    compare,
    comparison_table,
    find_published,
)
from adaface.evaluation.template_pooling import POOLINGS
from adaface.evaluation.verification import VerifiedSet
from adaface.inference.cached import CachedEmbedding
from adaface.metrics.calibration import calibrate
from adaface.metrics.outcome import Outcome
from adaface.metrics.quality import ErrorReject, error_versus_reject, quality_warning, rank_correlation

_REJECT_FMR = 1e-2
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST_DEGRADED = 400  # images of a set, for the correlation of norm and degradation
_IJB_FAR = "TAR at FAR 1e-4"


@dataclass(frozen=True)
class FolderSplit:
    """How the images of a private folder become gallery and probes.

    Attributes:
        gallery_images: images of each identity that make up its gallery.
        unknown_share: share of the identities, in [0, 1), that get no gallery.
        seed: of the degradation, and of the draw of unknown identities.
        limit: for a quick look, about how many images; None for all.
    """

    gallery_images: int = 1
    unknown_share: float = 0.0
    seed: int = 0
    limit: int | None = None


def run_pairs(
    embed: CachedEmbedding,
    root: str,
    names: list[str],
    *,
    limit: int = 0,
    quality: bool = False,
    seed: int = 0,
    target_far: float | None = None,
    store_in: str | None = None,
) -> Findings:
    """Evaluate verification sets; with a threshold, and norm against quality, where asked for.

    Args:
        embed: the model.
        root: as ``verification.run``.
        names: as ``verification.run``.
        limit: as ``verification.run``.
        quality: degrade images, and correlate their norms with the degradation.
        seed: of the degradation.
        target_far: find the threshold of this false accept rate, in (0, 1).
        store_in: the checkpoint to write that threshold into.
    """
    sets = verification.run(embed, root, names, limit)
    rejections, warnings = _rejections(sets)
    lines: list[str] = []
    if quality:
        lines, more = _degraded_norms(sets, embed, seed)
        lines += [_gain(name, curve) for name, curve in rejections.items()]
        warnings += more
    if target_far:
        lines += _threshold(sets, target_far, store_in)
    return Findings(sets=sets, rejections=rejections, lines=lines, warnings=warnings)


def run_ijb(embed: CachedEmbedding, root: Path, name: str, *, pooling: str, limit: int = 0) -> Findings:
    """Evaluate IJB-B or IJB-C, 1:1 and 1:N; arguments as those of ``ijb.run``."""
    return Findings(outcomes=[ijb.run(embed, root, name, pooling=pooling, limit=limit)])


def run_tinyface(embed: CachedEmbedding, root: Path, limit: int = 0) -> Findings:
    """Evaluate TinyFace; arguments as those of ``tinyface.run``."""
    return Findings(outcomes=[tinyface.run(embed, root, limit)])


def run_folder(
    embed: CachedEmbedding,
    root: Path,
    split: FolderSplit,
    *,
    degrade: str | None = None,
    degraded_part: str = "all",
    strength: float = 1.0,
) -> Findings:
    """Evaluate identification on a private folder.

    Args:
        embed: the model.
        root: the folder.
        split: its gallery and probes.
        degrade: as ``folder.run``.
        degraded_part: as ``folder.run``.
        strength: of the degradation, in [0, 1].
    """
    degradation: dict[str, Any] = {"degrade": degrade, "degraded_part": degraded_part, "strength": strength}
    outcome = folder.run(embed, root, **degradation, **vars(split))
    return Findings(outcomes=[outcome], degraded=_samples(root, split, strength) if degrade else None)


def _samples(root: Path, split: FolderSplit, strength: float) -> DegradedImages:
    return DegradedImages(open_identity_folder(root, split.limit).images, split.seed, strength)


def compare_pairs(
    paths: Sequence[str],
    models: Sequence[CachedEmbedding],
    root: str,
    names: list[str],
    *,
    far: float = FAR,
    limit: int = 0,
) -> Findings:
    """Compare several models on the same pairs.

    Args:
        paths: of the models' files, which give them their names.
        models: in the same order.
        root: as ``verification.run``.
        names: as ``verification.run``.
        far: false accept rate of the TAR, in (0, 1).
        limit: as ``verification.run``.
    """
    named = dict(zip(model_names(paths), models, strict=True))
    return Findings(comparison=compare_on_pairs(named, root, names, far=far, limit=limit))


def compare_folder(
    paths: Sequence[str], models: Sequence[CachedEmbedding], root: Path, split: FolderSplit, *, strength: float = 1.0
) -> Findings:
    """Compare several models on a private folder, clear and blurred.

    Args:
        paths: of the models' files, which give them their names.
        models: in the same order.
        root: the folder.
        split: its gallery and probes.
        strength: of the degradation, in [0, 1].
    """
    named = dict(zip(model_names(paths), models, strict=True))
    comparison = compare_models(named, root, strength=strength, **vars(split))
    return Findings(comparison=comparison, degraded=_samples(root, split, strength))


def run_paper(
    embed: CachedEmbedding,
    root: Path,
    names: list[str],
    *,
    published: str = "",
    file: str = "",
    pooling: str = POOLINGS[0],
    limit: int = 0,
) -> Findings:
    """Evaluate everything that is found under the root, beside the published numbers.

    Args:
        embed: the model.
        root: holds some of the verification sets, ``IJBB``, ``IJBC`` and ``tinyface``.
        names: the verification sets that are asked for; all when empty.
        published: row of the published table; empty where the file's name tells it.
        file: name of the model's file.
        pooling: as ``ijb.run``.
        limit: for a quick look, as the single protocols take it; 0 for everything.
    """
    model = find_published(published, arch=embed.embedder.arch, file=file)
    found = _found(root, names)
    if not found:
        raise FileNotFoundError(
            f"nothing of the paper is in {root}: verification sets (lfw.bin, ... or converted ones), IJBB, IJBC or "
            "tinyface were expected"
        )
    sets = verification.run(embed, root, found["pairs"], limit) if "pairs" in found else []
    runs: dict[str, Callable[[], Outcome]] = {
        "ijbb": lambda: ijb.run(embed, root, "IJBB", pooling=pooling, limit=limit),
        "ijbc": lambda: ijb.run(embed, root, "IJBC", pooling=pooling, limit=limit),
        "tinyface": lambda: tinyface.run(embed, root, limit),
    }
    outcomes = [run() for name, run in runs.items() if name in found]
    comparisons = compare(model, dict(_measurements(sets, outcomes)))
    outside = [row.what for row in comparisons if row.inside is False]
    lines = [comparison_table(model, comparisons)]
    if outside:
        lines.append(f"outside the interval: {', '.join(outside)}")
    rejections, warnings = _rejections(sets)
    return Findings(sets, outcomes, lines, rejections=rejections, warnings=warnings, failed=bool(outside))


def _found(root: Path, sets: list[str]) -> dict[str, list[str]]:
    """Return which data of the paper a folder holds, and of the verification sets which."""
    found: dict[str, list[str]] = {}
    if not root.is_dir():
        raise FileNotFoundError(f"--root {root} is not a folder")
    try:
        found["pairs"] = list(verification.find_sets(root, sets))
    except FileNotFoundError:
        if sets:
            raise
    found |= {name.lower(): [] for name in ("IJBB", "IJBC", "tinyface") if (root / name).is_dir()}
    return found


def _measurements(sets: list[VerifiedSet], outcomes: list[Outcome]) -> Iterator[tuple[str, Measurement]]:
    """Yield what was measured by the names of the published table."""
    nothing = (float("nan"), float("nan"))
    for verified in sets:
        result = verified.result
        yield result.name, Measurement(result.accuracy, *result.intervals.get("accuracy", nothing))
    for outcome in outcomes:
        names = {"rank-1": RANK_1, "rank-5": RANK_5} if outcome.protocol == "tinyface" else {_IJB_FAR: outcome.protocol}
        for name, row in names.items():
            yield row, Measurement(outcome.numbers[name], *outcome.intervals.get(name, nothing))


def _rejections(sets: list[VerifiedSet]) -> tuple[dict[str, ErrorReject], list[str]]:
    """Compute the error-versus-reject curve of each set that can have one, and warn where it rises."""
    curves: dict[str, ErrorReject] = {}
    warnings = []
    for verified in sets:
        result = verified.result
        if min(result.genuine, result.impostors) * _REJECT_FMR < 1:
            continue
        curve = error_versus_reject(result.similarity, result.issame, verified.norms, _REJECT_FMR)
        curves[result.name] = curve
        warning = quality_warning(curve)
        warnings += [f"{result.name}: {warning}"] if warning else []
    return curves, warnings


def _gain(name: str, curve: ErrorReject) -> str:
    """Return what rejecting images of low norms brings, in a line."""
    gain = "" if math.isnan(curve.gain) else f", {curve.gain:.0%} of what the best order would bring"
    return (
        f"{name}: without the {curve.rejected[-1]:.0%} of genuine pairs of the lowest norms {curve.fnmr[-1]:.2%} are "
        f"rejected at FMR {curve.fmr:.2g}, with them {curve.fnmr[0]:.2%}{gain}"
    )


def _degraded_norms(sets: list[VerifiedSet], embed: CachedEmbedding, seed: int) -> tuple[list[str], list[str]]:
    """Correlate the norms of each set's images with a synthetic degradation of them."""
    lines, warnings = [], []
    for verified in sets:
        chosen = verified.places.ravel()[:_MOST_DEGRADED]  # all of them can be read
        images = ChosenImages(verified.images, chosen)
        norms, levels = [], []
        for strength in _STRENGTHS:
            embedded = embed(DegradedImages(images, seed, strength) if strength else images)
            norms.append(np.asarray(embedded.norms)[embedded.readable, 0])
            levels.append(np.full(len(norms[-1]), strength))
        correlation = rank_correlation(np.concatenate(norms), np.concatenate(levels))
        means = ", ".join(
            f"{part.mean():.1f} at {strength:g}" for part, strength in zip(norms, _STRENGTHS, strict=True)
        )
        low, high = correlation.interval
        lines += [
            f"{verified.result.name}: rank correlation of norm and degradation {correlation.rho:.2f} "
            f"[{low:.2f}, {high:.2f}]",
            f"  mean norm by strength: {means}",
        ]
        warning = quality_warning(correlation=correlation)
        warnings += [f"{verified.result.name}: {warning}"] if warning else []
    return lines, warnings


def _threshold(sets: list[VerifiedSet], target_far: float, store_in: str | None) -> list[str]:
    """Find the threshold for the wanted FAR on the pairs of all sets together; store it where asked for."""
    similarity = np.concatenate([verified.result.similarity for verified in sets])
    issame = np.concatenate([verified.result.issame for verified in sets])
    found = calibrate(similarity, issame, target_far)
    names = ", ".join(verified.result.name for verified in sets)
    low, high = (100 * end for end in found.far_interval)
    lines = [
        f"threshold for FAR {target_far:g}: cosine {found.threshold:.4f}, from {names}",
        f"  measured FAR {100 * found.far:.3f} % [{low:.3f}, {high:.3f}], TAR {100 * found.tar:.2f} %",
    ]
    if store_in:
        store_threshold(store_in, {"cosine": found.threshold, "sets": names, **found.as_dict()})
        lines.append(f"stored in {store_in}")
    return lines
