"""Create the cleaned index from findings: images to drop, and images to train with another label."""

from collections.abc import Sequence

import numpy as np

from adaface.audit.finding import Finding
from adaface.audit.images import AuditedData
from adaface.data.sources.cleaned_index import TrainingIndex

# in this order: of several findings, the first one gives the reason
_DROPPED = (
    "unreadable image",
    "wrong size",
    "grey image",
    "other label",
    "blank image",
    "leaked image",
    "leaked identity",
    "duplicate inside",
    "red and blue swapped",
    "split",
)
_BOTH_DROPPED = ("duplicate across", "near duplicate across")
_FEWEST_IMAGES = 2


def cleaned_index(data: AuditedData, findings: Sequence[Finding]) -> TrainingIndex:
    """Decide which images to train on.

    Images that are certainly or likely wrong are dropped. Of duplicates within an identity, the first is kept; of
    duplicates in two identities, both are dropped, or only the one whose label the model contradicts. Images that
    likely belong to another identity get its label. Two identities that are likely one person are merged into the
    larger one. Identities with fewer than two remaining images are dropped.

    Args:
        data: training data.
        findings: all findings.
    """
    classes = np.array(data.labels, np.int32)
    reasons: dict[int, str] = {}

    def drop(sample: int, why: str) -> None:
        if classes[sample] >= 0:
            classes[sample] = -1
            reasons[sample] = why

    for kind in _DROPPED:
        for finding in (one for one in findings if one.kind == kind):
            for sample in finding.samples:
                drop(sample, f"{kind}: {finding.text}")
    doubted = {finding.samples[0] for finding in findings if finding.kind == "mislabelled"}
    for finding in (one for one in findings if one.kind in _BOTH_DROPPED):
        both = {finding.samples[0], finding.other}
        for sample in both if len(both & doubted) != 1 else both & doubted:
            (other,) = both - {sample}
            drop(sample, f"{finding.kind}: {data.source.describe(other)}")
    _move(data, findings, classes, reasons)
    counts = np.bincount(classes[classes >= 0], minlength=len(data.source.class_names))
    for sample in np.flatnonzero((classes >= 0) & (counts[classes] < _FEWEST_IMAGES)).tolist():
        drop(sample, "the only image left of its identity")
    return TrainingIndex(classes, reasons)


def _move(data: AuditedData, findings: Sequence[Finding], classes: np.ndarray, reasons: dict[int, str]) -> None:
    """Change the labels of mislabeled images and merged identities, in place."""
    names = data.source.class_names
    for finding in (one for one in findings if one.kind == "mislabelled"):
        for sample in finding.samples:
            if classes[sample] >= 0:
                classes[sample] = finding.target
                reasons[sample] = f"mislabelled: {finding.text}"
    merged = {_class_of(finding, data): finding.target for finding in findings if finding.kind == "merge"}
    for label in sorted(merged):
        target = label
        while target in merged:  # terminates, because identities are only merged into larger ones
            target = merged[target]
        for sample in np.flatnonzero(classes == label).tolist():
            classes[sample] = target
            reasons[sample] = f"merge: likely the same person as {names[target]}"


def _class_of(finding: Finding, data: AuditedData) -> int:
    """Return the class of a finding that concerns a whole identity."""
    return int(data.labels[finding.samples[0]])
