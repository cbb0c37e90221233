"""The metrics that a run logged while training, read back from Lightning's CSV files."""

import re
from pathlib import Path

import numpy as np
import pandas as pd


def read_metrics(source: str | Path) -> pd.DataFrame:
    """Read the metrics that Lightning's CSV logger wrote, over all starts of a resumed run.

    Args:
        source: a ``metrics.csv``, or the folder of its ``version_<n>`` folders.

    Returns:
        One row for each logged step: ``step``, ``epoch``, and such of ``train_loss``, ``lr``, ``val_acc``,
        ``<set>_acc`` (percent) and the numbers of ``health.HealthMonitor`` as were logged, NaN elsewhere. Where a
        resumed run repeated steps, the later rows count.
        Empty where nothing was logged.

    Raises:
        ValueError: the file is no metrics table.
    """
    source = Path(source)
    files = [source] if source.is_file() else sorted(source.glob("version_*/metrics.csv"), key=_version_number)
    table = pd.DataFrame({"step": [], "epoch": []})
    for file in files:
        try:
            newer = pd.read_csv(file)
        except pd.errors.EmptyDataError:
            continue
        if not {"step", "epoch"} <= set(newer.columns):
            raise ValueError(f"{file} has the columns {list(newer.columns)}, expected `step` and `epoch` among them")
        newer = newer.dropna(subset=["step", "epoch"])
        if not newer.empty:
            table = pd.concat([table[table["step"] < newer["step"].min()], newer], ignore_index=True)
    return table


def logged_rows(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """Return the rows in which a metric has a finite value, the last one of each step or epoch.

    Args:
        table: of ``read_metrics``.
        column: the metric; where it was never logged there are no rows.
        by: ``step`` or ``epoch``.
    """
    if column not in table:
        return table.iloc[:0]
    return table[np.isfinite(table[column])].drop_duplicates(by, keep="last")


def _version_number(file: Path) -> int:
    found = re.fullmatch(r"version_(\d+)", file.parent.name)
    return int(found.group(1)) if found else -1
