"""Run an audit: list, scan and compare the images, write the report and the cleaned index.

Results of the long passes are cached in `<output>/cache` and reused by a resumed audit, or by one with another test set
or model. If the data changes, the audit starts over.
"""

import hashlib
import logging
import platform
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from adaface.audit.cleaning import cleaned_index
from adaface.audit.colors import color_findings
from adaface.audit.duplicates import Scanned, duplicate_findings
from adaface.audit.finding import ERROR, KINDS, NOTE, WARNING, Finding
from adaface.audit.images import AuditedData, TestImages, image_folders, open_audited_data, open_test_sets
from adaface.audit.model_pass import model_findings
from adaface.audit.report import CSV, HTML, JSON, counts_of, in_order_of_level, write_csv, write_html, write_json
from adaface.audit.scan import GOOD, counted_findings, open_table, scan, states, usual_of
from adaface.data.sources.cleaned_index import write_index
from adaface.data.sources.finder import folder_sources
from adaface.metrics.outcome import EmbedImages
from adaface.system.command_line import DONE_WITH_PROBLEMS, counted, invocation
from adaface.system.files import make_writable_folder
from adaface.system.locks import locked
from adaface.system.quiet import quiet_error_output
from adaface.system.text_table import aligned
from adaface.system.threads import usable_cores

logger = logging.getLogger(__name__)

INDEX = "cleaned_index.csv"
_CACHE, _LOCK = "cache", ".lock"
_FORM = 1  # version of the cache; increase it when the meaning of a row changes
_KEY_LETTERS = 24
_FEWEST_IDENTITIES = 2


@dataclass(frozen=True)
class AuditOptions:
    """Options of an audit.

    Attributes:
        data: path of the data, or several paths separated by commas.
        test_sets: paths separated by commas; empty for none.
        output: output folder; empty: next to the data.
        apply: also write the cleaned index.
        swapped: the red and blue channels of all images on disk are swapped.
        threads: number of threads; 0: one per core.
        overwrite: check all images again.
    """

    data: str
    test_sets: str = ""
    output: str = ""
    apply: bool = False
    swapped: bool = False
    threads: int = 0
    overwrite: bool = False


class LoadEmbed(Protocol):
    """Loads a model."""

    def __call__(self, folder: Path) -> tuple[EmbedImages, str]:
        """Return a function that embeds images and caches embeddings in the folder, and a description of the model."""


def audit(options: AuditOptions, load_embed: LoadEmbed | None = None) -> int:
    """Audit a data set, write the report, and log a summary.

    Args:
        options: options of the audit.
        load_embed: loads a model; None for an audit without one.

    Returns:
        Exit status: 0 if there are no findings except notes, otherwise 1.

    Raises:
        FileNotFoundError: data or test sets do not exist.
        ValueError: data or test sets cannot be listed, or the output folder is not suitable.
        OSError: the output folder is not writable.
        RuntimeError: another audit is writing to the same folder.
    """
    began = time.monotonic()
    threads = options.threads or usable_cores()
    data = open_audited_data(options.data, swapped=options.swapped)
    tests = _named(open_test_sets(options.test_sets)) if options.test_sets else {}
    output = _output_folder(options, data, tests.values())
    model = load_embed(output / _CACHE) if load_embed else None
    logger.info(
        f"{data.source.location}: {counted(len(data), 'image', 'images')} of "
        f"{counted(len(data.source.class_names), 'identity', 'identities')}"
    )
    busy = f"another audit is writing to {output}; wait for it, stop it, or give another --output"
    with locked(output / _CACHE / _LOCK, busy):
        notes = [folder.note for folder in folder_sources(data.source) if folder.note]
        notes += [] if tests else ["Images were not compared with test sets, because none were given (--test_sets)."]
        with quiet_error_output():
            table, scanned = _scan_all(options, data, tests, output / _CACHE, threads)
            found = _findings_without_model(data, table, scanned, threads)
        if model is not None:
            more, model_notes = model_findings(data, table, model[0], scanned)
            found, notes = found + more, notes + model_notes
        findings = in_order_of_level(found)
        if any(finding.kind == "wrong size" for finding in findings):
            notes.append(
                f"{invocation('align')} <PHOTOGRAPHS> <FACES> aligns photographs to the size of training images."
            )
        with quiet_error_output():
            _report(data, findings, tests, output, model[1] if model else "", notes)
        logger.info(f"{output / HTML}, {output / CSV}: {time.monotonic() - began:.1f} s")
        if options.apply:
            _apply(options, data, findings, output / INDEX)
    return DONE_WITH_PROBLEMS if any(finding.level != NOTE for finding in findings) else 0


