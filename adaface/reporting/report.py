"""The report: all results of a model or a training run as one self-contained HTML file.

Styles, curves (SVG) and images (data URIs) are embedded; there are no scripts and no external resources. Names and
notes come from the data and are escaped. Sections without content are left out. The layout is in ``report.html.j2``.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaface.metrics.outcome import Outcome
from adaface.metrics.results import SetResult
from adaface.reporting.curves import ScoredPairs
from adaface.reporting.hardest_pairs import HardestPairs, HardPair
from adaface.reporting.page import page_template
from adaface.reporting.panels import quality_panels, score_panels, similarity_panels, training_panels
from adaface.reporting.quality import RejectCurve
from adaface.reporting.svg import COLOR_NAMES
from adaface.reporting.tables import (
    ReportTable,
    interval_text,
    mean_of,
    outcome_table,
    verification_table,
)
from adaface.system.command_line import counted
from adaface.system.files import write_atomically

_TEMPLATE = "report.html.j2"
_MOST_PICTURE_BYTES = 1_500_000  # base64 adds a third
_HEADINGS = {
    "comparison": "Comparison",
    "verification": "Verification",
    "protocols": "Protocols",
    "curves": "Error rates",
    "similarities": "Similarity of pairs",
    "quality": "Image quality",
    "training": "Training",
    "pairs": "The hardest pairs",
    "options": "Options",
    "manifest": "Environment",
}


@dataclass(frozen=True)
class ReportContent:
    """Content of a report; everything but the title is optional.

    Attributes:
        title: name of the run or of the model.
        date: date of the run, as text.
        evaluated: what was evaluated, such as the checkpoint.
        sets: results of verification sets; curves need the similarities of their pairs.
        outcomes: results of other protocols; those with pairs have curves too.
        comparison: comparison of several models, shown first.
        tables: further tables, such as the comparison with published numbers.
        metrics: metrics of a training run, as returned by ``reporting.training.read_metrics``.
        rejections: error-versus-reject curves, by name of the set.
        norms: feature norms by name of the set, of any shape, in addition to those of the outcomes.
        hardest: hardest pairs of each set, to show as images.
        options: options of the run, by name.
        manifest: versions, command and the like; mappings may be nested.
        notes: remarks.
        warnings: important remarks, such as a feature norm that contradicts image quality.
    """

    title: str
    date: str = ""
    evaluated: str = ""
    sets: Sequence[SetResult] = ()
    outcomes: Sequence[Outcome] = ()
    comparison: ReportTable | None = None
    tables: Sequence[ReportTable] = ()
    metrics: pd.DataFrame | None = None
    rejections: Mapping[str, RejectCurve] = field(default_factory=dict)
    norms: Mapping[str, np.ndarray] = field(default_factory=dict)
    hardest: Sequence[HardestPairs] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass
class _ScoredOutcome:
    """The pairs of an outcome, as ``ScoredPairs``."""

    name: str
    similarity: np.ndarray
    issame: np.ndarray
    accuracy: float = math.nan
    cosine_threshold: float = math.nan


@dataclass(frozen=True)
class _Tile:
    """A number at the top of the report."""

    name: str
    value: str
    more: str = ""


def write_report(path: str | Path, content: ReportContent) -> None:
    """Write a report atomically.

    Args:
        path: HTML file to write.
        content: content of the report.

    Raises:
        OSError: it cannot be written; an existing file is left unchanged.
    """
    scored = _scored_pairs(content)
    among = [pairs.name for pairs in scored]
    norms = {outcome.data: outcome.norms for outcome in content.outcomes} | dict(content.norms)
    parts: dict[str, Any] = {
        "comparison": content.comparison,
        "verification": verification_table(content.sets) if content.sets else None,
        "protocols": [*map(outcome_table, content.outcomes), *content.tables],
        "curves": score_panels(scored),
        "similarities": similarity_panels(scored),
        "quality": quality_panels(content.rejections, norms, among),
        "training": [] if content.metrics is None else training_panels(content.metrics, among),
        "pairs": _shown_pairs(content.hardest),
        "options": _facts(content.options),
        "manifest": _facts(content.manifest),
    }
    page = page_template(Path(__file__).with_name(_TEMPLATE)).render(
        title=content.title,
        lead=" · ".join(part for part in (content.evaluated, content.date) if part),
        tiles=_tiles(content),
        warnings=content.warnings,
        notes=content.notes,
        sections=[(identifier, heading) for identifier, heading in _HEADINGS.items() if parts[identifier]],
        colors=list(COLOR_NAMES.values()),
        **parts,
    )
    write_atomically(path, page + "\n")


def _scored_pairs(content: ReportContent) -> list[ScoredPairs]:
    """Return everything that has pairs with scores; the first one of each name."""
    outcomes = [
        _ScoredOutcome(outcome.data, outcome.similarity, outcome.issame)
        for outcome in content.outcomes
        if len(outcome.similarity)
    ]
    scored: dict[str, ScoredPairs] = {}
    everything: list[ScoredPairs] = [*content.sets, *outcomes]
    for pairs in everything:
        scored.setdefault(pairs.name, pairs)
    return list(scored.values())


def _tiles(content: ReportContent) -> list[_Tile]:
    """Return the numbers at the top: mean accuracy, the first number of each protocol, and the training."""
    tiles = []
    if content.sets:
        pairs = sum(result.pairs for result in content.sets)
        mean = mean_of([result.accuracy for result in content.sets])
        sets = f"{len(content.sets)} sets" if len(content.sets) > 1 else content.sets[0].name
        if not math.isnan(mean):
            name = "Mean accuracy" if len(content.sets) > 1 else "Accuracy"
            ends = content.sets[0].intervals.get("accuracy") if len(content.sets) == 1 else None
            tiles.append(_Tile(name, f"{mean:.2f} %", interval_text(ends) or f"{sets}, {pairs:,} pairs"))
    for outcome in content.outcomes:
        for name, value in list(outcome.numbers.items())[:1]:
            if not math.isnan(value):
                ends = outcome.intervals.get(name)
                tiles.append(_Tile(f"{outcome.data}: {name}", f"{value:.2f}", interval_text(ends)))
    table = content.metrics
    if table is not None and "val_acc" in table and table["val_acc"].notna().any():
        best = table.iloc[int(np.nanargmax(table["val_acc"]))]
        tiles.append(_Tile("Best validation", f"{best['val_acc']:.2f} %", f"in epoch {int(best['epoch']) + 1}"))
    if table is not None and not table.empty:
        steps, epochs = int(table["step"].max()) + 1, counted(int(table["epoch"].max()) + 1, "epoch", "epochs")
        tiles.append(_Tile("Trained", epochs, counted(steps, "step", "steps")))
    return tiles


def _shown_pairs(hardest: Sequence[HardestPairs]) -> list[dict[str, Any]]:
    """Return the pairs for the template: the hardest of every set first, up to the size limit of the file."""
    lists = [pairs for of_set in hardest for pairs in (of_set.genuine, of_set.impostors)]
    in_turn = sorted((rank, place) for place, pairs in enumerate(lists) for rank in range(len(pairs)))
    left, shown = _MOST_PICTURE_BYTES, [0] * len(lists)
    for rank, place in in_turn:
        left -= sum(len(picture or b"") for picture in lists[place][rank].pictures)
        if left < 0:
            break
        shown[place] = rank + 1
    return [
        {
            "name": of_set.name,
            "heading": of_set.heading or "Impostor pairs, most similar",
            "genuine": [_shown_pair(pair, pair.similarity <= of_set.threshold, "wrongly rejected")
                        for pair in of_set.genuine[:genuine]],
            "impostors": [_shown_pair(pair, pair.similarity > of_set.threshold, "wrongly accepted")
                          for pair in of_set.impostors[:impostors]],
        }
        for of_set, genuine, impostors in zip(hardest, shown[0::2], shown[1::2], strict=True)
        if genuine or impostors
    ]  # fmt: skip


def _shown_pair(pair: HardPair, is_wrong: bool, verdict: str) -> dict[str, Any]:
    return {
        "number": f"{pair.index + 1:,}",
        "similarity": f"{pair.similarity:.3f}",
        "pictures": [picture and _data_uri(picture) for picture in pair.pictures],
        "norms": "" if pair.norms is None else f"{pair.norms[0]:.1f} and {pair.norms[1]:.1f}",
        "verdict": verdict if is_wrong else "",
        "text": pair.text,
    }


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return names and values as text, with nested mappings flattened."""
    facts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{prefix}{name}: ")
        else:
            facts.append((f"{prefix}{name}", _as_text(value)))
    return facts


def _as_text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_as_text, value)) or "–"
    return str(value)
