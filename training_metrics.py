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
        One row for each logged step: ``step``, ``epoch``, and such of ``train_loss``, ``lr``, ``val_acc`` and
        ``<set>_acc`` (percent) as were logged, NaN elsewhere. Where a resumed run repeated steps, the later rows count.
        Empty where nothing was logged. The row that the test after the training adds is left out.

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
            table = _without_test_row(table)
    return table


def _without_test_row(table: pd.DataFrame) -> pd.DataFrame:
    """Drop a last row that tells of an epoch which has not begun: the test's.

    Lightning numbers it one epoch and one step beyond the training.
    """
    if len(table) < 2 or "val_acc" not in table:
        return table
    last, before = table.iloc[-1], table.iloc[:-1]
    of_test = np.isfinite(last["val_acc"]) and last["epoch"] > before["epoch"].max()
    return before if of_test and last["step"] == before["step"].max() + 1 else table


def _version_number(file: Path) -> int:
    found = re.fullmatch(r"version_(\d+)", file.parent.name)
    return int(found.group(1)) if found else -1
