"""Findings of an audit: their kinds and levels."""

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        level: ``error`` (certain, and it breaks or harms training), ``warning`` (likely), ``note`` (information).
        title: title of its section in the report.
        advice: its effect on training, and what the cleaned index does about it.
    """

    level: str
    title: str
    advice: str


KINDS = {
    "unreadable image": Kind(
        ERROR, "Unreadable images", "Empty, truncated, or not an image. Training fails on them; the index drops them."
    ),
    "wrong size": Kind(
        ERROR, "Images of the wrong size", "Faces must be aligned to 112x112 px. Dropped; align them instead."
    ),
    "grey image": Kind(ERROR, "Gray images", "One channel instead of three; training fails on them. Dropped."),
    "skipped image": Kind(
        WARNING, "Images that are not read", "Their format, name or place keeps them out of training: see each one."
    ),
    "missing image": Kind(
        WARNING,
        "Fewer images than announced",
        "The file was cut off, or images were removed from it. Training uses the others; copy the file again if nobody "
        "removed them.",
    ),
    "empty identity": Kind(ERROR, "Identities without images", "Training fails on empty folders. Left out."),
    "label gap": Kind(
        ERROR, "Labels without images", "Training fails on the file; the index renumbers the classes."
    ),
    "damaged label": Kind(ERROR, "Damaged labels", "The record has no valid label; the index drops it."),
    "other label": Kind(
        ERROR,
        "Labels that contradict the identity records",
        "The label in the record is not that of the identity record, which training uses: one is wrong. Dropped.",
    ),
    "leaked image": Kind(
        ERROR,
        "Images of a test set",
        "The same image, possibly mirrored or re-encoded, is in a test set, so the test results would be too good. "
        "Dropped.",
    ),
    "duplicate across": Kind(
        ERROR,
        "Same image in two identities",
        "The same pixels in two identities: one label is wrong. "
        "Both images are dropped, or only the one whose label the model contradicts.",
    ),
    "near duplicate across": Kind(
        ERROR,
        "Nearly the same image in two identities",
        "The same image, mirrored, re-encoded or cropped, in two identities: one label is wrong. "
        "Both images are dropped, or only the one whose label the model contradicts.",
    ),
    "duplicate inside": Kind(
        WARNING, "Duplicates within an identity", "An image with exact copies is used several times. The first is kept."
    ),
    "near duplicate inside": Kind(
        NOTE,
        "Near duplicates within an identity",
        "The same image, mirrored, re-encoded or cropped, or another frame of a video. Kept.",
    ),
    "single image": Kind(
        WARNING, "Identities with a single image", "A single image gives no genuine pairs to learn from. Dropped."
    ),
    "red and blue swapped": Kind(
        WARNING, "Red and blue swapped", "Skin is blue, unlike in the rest of the data. Dropped, unless you fix them."
    ),
    "data set swapped": Kind(
        WARNING,
        "Red and blue swapped everywhere",
        "Skin is blue in most images: train (and audit) with --swap_color_channel.",
    ),
    "blank image": Kind(WARNING, "Blank images", "Almost no contrast: there is no face to learn from. Dropped."),
    "colourless image": Kind(NOTE, "Images without color", "Three equal channels, such as old photographs. Kept."),
    "mislabelled": Kind(
        WARNING,
        "Likely another identity",
        "According to the model, far from their identity and close to another one. The index assigns them to that one.",
    ),
    "outlier": Kind(
        NOTE,
        "Unlike their identity",
        "According to the model, far from their identity and from all others. Kept; check them.",
    ),
    "merge": Kind(
        WARNING,
        "Likely one person in two identities",
        "According to the model, as similar as two halves of one identity. The index merges them into the larger one.",
    ),
    "split": Kind(
        WARNING,
        "Likely two people in one identity",
        "According to the model, two clusters as different as two people. The images of the smaller one are dropped.",
    ),
    "leaked identity": Kind(
        WARNING,
        "Identities of a test set",
        "According to the model, the same person as in a test set. Dropped, so that the test uses unseen people.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: a key of ``KINDS``.
        identity: name of the affected class; empty if there is none.
        text: description.
        samples: indices of the affected samples, the most important first; may be empty.
        other: index of the sample that they were compared with; -1 if none.
        test_image: name of a test set and index of the image that they were compared with; None if none.
        target: class that the samples likely belong to; -1 if none.
        value: measured value, such as a cosine or a fraction; NaN if none.
    """

    kind: str
    identity: str
    text: str
    samples: tuple[int, ...] = ()
    other: int = -1
    test_image: tuple[str, int] | None = None
    target: int = -1
    value: float = float("nan")

    @property
    def level(self) -> str:
        """Level of its kind."""
        return KINDS[self.kind].level
