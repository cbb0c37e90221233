"""The protocols by name: options and a model in, what they found out."""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from checkpoints import store_threshold
from evaluation import folder, ijb, tinyface, verification
from evaluation.cached import CachedEmbedding
from evaluation.calibration import calibrate
from evaluation.degradation import DegradedImages
from evaluation.findings import Findings
from evaluation.identity_folder import open_identity_folder
from evaluation.image_list import ChosenImages
from evaluation.model_comparison import compare_models, model_names
from evaluation.outcome import Outcome
from evaluation.pair_comparison import FAR, compare_on_pairs
from evaluation.published import (
    Measurement,
    compare,
    comparison_table,
    find_published,
)
from evaluation.quality import ErrorReject, error_versus_reject, quality_warning, rank_correlation
from evaluation.verification import VerifiedSet
from published_models import RANK_1, RANK_5

_REJECT_FMR = 1e-2
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST_DEGRADED = 400  # images of a set, for the correlation of norm and degradation
_IJB_FAR = "TAR at FAR 1e-4"


def run_pairs(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """Verification sets; with a threshold, and norm against quality, where asked for."""
    sets = verification.run(embed, options.root, options.sets, options.limit)
    rejections, warnings = _rejections(sets)
    lines: list[str] = []
    if options.quality:
        lines, more = _degraded_norms(sets, embed, options.seed)
        lines += [_gain(name, curve) for name, curve in rejections.items()]
        warnings += more
    if options.target_far:
        lines += _threshold(sets, embed, options)
    return Findings(sets=sets, rejections=rejections, lines=lines, warnings=warnings)


def run_ijbb(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """IJB-B, 1:1 and 1:N."""
    return Findings(outcomes=[ijb.run(embed, Path(options.root), "IJBB", pooling=options.pooling, limit=options.limit)])


def run_ijbc(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """IJB-C, 1:1 and 1:N."""
    return Findings(outcomes=[ijb.run(embed, Path(options.root), "IJBC", pooling=options.pooling, limit=options.limit)])


def run_tinyface(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """TinyFace."""
    return Findings(outcomes=[tinyface.run(embed, Path(options.root), options.limit)])


def run_folder(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """Identification on a private folder."""
    outcome = folder.run(
        embed,
        Path(options.root),
        gallery_images=options.gallery_images,
        unknown_share=options.unknown_share,
        degrade=None if options.degrade == "none" else options.degrade,
        degraded_part=options.degraded_part,
        strength=options.strength,
        seed=options.seed,
        limit=options.limit or None,
    )
    return Findings(outcomes=[outcome], degraded=_samples(options) if options.degrade != "none" else None)


def _samples(options: argparse.Namespace) -> DegradedImages:
    images = open_identity_folder(Path(options.root), options.limit or None).images
    return DegradedImages(images, options.seed, options.strength)


def run_comparison(options: argparse.Namespace, models: Sequence[CachedEmbedding]) -> Findings:
    """Several models on the same pairs, or on a private folder, clear and blurred."""
    named = dict(zip(model_names(options.compare), models, strict=True))
    if options.protocol == "pairs":
        far = options.target_far or FAR
        return Findings(comparison=compare_on_pairs(named, options.root, options.sets, far=far, limit=options.limit))
    comparison = compare_models(
        named,
        Path(options.root),
        gallery_images=options.gallery_images,
        unknown_share=options.unknown_share,
        strength=options.strength,
        seed=options.seed,
        limit=options.limit or None,
    )
    return Findings(comparison=comparison, degraded=_samples(options))


def run_paper(options: argparse.Namespace, embed: CachedEmbedding) -> Findings:
    """Everything that is found under the root, beside the published numbers."""
    root = Path(options.root)
    model = find_published(options.published, arch=embed.embedder.arch, file=Path(options.checkpoint).name)
    found = _found(root, options.sets)
    if not found:
        raise FileNotFoundError(
            f"nothing of the paper is in {root}: verification sets (lfw.bin, ... or converted ones), IJBB, IJBC or "
            "tinyface were expected"
        )
    sets = verification.run(embed, root, found["pairs"], options.limit) if "pairs" in found else []
    runs: dict[str, Callable[[], Outcome]] = {
        "ijbb": lambda: ijb.run(embed, root, "IJBB", pooling=options.pooling, limit=options.limit),
        "ijbc": lambda: ijb.run(embed, root, "IJBC", pooling=options.pooling, limit=options.limit),
        "tinyface": lambda: tinyface.run(embed, root, options.limit),
    }
    outcomes = [run() for name, run in runs.items() if name in found]
    comparisons = compare(model, dict(_measurements(sets, outcomes)))
    outside = [row.what for row in comparisons if row.inside is False]
    lines = [comparison_table(model, comparisons)]
    if outside:
        lines.append(f"outside the interval: {', '.join(outside)}")
    rejections, warnings = _rejections(sets)
    return Findings(sets, outcomes, lines, rejections=rejections, warnings=warnings, failed=bool(outside))


PROTOCOLS: dict[str, Callable[[argparse.Namespace, CachedEmbedding], Findings]] = {
    "pairs": run_pairs,
    "ijbb": run_ijbb,
    "ijbc": run_ijbc,
    "tinyface": run_tinyface,
    "folder": run_folder,
    "paper": run_paper,
}


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


def _threshold(sets: list[VerifiedSet], embed: CachedEmbedding, options: argparse.Namespace) -> list[str]:
    """Find the threshold for the wanted FAR on the pairs of all sets together; store it where asked for."""
    similarity = np.concatenate([verified.result.similarity for verified in sets])
    issame = np.concatenate([verified.result.issame for verified in sets])
    found = calibrate(similarity, issame, options.target_far)
    names = ", ".join(verified.result.name for verified in sets)
    low, high = (100 * end for end in found.far_interval)
    lines = [
        f"threshold for FAR {options.target_far:g}: cosine {found.threshold:.4f}, from {names}",
        f"  measured FAR {100 * found.far:.3f} % [{low:.3f}, {high:.3f}], TAR {100 * found.tar:.2f} %",
    ]
    if options.store_threshold:
        store_threshold(options.checkpoint, {"cosine": found.threshold, "sets": names, **found.as_dict()})
        lines.append(f"stored in {options.checkpoint}")
    return lines
