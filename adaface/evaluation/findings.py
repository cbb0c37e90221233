"""Results of an evaluation command: printed, and written as tables, curves and a report to a folder."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from adaface.checkpoints.run_folder import MANIFEST, describe_environment
from adaface.data.pair_sets import one_kind_warnings
from adaface.evaluation.degradation import DegradedImages, draw_samples
from adaface.evaluation.model_comparison import (
    ModelComparison,
    comparison_table,
    comparison_text,
    write_comparison,
)
from adaface.evaluation.verification import VerifiedSet
from adaface.metrics.outcome import Outcome, outcome_lines
from adaface.metrics.results import results_table, write_results
from adaface.reporting.curves import plot_roc, plot_similarity_histograms
from adaface.reporting.hardest_pairs import HardestPairs, hardest_pairs
from adaface.reporting.quality import RejectCurve
from adaface.reporting.report import ReportContent, write_report
from adaface.reporting.tables import ReportTable
from adaface.system.csv_text import SafeWriter
from adaface.system.files import write_atomically

REPORT = "report.html"
_PAIRS_OF_A_SET = 8  # of each kind, shown as images


@dataclass(frozen=True)
class Findings:
    """Results of an evaluation.

    Attributes:
        sets: results on verification sets.
        outcomes: results of other protocols.
        lines: further lines of text.
        tables: tables of the report, besides those of sets and outcomes.
        rejections: error-versus-reject curves by name of the set.
        warnings: important remarks.
        hardest: pairs to show as images, besides those of the sets.
        comparison: comparison of several models.
        degraded: degraded images; samples are plotted at several strengths.
        failed: whether a check failed.
    """

    sets: Sequence[VerifiedSet] = ()
    outcomes: Sequence[Outcome] = ()
    lines: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    rejections: Mapping[str, RejectCurve] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    hardest: Sequence[HardestPairs] = ()
    comparison: ModelComparison | None = None
    degraded: DegradedImages | None = None
    failed: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, for the report and the manifest.

    Attributes:
        title: title of the report.
        model: model file and its description.
        options: options of the command line.
        command: the command line.
    """

    title: str
    model: str
    options: Mapping[str, Any]
    command: str
    started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    def manifest(self) -> dict[str, Any]:
        """Return the information to reproduce the evaluation, as plain values."""
        return {"started": self.started, "command": self.command, "model": self.model, **describe_environment()}


def text_of(findings: Findings) -> str:
    """Format results as text for the screen."""
    parts = []
    if findings.sets:
        parts.append(results_table([verified.result for verified in findings.sets]))
    parts += ["\n".join(outcome_lines(outcome)) for outcome in findings.outcomes]
    parts += [comparison_text(findings.comparison)] if findings.comparison else []
    parts += ["\n".join(findings.lines)] if findings.lines else []
    parts += [f"warning: {warning}" for warning in findings.warnings]
    return "\n\n".join(parts)


def write_findings(folder: Path, findings: Findings, evaluated: Evaluated, *, report: bool) -> None:
    """Write results to a folder.

    Args:
        folder: existing folder.
        findings: results to write; absent ones have no files.
        evaluated: what was evaluated.
        report: write ``report.html`` too.

    Raises:
        OSError: a file cannot be written.
    """
    write_atomically(folder / MANIFEST, _as_json({**evaluated.manifest(), "options": dict(evaluated.options)}))
    results = [verified.result for verified in findings.sets]
    if results:
        write_results(folder, results)
        plot_roc(results, folder / "roc.png")
        plot_similarity_histograms(results, folder / "similarity.png")
    if findings.comparison:
        write_comparison(findings.comparison, folder)
    if findings.degraded:
        draw_samples(findings.degraded.images, folder / "degraded.png", seed=findings.degraded.seed)
    if findings.outcomes:
        content = [outcome.as_dict() for outcome in findings.outcomes]
        write_atomically(folder / "outcomes.json", _as_json({"unit": "percent", "outcomes": content}))
        write_atomically(folder / "outcomes.csv", _as_csv(findings.outcomes))
    if report:
        write_report(folder / REPORT, _report(findings, evaluated))


def _report(findings: Findings, evaluated: Evaluated) -> ReportContent:
    results = [verified.result for verified in findings.sets]
    outcomes = list(findings.outcomes)
    if findings.comparison:
        outcomes += [
            replace(outcome, data=f"{model}: {outcome.data}")
            for (model, _), outcome in findings.comparison.outcomes.items()
        ]
    return ReportContent(
        title=evaluated.title,
        date=evaluated.started,
        evaluated=evaluated.model,
        sets=results,
        outcomes=outcomes,
        comparison=comparison_table(findings.comparison) if findings.comparison else None,
        tables=findings.tables,
        rejections=findings.rejections,
        norms={verified.result.name: np.unique(verified.norms) for verified in findings.sets},
        hardest=[
            *findings.hardest,
            *(
                hardest_pairs(
                    verified.images,
                    verified.result.similarity,
                    verified.result.issame,
                    _PAIRS_OF_A_SET,
                    places=verified.places,
                    norms=verified.norms,
                    threshold=verified.result.cosine_threshold,
                )
                for verified in findings.sets
            ),
        ],
        options=evaluated.options,
        manifest=evaluated.manifest(),
        warnings=[*findings.warnings, *one_kind_warnings({one.name: one.issame for one in results})],
    )


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _as_csv(outcomes: Sequence[Outcome]) -> str:
    text = io.StringIO()
    writer = SafeWriter(text)
    writer.writerow(["protocol", "data", "number", "value", "low", "high"])
    for outcome in outcomes:
        for name, value in outcome.numbers.items():
            low, high = outcome.intervals.get(name, ("", ""))
            writer.writerow([outcome.protocol, outcome.data, name, "" if np.isnan(value) else value, low, high])
    return text.getvalue()
