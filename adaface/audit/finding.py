"""What an audit finds: kinds, how bad each is, and one finding."""

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        level: ``error`` (certain, and it stops or spoils a training), ``warning`` (likely), ``note`` (to be known).
        title: of its section, for people.
        advice: what it does to a training, and what a cleaned index does about it.
    """

    level: str
    title: str
    advice: str


KINDS = {
    "unreadable image": Kind(
        ERROR, "Unreadable images", "Empty, cut off, or no image at all. Training stops at them; the index drops them."
    ),
    "wrong size": Kind(
        ERROR, "Images of another size", "Faces have to be aligned to 112x112 px. Dropped; align them instead."
    ),
    "grey image": Kind(ERROR, "Grey images", "One channel instead of three; training refuses them. Dropped."),
    "empty identity": Kind(ERROR, "Identities without images", "Training refuses the folder. Left out."),
    "label gap": Kind(
        ERROR, "Labels without images", "Training refuses the file; with the index classes are numbered anew."
    ),
    "damaged label": Kind(ERROR, "Damaged labels", "The record says no identity; the index leaves it out."),
    "leaked image": Kind(
        ERROR,
        "Images of a test set",
        "The same picture, perhaps mirrored or encoded anew, is in a test set: its result would be too good. Dropped.",
    ),
    "duplicate across": Kind(
        ERROR,
        "One image, two identities",
        "The very same pixels under two names: one label is wrong. "
        "Both are dropped, or the one that a model doubts.",
    ),
    "near duplicate across": Kind(
        ERROR,
        "Nearly one image, two identities",
        "The same picture, mirrored, encoded or cropped anew, under two names: one label is wrong. "
        "Both are dropped, or the one that a model doubts.",
    ),
    "duplicate inside": Kind(
        WARNING, "Copies inside an identity", "The very same pixels again: they count double. The first one is kept."
    ),
    "near duplicate inside": Kind(
        NOTE,
        "Near copies inside an identity",
        "The same picture, mirrored, encoded or cropped anew, or the next frame of a film. Kept.",
    ),
    "single image": Kind(
        WARNING, "Identities of one image", "There is nothing that it could be pulled together with. Dropped."
    ),
    "red and blue swapped": Kind(
        WARNING, "Red and blue swapped", "Skin is blue, unlike in the rest of the data. Dropped; or repair the files."
    ),
    "data set swapped": Kind(
        WARNING,
        "Red and blue swapped everywhere",
        "Skin is blue in most images: train (and audit) with --swap_color_channel.",
    ),
    "blank image": Kind(WARNING, "Blank images", "Next to no contrast: there is no face to learn from. Dropped."),
    "colourless image": Kind(NOTE, "Images without colour", "Three equal channels, as of old photographs. Kept."),
    "mislabelled": Kind(
        WARNING,
        "Likely of another identity",
        "To the model it is far from its own identity and close to another. The index trains it as that one.",
    ),
    "outlier": Kind(
        NOTE, "Unlike their identity", "To the model far from its own identity, and from all others. Kept: look."
    ),
    "merge": Kind(
        WARNING,
        "Likely one person in two identities",
        "To the model as alike as two halves of one identity. The index trains both as the larger one.",
    ),
    "split": Kind(
        WARNING,
        "Likely two people in one identity",
        "To the model two clusters as unlike as two people. The images of the smaller one are dropped.",
    ),
    "leaked identity": Kind(
        WARNING,
        "People of a test set",
        "To the model someone in the test set. Dropped, for a test on people never seen.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: of ``KINDS``.
        identity: name of the class it is about; empty where it is about none.
        text: what was found, for people.
        samples: of the data, those it is about, the first one foremost; empty where there is no image.
        other: a sample that it is compared with; -1 without one.
        test_image: name of the test set, and number of its image, that it is compared with; None without one.
        target: class of the data that the samples rather belong to; -1 without one.
        value: what was measured (a cosine, a share), NaN where nothing was.
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
        """How bad it is."""
        return KINDS[self.kind].level
