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
    """The model of an audit; calling it with the folder for its embeddings loads it.

    Attributes:
        name: name of a published model; empty to use ``file``.
        file: checkpoint or ONNX file.
        arch: architecture, if the file does not store it.
        color: ``rgb`` or ``bgr``, the color order of the network in weights of another program.
    """

    name: str
    file: str
    arch: str | None = None
    color: str | None = None

    def __call__(self, folder: Path) -> tuple[EmbedImages, str]:
        """Load the model, on all GPUs if there are any.

        Args:
            folder: folder for the cached embeddings.

        Returns:
            A function that embeds images and skips unreadable ones, and a description of the model.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not a model, or the name is unknown.
            RuntimeError: the model cannot be downloaded.
        """
        import torch  # the import takes seconds, and an audit without a model does not need it

        from adaface.checkpoints.download import find_model
        from adaface.inference.embedding_cache import CachedEmbedding, ModelFile

        path = find_model(self.name) if self.name else Path(self.file)
        gpus = torch.cuda.device_count()
        model = ModelFile(str(path), self.arch, "gpu" if gpus else "cpu", self.color)
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
    """Return the findings that need a model.

    Args:
        data: training data.
        table: (N,) array of ``scan.ROW``.
        embed: embeds images with the model and skips those that can no longer be read.
        test_sets: test sets whose identities must not be in the data.

    Returns:
        Findings, and notes on the model and on checks that were not possible.
    """
    samples, vectors = _embedded(data, table, embed)
    faces = Embeddings(samples, data.labels[samples], vectors, len(data.source.class_names))
    if (faces.counts > 1).sum() < _FEWEST_IDENTITIES:
        return [], [
            f"The model was not used: fewer than {_FEWEST_IDENTITIES} identities have at least two usable images."
        ]
    levels = levels_of(faces)
    summary = f"cosine {levels.own:.2f} of an image to its own identity, {levels.other:.2f} to others (median, mean)"
    if not levels.useful:
        return [], [f"The model cannot distinguish these identities ({summary}): its findings are not reported."]
    sets = [(images.name, *_embedded(images, rows, embed)) for images, rows in test_sets]
    findings = identity_findings(data, faces, levels) + list(leaked_identities(data, faces, levels, sets))
    return findings, [f"Model: {summary}."]


def _embedded(images: AuditedData | TestImages, table: np.ndarray, embed: EmbedImages) -> tuple[np.ndarray, np.ndarray]:
    """Return the embedded images and their embeddings, without flip test, which would take twice the time."""
    from adaface.inference.embedder import IMAGE  # imports torch

    good = states(table, GOOD)
    embedded = embed(ChosenImages(images, good), IMAGE)
    if embedded.readable.all():
        return good, embedded.embeddings
    return good[embedded.readable], embedded.embeddings[embedded.readable]
