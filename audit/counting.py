"""What listing and decoding alone tell: flaws of folders and labels, images that cannot be trained on, lone ones."""

from collections.abc import Iterator

import numpy as np

from audit.audited_images import AuditedData
from audit.finding import Finding
from audit.scan import GOOD, GREY, UNREADABLE, WRONG_SIZE, states, why_unreadable
from images import IMAGE_SHAPE

_LEAST_CONTRAST = 4.0  # of 255; the flattest of 4,527 LFW faces has 13


def counted_findings(data: AuditedData, table: np.ndarray) -> Iterator[Finding]:
    """Find flaws of the listing, images that training refuses, blank ones, and identities of one image.

    Args:
        data: the images.
        table: (N,) of ``scan.ROW``.
    """
    for flaw in data.flaws:
        yield Finding(flaw.kind, flaw.identity, flaw.text)
    for sample in states(table, UNREADABLE).tolist():
        yield Finding("unreadable image", data.identity(sample), why_unreadable(data, sample), samples=(sample,))
    side = IMAGE_SHAPE[0]
    for sample in states(table, WRONG_SIZE).tolist():
        text = f"{table['width'][sample]}x{table['height'][sample]} px, expected {side}x{side}"
        yield Finding("wrong size", data.identity(sample), text, samples=(sample,))
    for sample in states(table, GREY).tolist():
        yield Finding("grey image", data.identity(sample), "not three channels", samples=(sample,))
    good = states(table, GOOD)
    for sample in good[table["contrast"][good] < _LEAST_CONTRAST].tolist():
        text = f"standard deviation {table['contrast'][sample]:.1f} of 255"
        yield Finding("blank image", data.identity(sample), text, samples=(sample,))
    counts = np.bincount(data.labels, minlength=len(data.source.class_names))
    usable = np.bincount(data.labels[good], minlength=len(counts))
    for sample in good[usable[data.labels[good]] == 1].tolist():
        among = int(counts[data.labels[sample]])
        text = "its only image" if among == 1 else f"of its {among} images the only one that can be used"
        yield Finding("single image", data.identity(sample), text, samples=(sample,))
