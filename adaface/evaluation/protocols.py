"""The protocols of the evaluation command: each evaluates a model on data and returns its findings."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from adaface.checkpoints.files import store_threshold
from adaface.checkpoints.published import RANK_1, RANK_5
from adaface.config.choices import FAR, POOLINGS
from adaface.data.chosen_sets import find_sets
from adaface.data.image_list import ChosenImages
from adaface.evaluation import folder, ijb, tinyface, verification
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.findings import Findings
from adaface.evaluation.folder import FolderSplit as FolderSplit
from adaface.evaluation.identity_folder import open_identity_folder
from adaface.evaluation.model_comparison import compare_models, model_names
from adaface.evaluation.pair_comparison import compare_on_pairs
from adaface.evaluation.published import (
    Measurement,
    compare,
    comparison_table,
    find_published,
)
from adaface.evaluation.verification import VerifiedSet
from adaface.inference.embedding_cache import CachedEmbedding
from adaface.metrics.calibration import describe_threshold, stored_threshold
from adaface.metrics.outcome import Outcome
from adaface.metrics.quality import (
    ErrorReject,
    error_versus_reject,
    quality_conclusion,
    quality_warning,
    rank_correlation,
)

_REJECT_FMR = 1e-2
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST_DEGRADED = 400  # images per set, for the correlation of norm and degradation
_IJB_FAR = "TAR at FAR 1e-4"


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
    """Evaluate verification sets; optionally calibrate a threshold, and check the norm as a measure of quality.

    Args:
        embed: the model.
        root: as in ``verification.run``.
        names: as in ``verification.run``.
        limit: as in ``verification.run``.
        quality: degrade images, and correlate their norms with the degradation.
        seed: random seed of the degradation.
        target_far: calibrate a threshold for this false accept rate, in (0, 1).
        store_in: checkpoint to store that threshold in.
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
    """Evaluate IJB-B or IJB-C, 1:1 and 1:N; for the arguments see ``ijb.run``."""
    return Findings(outcomes=[ijb.run(embed, root, name, pooling=pooling, limit=limit)])


def run_tinyface(embed: CachedEmbedding, root: Path, limit: int = 0) -> Findings:
    """Evaluate TinyFace; for the arguments see ``tinyface.run``."""
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
        root: folder of images.
        split: split into gallery and probes.
        degrade: as in ``folder.run``.
        degraded_part: as in ``folder.run``.
        strength: strength of the degradation, in [0, 1].
    """
    outcome, wrong = folder.run_and_show(
        embed, root, split, degrade=degrade, degraded_part=degraded_part, strength=strength
    )
    return Findings(outcomes=[outcome], hardest=[wrong], degraded=_samples(root, split, strength) if degrade else None)


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
        paths: paths of the models' files, from which their names are derived.
        models: the models, in the same order.
        root: as in ``verification.run``.
        names: as in ``verification.run``.
        far: false accept rate of the TAR, in (0, 1).
        limit: as in ``verification.run``.
    """
    named = dict(zip(model_names(paths), models, strict=True))
    return Findings(comparison=compare_on_pairs(named, root, names, far=far, limit=limit))


