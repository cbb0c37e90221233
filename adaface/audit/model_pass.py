"""The second pass of an audit: embed the images of the data and of test sets with a model, and find wrong labels.

Embeddings are cached next to the report, so that an interrupted audit resumes where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.audit.duplicates import Scanned
from adaface.audit.finding import Finding
from adaface.audit.identities import Embeddings, identity_findings, leaked_identities, levels_of
from adaface.audit.images import AuditedData, TestImages
from adaface.audit.scan import GOOD, states
from adaface.data.image_list import ChosenImages
from adaface.metrics.outcome import EmbedImages

_FEWEST_IDENTITIES = 2


@dataclass(frozen=True)
class AskedModel:
    """The model that an audit asks, loaded when it is called with the folder for its embeddings.

    Attributes:
        name: of a published model; empty where there is a file.
        file: checkpoint or ONNX file.
        arch: its architecture, where the file does not tell it.
    """

    name: str
    file: str
    arch: str | None = None

    def __call__(self, folder: Path) -> tuple[EmbedImages, str]:
        """Load the model, on all GPUs where there are any.

        Args:
            folder: embeddings are kept there.

        Returns:
            What embeds, and passes over images that cannot be read; and what the model is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no model, or an unknown name.
            RuntimeError: it cannot be downloaded.
        """
        import torch  # takes seconds, and an audit without a model does without

        from adaface.checkpoints.download import find_model
        from adaface.inference.embedding_cache import CachedEmbedding, ModelFile

        path = find_model(self.name) if self.name else Path(self.file)
        gpus = torch.cuda.device_count()
        model = ModelFile(str(path), self.arch, "gpu" if gpus else "cpu")
        embed = CachedEmbedding(
            model,
            folder=folder / "embeddings",
            processes=max(gpus, 1),
            most_unreadable=1.0,
        )
        return embed, f"{self.name or self.file} ({embed.embedder.arch})"


def model_findings(
    data: AuditedData, table: np.ndarray, embed: EmbedImages, test_sets: Sequence[Scanned]
) -> tuple[list[Finding], list[str]]:
    """Find what a model finds.

    Args:
        data: the images.
        table: (N,) of ``scan.ROW``.
        embed: of a model; passes over images that can no longer be read.
        test_sets: whose people must not be in the data.

    Returns:
        Findings, and notes on what the model could not say.
    """
    samples, vectors = _embedded(data, table, embed)
    faces = Embeddings(samples, data.labels[samples], vectors, len(data.source.class_names))
    if (faces.counts > 1).sum() < _FEWEST_IDENTITIES:
        return [], [f"The model was not used: fewer than {_FEWEST_IDENTITIES} identities have two usable images."]
    levels = levels_of(faces)
    summary = f"cosine {levels.own:.2f} of an image to its own identity, {levels.other:.2f} to others (median, mean)"
    if not levels.useful:
        return [], [f"The model cannot distinguish these identities ({summary}): its findings on labels are left out."]
    sets = [(images.name, *_embedded(images, rows, embed)) for images, rows in test_sets]
    findings = identity_findings(data, faces, levels) + list(leaked_identities(data, faces, levels, sets))
    return findings, [f"The model: {summary}."]


def _embedded(images: AuditedData | TestImages, table: np.ndarray, embed: EmbedImages) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are embedded, and their vectors; of one view, as two would take twice the time."""
    from adaface.inference.embedder import IMAGE  # see above

    good = states(table, GOOD)
    embedded = embed(ChosenImages(images, good), IMAGE)
    if embedded.readable.all():
        return good, embedded.embeddings
    return good[embedded.readable], embedded.embeddings[embedded.readable]