def _scan_all(
    options: AuditOptions, data: AuditedData, tests: dict[str, TestImages], cache: Path, threads: int
) -> tuple[np.ndarray, list[Scanned]]:
    """Return the rows of the data, and the test sets with their rows."""
    path = _table_path(cache, data, options.overwrite)
    usual = usual_of(data, threads=threads)
    table = scan(data, usual, threads=threads, table=open_table(path, len(data)), swapped=data.swapped)
    scanned: list[Scanned] = [(images, scan(images, usual, threads=threads)) for images in tests.values()]
    for images, rows in scanned:
        if not len(states(rows, GOOD)):
            raise ValueError(f"--test_sets: no image of {images.name} is a color image of 112x112 px")
    return table, scanned


def _findings_without_model(
    data: AuditedData, table: np.ndarray, scanned: list[Scanned], threads: int
) -> list[Finding]:
    """Return all findings that need no model."""
    return [
        *counted_findings(data, table),
        *color_findings(data, table, states(table, GOOD)),
        *duplicate_findings(data, table, scanned, threads=threads),
    ]


def _named(sets: Sequence[TestImages]) -> dict[str, TestImages]:
    """Return test sets by name; a number is added to names that occur again."""
    named: dict[str, TestImages] = {}
    for images in sets:
        name, number = images.name, 2
        while name in named:
            name, number = f"{images.name} ({number})", number + 1
        named[name] = replace(images, name=name)
    return named


def _output_folder(options: AuditOptions, data: AuditedData, tests: Iterable[TestImages]) -> Path:
    """Return the output folder; create it if it does not exist."""
    first = Path(options.data if Path(options.data).exists() else options.data.split(",")[0].strip()).resolve()
    output = Path(options.output) if options.output else first.with_name(f"{first.name}_audit")
    for folder in (*image_folders(data.source), *(images.folder for images in tests if images.folder is not None)):
        if output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--output {output} is inside the image folder {folder}, where it would be taken for an identity: give "
                "another folder"
            )
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, expected a folder")
    if output.is_dir() and not (output / _CACHE).is_dir() and any(output.iterdir()):
        raise ValueError(f"--output {output} contains files that are not from an audit: give a new or an empty folder")
    make_writable_folder(output, "--output")
    (output / _CACHE).mkdir(exist_ok=True)
    return output


def _table_path(cache: Path, data: AuditedData, overwrite: bool) -> Path:
    """Return the file with the rows of this data; delete those of earlier states of the data."""
    key = hashlib.sha256(f"{_FORM} {data.fingerprint()}".encode()).hexdigest()[:_KEY_LETTERS]
    path = cache / f"scan-{key}.npy"
    for old in cache.glob("scan-*.npy"):
        if old != path or overwrite:
            old.unlink()
    return path


def _report(
    data: AuditedData,
    findings: list[Finding],
    tests: dict[str, TestImages],
    output: Path,
    model: str,
    notes: list[str],
) -> None:
    """Write the three files and log a summary."""
    counts = counts_of(findings)
    by_level = {
        level: sum(count for kind, count in counts.items() if KINDS[kind].level == level)
        for level in (ERROR, WARNING, NOTE)
    }
    write_csv(output / CSV, data, findings, tests)
    facts = [("images", f"{len(data):,}"), ("identities", f"{len(data.source.class_names):,}")]
    facts += [(f"{level}s", f"{count:,}") for level, count in by_level.items()]
    facts += [("test sets", ", ".join(tests))] if tests else []
    facts += [("model", model)] if model else []
    write_html(output / HTML, data, findings, tests, facts=facts, notes=notes)
    summary = {
        "data": data.source.location,
        "images": len(data),
        "identities": len(data.source.class_names),
        "findings": counts,
        "levels": by_level,
        "test_sets": {name: len(images) for name, images in tests.items()},
        "model": model,
        "notes": notes,
        "swap_color_channel": data.swapped,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    write_json(output / JSON, summary)
    titles = ((KINDS[kind].level, f"{count:,}", KINDS[kind].title) for kind, count in counts.items())
    for line in aligned(([level, count, title[0].lower() + title[1:]] for level, count, title in titles), "<><"):
        logger.info(line)
    if not findings:
        logger.info("no problems found")
    for note in notes:
        logger.info(f"note: {note}")


def _apply(options: AuditOptions, data: AuditedData, findings: list[Finding], path: Path) -> None:
    """Write the cleaned index, and log the command that trains with it."""
    index = cleaned_index(data, findings)
    write_index(path, data.source, index)
    moved = int(((index.classes >= 0) & (index.classes != data.labels)).sum())
    left = len(np.unique(index.classes[index.classes >= 0]))
    logger.info(
        f"{path}: {index.used:,} of {len(data):,} images, of {left:,} identities, are used, {moved:,} of them with "
        "another label; no file was deleted"
    )
    if left < _FEWEST_IDENTITIES:
        logger.info(f"this is not enough for training: at least {_FEWEST_IDENTITIES} identities are needed")
        return
    first = Path(options.data).resolve()
    place = f"--data_root {shlex.quote(str(first.parent))} --train_data_path {shlex.quote(first.name)}"
    if not first.exists():
        place = f"--train_data_path {shlex.quote(options.data)}"
    logger.info(f"next: {invocation('train')} {place} --train_data_index {shlex.quote(str(path))} ...")