def compare_folder(
    paths: Sequence[str], models: Sequence[CachedEmbedding], root: Path, split: FolderSplit, *, strength: float = 1.0
) -> Findings:
    """Compare several models on a private folder, clear and blurred.

    Args:
        paths: paths of the models' files, from which their names are derived.
        models: the models, in the same order.
        root: folder of images.
        split: split into gallery and probes.
        strength: strength of the degradation, in [0, 1].
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
    """Evaluate all data of the paper found in a folder, and compare the results with the published ones.

    Args:
        embed: the model.
        root: folder with some of the verification sets, ``IJBB``, ``IJBC`` and ``tinyface``.
        names: verification sets to evaluate; empty for all.
        published: row of the published table; empty to infer it from the file's name.
        file: name of the model's file.
        pooling: as in ``ijb.run``.
        limit: for a quick test, as in each protocol; 0 for everything.
    """
    model = find_published(published, arch=embed.embedder.arch, file=file)
    available = _available(root, names)
    if not available:
        raise FileNotFoundError(
            f"no data of the paper in {root}: expected verification sets (lfw.bin, ... or converted ones), IJBB, IJBC "
            "or tinyface"
        )
    sets = verification.run(embed, root, available["pairs"], limit) if "pairs" in available else []
    runs: dict[str, Callable[[], Outcome]] = {
        "ijbb": lambda: ijb.run(embed, root, "IJBB", pooling=pooling, limit=limit),
        "ijbc": lambda: ijb.run(embed, root, "IJBC", pooling=pooling, limit=limit),
        "tinyface": lambda: tinyface.run(embed, root, limit),
    }
    outcomes = [run() for name, run in runs.items() if name in available]
    comparisons = compare(model, dict(_measurements(sets, outcomes)))
    outside = [row.what for row in comparisons if row.inside is False]
    lines = [comparison_table(model, comparisons)]
    if outside:
        lines.append(f"outside the interval: {', '.join(outside)}")
    rejections, warnings = _rejections(sets)
    return Findings(sets, outcomes, lines, rejections=rejections, warnings=warnings, failed=bool(outside))


def _available(root: Path, sets: list[str]) -> dict[str, list[str]]:
    """Return the data of the paper that a folder contains: protocols, and the verification sets of "pairs"."""
    available: dict[str, list[str]] = {}
    if not root.is_dir():
        raise FileNotFoundError(f"--root {root} is not a folder")
    try:
        available["pairs"] = list(find_sets(root, sets))
    except FileNotFoundError:
        if sets:
            raise
    available |= {name.lower(): [] for name in ("IJBB", "IJBC", "tinyface") if (root / name).is_dir()}
    return available


def _measurements(sets: list[VerifiedSet], outcomes: list[Outcome]) -> Iterator[tuple[str, Measurement]]:
    """Yield the measured numbers, under the names of the published table."""
    nothing = (float("nan"), float("nan"))
    for verified in sets:
        result = verified.result
        yield result.name, Measurement(result.accuracy, *result.intervals.get("accuracy", nothing))
    for outcome in outcomes:
        names = {"rank-1": RANK_1, "rank-5": RANK_5} if outcome.protocol == "tinyface" else {_IJB_FAR: outcome.protocol}
        for name, row in names.items():
            yield row, Measurement(outcome.numbers[name], *outcome.intervals.get(name, nothing))


def _rejections(sets: list[VerifiedSet]) -> tuple[dict[str, ErrorReject], list[str]]:
    """Compute the error-versus-reject curve of each set with enough pairs, and warn if it rises."""
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
    """Return a line on the gain from rejecting images of low norm."""
    gain = "" if math.isnan(curve.gain) else f"; {curve.gain:.0%} of the ideal gain"
    return (
        f"{name}: without the {curve.rejected[-1]:.0%} of genuine pairs with the lowest norms, FNMR at FMR "
        f"{curve.fmr:.2g} is {curve.fnmr[-1]:.2%}, with them {curve.fnmr[0]:.2%}{gain}"
    )


def _degraded_norms(sets: list[VerifiedSet], embed: CachedEmbedding, seed: int) -> tuple[list[str], list[str]]:
    """Correlate the norms of each set's images with a synthetic degradation."""
    lines, warnings = [], []
    for verified in sets:
        chosen = verified.places.ravel()[:_MOST_DEGRADED]  # all of them are readable
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
            f"  {quality_conclusion(correlation)}",
        ]
        warning = quality_warning(correlation=correlation)
        warnings += [f"{verified.result.name}: {warning}"] if warning else []
    return lines, warnings


def _threshold(sets: list[VerifiedSet], target_far: float, store_in: str | None) -> list[str]:
    """Calibrate the threshold for the target FAR on the pairs of all sets together; optionally store it."""
    stored = stored_threshold([verified.result for verified in sets], target_far)
    lines = describe_threshold(stored)
    if store_in:
        store_threshold(store_in, stored)
        lines.append(f"stored in {store_in}")
    return lines
