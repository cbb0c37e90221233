"""The report of a training run, from its run folder and its last test."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from adaface.checkpoints.run_folder import CONFIG, MANIFEST
from adaface.data.image_list import PairSetImages
from adaface.data.pair_sets import PairSet
from adaface.metrics.results import SetResult
from adaface.reporting.hardest_pairs import hardest_pairs
from adaface.reporting.report import ReportContent, write_report
from adaface.reporting.tables import ReportTable
from adaface.reporting.training import read_metrics
from adaface.system.json_file import read_object
from adaface.system.yaml_file import read_yaml

REPORT = "report.html"
_PAIRS_OF_A_SET = 8  # of each kind


def write_run_report(
    folder: Path,
    results: Sequence[SetResult],
    pair_sets: Mapping[str, PairSet],
    comparison: ReportTable | None = None,
    verdict: Sequence[str] = (),
    *,
    warnings: Sequence[str] = (),
) -> None:
    """Write ``report.html`` into a run folder.

    Args:
        folder: run folder with ``manifest.json``, ``config.yaml`` and, after a training, ``metrics/``.
        results: results of the last test, with the similarities of the pairs.
        pair_sets: verification sets by name, to show their hardest pairs.
        comparison: of a fine-tuned model with the pretrained one.
        verdict: its result in words, shown at the top.
        warnings: why numbers mean nothing, such as those of the data (``FaceDataModule.warnings``).

    Raises:
        OSError: it cannot be written.
    """
    manifest = read_object(folder / MANIFEST)
    options = read_yaml(folder / CONFIG)
    manifest.pop("config")
    earlier = [start.get("started") for start in manifest.pop("earlier_starts")]
    metrics = read_metrics(folder / "metrics")
    write_report(
        folder / REPORT,
        ReportContent(
            title=folder.name,
            date=f"started {datetime.fromisoformat(manifest['started']):%Y-%m-%d %H:%M}",
            evaluated=_evaluated(options),
            sets=results,
            comparison=comparison,
            notes=verdict,
            warnings=warnings,
            metrics=None if metrics.empty else metrics,
            hardest=[
                hardest_pairs(
                    PairSetImages(pair_sets[result.name], folder),
                    result.similarity,
                    result.issame,
                    _PAIRS_OF_A_SET,
                    # a trial run tests the first pairs alone
                    places=np.arange(2 * result.pairs).reshape(-1, 2),
                    threshold=result.cosine_threshold,
                )
                for result in results
                if result.name in pair_sets
            ],
            options=options,
            manifest={**manifest, "earlier starts": earlier},
        ),
    )


def _evaluated(options: Mapping[str, Any]) -> str:
    if options["evaluate"]:
        return f"{options['arch']} of {options['start_from_model_statedict']}"
    return f"{options['arch']} with {options['head']}, trained on {options['train_data_path']}"
