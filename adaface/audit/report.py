"""The output of an audit: `audit.csv` with all findings, `audit.html` with images, `audit.json` with the counts.

The page is self-contained: images are data URIs, and there are no scripts. Names come from the data and are escaped.
Only the first findings of each kind are shown, up to a few megabytes in total.
"""

import base64
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adaface.audit.finding import KINDS, LEVELS, Finding
from adaface.audit.images import AuditedData, TestImages
from adaface.audit.scan import displayed
from adaface.reporting.page import page_template
from adaface.system.csv_text import SafeWriter
from adaface.system.files import atomic_file, write_atomically

CSV, HTML, JSON = "audit.csv", "audit.html", "audit.json"
COLUMNS = ("level", "kind", "identity", "sample", "image", "other_sample", "other_image", "rather", "value", "text")
_SHOWN_OF_KIND = 48
_SHOWN_OF_FINDING = 6
_SHOWN_OF_CLASS = 2
_MOST_PICTURE_BYTES = 4_000_000
_SIDE_PX = 112
_JPEG_QUALITY = 85
_LINES_AT_ONCE = 1 << 14


def in_order_of_level(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by level (the worst first), kind and sample."""
    place = {
        kind: number for number, kind in enumerate(sorted(KINDS, key=lambda kind: LEVELS.index(KINDS[kind].level)))
    }
    return sorted(findings, key=lambda one: (place[one.kind], one.samples[:1] or (-1,)))


def counts_of(findings: Sequence[Finding]) -> dict[str, int]:
    """Return the number of findings of each kind that occurs, the worst first."""
    counts: dict[str, int] = {}
    for finding in in_order_of_level(findings):
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return counts


def write_csv(path: Path, data: AuditedData, findings: Sequence[Finding], tests: Mapping[str, TestImages]) -> None:
    """Write one line for each image of each finding.

    Args:
        path: output file.
        data: training data.
        findings: findings in the order to write.
        tests: test sets by name.

    Raises:
        OSError: the file cannot be written; an existing file is then unchanged.
    """
    rows = (row for finding in findings for row in _rows(data, finding, tests))
    with atomic_file(path) as file:
        file.write(f"{','.join(COLUMNS)}\n".encode())
        while some := list(itertools.islice(rows, _LINES_AT_ONCE)):
            text = io.StringIO()
            SafeWriter(text).writerows(some)
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _rows(data: AuditedData, finding: Finding, tests: Mapping[str, TestImages]) -> Iterator[tuple[object, ...]]:
    other: tuple[object, str] = ("", "")
    if finding.other >= 0:
        other = (finding.other, data.source.describe(finding.other))
    if finding.test_image is not None:
        other = ("", tests[finding.test_image[0]].where(finding.test_image[1]))
    rather = data.source.class_names[finding.target] if finding.target >= 0 else ""
    value = "" if np.isnan(finding.value) else f"{finding.value:.4f}"
    text = " ".join(finding.text.split())
    for sample in finding.samples or (-1,):
        image = (sample, data.source.describe(sample)) if sample >= 0 else ("", "")
        yield finding.level, finding.kind, finding.identity, *image, *other, rather, value, text


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the summary of an audit, for other programs.

    Args:
        path: output file.
        facts: plain values.

    Raises:
        OSError: the file cannot be written; an existing file is then unchanged.
    """
    write_atomically(path, json.dumps(facts, indent=1) + "\n")


def write_html(
    path: Path,
    data: AuditedData,
    findings: Sequence[Finding],
    tests: Mapping[str, TestImages],
    *,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    """Write the HTML report.

    Args:
        path: output file.
        data: training data.
        findings: findings in the order to show.
        tests: test sets by name.
        facts: names and values for the head of the page.
        notes: notes on the audit.

    Raises:
        OSError: the file cannot be written; an existing file is then unchanged.
    """
    page = page_template(Path(__file__).with_name("audit.html.j2")).render(
        location=_printable(data.source.location),
        facts=[(name, _printable(value)) for name, value in facts],
        notes=[_printable(note) for note in notes],
        sections=_sections(data, findings, tests),
    )
    write_atomically(path, page + "\n")


def _sections(data: AuditedData, findings: Sequence[Finding], tests: Mapping[str, TestImages]) -> list[dict[str, Any]]:
    """Return the kinds with their first findings and their images, up to the size limit of the page."""
    by_kind = {kind: list(some) for kind, some in itertools.groupby(findings, key=lambda finding: finding.kind)}
    left = _MOST_PICTURE_BYTES
    sections: list[dict[str, Any]] = []
    for kind, some in by_kind.items():
        share, cards = left // (len(by_kind) - len(sections)), []
        for finding in some[:_SHOWN_OF_KIND]:
            card = _card(data, finding, tests)
            size = sum(len(uri) for uri, _ in card["pictures"])
            if size > share:
                break
            share, left = share - size, left - size
            cards.append(card)
        images = len({sample for finding in some for sample in finding.samples})
        sections.append(
            {
                "identifier": kind.replace(" ", "-"),
                "level": KINDS[kind].level,
                "title": KINDS[kind].title,
                "advice": KINDS[kind].advice,
                "count": len(some),
                "images": images,
                "cards": cards,
            }
        )
    return sections


def _card(data: AuditedData, finding: Finding, tests: Mapping[str, TestImages]) -> dict[str, Any]:
    pictures = [(_uri(data, sample), _place(data, sample)) for sample in finding.samples[:_SHOWN_OF_FINDING]]
    if finding.other >= 0:
        pictures.append((_uri(data, finding.other), _place(data, finding.other)))
    if finding.test_image is not None:
        images, number = tests[finding.test_image[0]], finding.test_image[1]
        pictures.append((_uri(images, number), f"{images.name}, image {number}"))
    if finding.target >= 0:
        shown = set(finding.samples)
        for label in (int(data.labels[finding.samples[0]]), finding.target):
            of_class = range(*np.searchsorted(data.labels, (label, label + 1)).tolist())
            some = itertools.islice((sample for sample in of_class if sample not in shown), _SHOWN_OF_CLASS)
            pictures += [(_uri(data, sample), f"of {data.source.class_names[label]}") for sample in some]
    return {
        "identity": _printable(finding.identity),
        "text": _printable(_without_location(finding.text, data.source.location)),
        "pictures": [(uri, _printable(place)) for uri, place in pictures],
        "more": max(0, len(finding.samples) - _SHOWN_OF_FINDING),
    }


def _without_location(text: str, location: str) -> str:
    """Return a text whose paths begin in the folder of the data."""
    return re.sub(rf"(?<![^\s(]){re.escape(location)}/", "", text)


def _place(data: AuditedData, sample: int) -> str:
    """Return the location of a sample, without the part that all samples have in common."""
    return data.source.describe(sample).removeprefix(data.source.location).lstrip("/, ")


def _printable(text: str) -> str:
    """Return a text that can be encoded as UTF-8; file names may contain other bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _uri(images: AuditedData | TestImages, index: int) -> str:
    """Return an image as a data URI; empty if it cannot be read."""
    picture = displayed(images, index)
    if picture is None:
        return ""
    scale = _SIDE_PX / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
