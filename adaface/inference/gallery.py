"""A gallery of faces: its embeddings in a file, and the results of a search as text and as CSV.

The file is an `.npz` of plain arrays without pickles: `names` (N,) text, `embeddings` (N, D) and `norms` (N,) float32,
`model` (the fingerprint of the weights), `arch` and `version`; of the images, `folder`, and `bytes`, `modified_ns` and
`sha256` (N,) when they were embedded. Any program that reads `.npz` can use it.

The search itself is ``inference.search.most_similar``.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.inference.comparison import NO_THRESHOLD, Threshold, short_name, threshold_text
from adaface.system.command_line import printable
from adaface.system.csv_text import SafeWriter
from adaface.system.files import FileState, atomic_file
from adaface.system.numpy_file import DAMAGED, describe, read_arrays

_VERSION = 1
_UNIT_TOLERANCE = 1e-3
_COLUMNS = ("probe", "probe_quality", "rank", "face", "similarity", "face_quality", "same")


@dataclass(frozen=True)
class NamedEmbeddings:
    """Embeddings of named faces.

    Attributes:
        names: (N,) names, such as relative paths.
        embeddings: (N, D) float32 unit vectors.
        norms: (N,) float32 feature norms, the model's measure of quality.
        model: fingerprint of the model.
        arch: architecture of the model.
        folder: absolute path of the folder of the images; empty if it is not known.
        states: (N,) states of the images when they were embedded; empty if they are not known.
    """

    names: Sequence[str]
    embeddings: np.ndarray
    norms: np.ndarray
    model: str
    arch: str
    folder: str = ""
    states: Sequence[FileState] = ()

    def __len__(self) -> int:
        return len(self.names)

    def changed(self) -> list[str]:
        """Return the names of images that have changed since, or are gone; none if their folder is gone."""
        if not Path(self.folder).is_dir():
            return []
        images = zip(self.names, self.states, strict=False)
        return [name for name, state in images if not _is_unchanged(Path(self.folder, name), state)]


def _is_unchanged(path: Path, state: FileState) -> bool:
    try:
        return state.still_of(path)
    except (OSError, ValueError):
        return False


def write_embeddings(path: Path, faces: NamedEmbeddings) -> None:
    """Write embeddings to a file, atomically.

    Args:
        path: the ``.npz``; its folder must exist.
        faces: embeddings to write.

    Raises:
        OSError: the file cannot be written; an existing one is left unchanged.
    """
    with atomic_file(path) as file:
        np.savez(
            file,
            names=np.array(faces.names, dtype=np.str_),
            embeddings=faces.embeddings.astype(np.float32),
            norms=faces.norms.astype(np.float32),
            model=np.array(faces.model),
            arch=np.array(faces.arch),
            version=np.array(_VERSION),
            folder=np.array(faces.folder),
            bytes=np.array([state.size for state in faces.states], np.int64),
            modified_ns=np.array([state.modified_ns for state in faces.states], np.int64),
            sha256=np.array([state.sha256 for state in faces.states], "S64"),
        )


def read_embeddings(path: Path, model: str | None = None) -> NamedEmbeddings:
    """Read embeddings.

    Args:
        path: an ``.npz`` written by ``write_embeddings``.
        model: fingerprint of the expected model; None accepts any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by this project, is damaged, empty, or of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = read_arrays(path)
        faces, version = _faces_of(arrays), int(arrays["version"])
    except (*DAMAGED, OSError) as error:
        raise ValueError(f"{path} is not a file of `adaface embed` ({describe(error)})") from error
    if version != _VERSION:
        raise ValueError(f"{path} has format version {version}, expected {_VERSION}: embed the images again")
    if model is not None and faces.model != model:
        raise ValueError(
            f"{path} was written with another model ({faces.arch}, fingerprint {faces.model}; this model has {model}): "
            "embeddings of different models cannot be compared. Use the same model, or embed the images again"
        )
    if not len(faces):
        raise ValueError(f"{path} contains no embeddings")
    lengths = np.linalg.norm(faces.embeddings, axis=1)
    if not (np.abs(lengths - 1) < _UNIT_TOLERANCE).all() or not np.isfinite(faces.norms).all():
        raise ValueError(f"{path} is damaged: not all of its embeddings are unit vectors")
    return faces


def _faces_of(file: dict[str, np.ndarray]) -> NamedEmbeddings:
    """Return the content of a file, or raise ValueError if its arrays do not match."""
    names, embeddings, norms = (file[name] for name in ("names", "embeddings", "norms"))
    kinds = (names.dtype.kind, embeddings.dtype, norms.dtype)
    if kinds != ("U", np.float32, np.float32) or embeddings.ndim != 2:
        raise ValueError(f"arrays of {names.dtype}, {embeddings.dtype} and {norms.dtype}")
    if names.shape != (len(embeddings),) or norms.shape != (len(embeddings),):
        raise ValueError(f"{names.shape} names and {norms.shape} norms for {len(embeddings)} embeddings")
    states: list[FileState] = []
    if "folder" in file:  # not in files of earlier versions
        columns = (file["bytes"].tolist(), file["modified_ns"].tolist(), file["sha256"].astype(str).tolist())
        states = [FileState(*state) for state in zip(*columns, strict=True)]
        if states and len(states) != len(embeddings):
            raise ValueError(f"{len(states)} states of images for {len(embeddings)} embeddings")
    folder = str(file.get("folder", ""))
    return NamedEmbeddings(names.tolist(), embeddings, norms, str(file["model"]), str(file["arch"]), folder, states)


@dataclass(frozen=True)
class FoundFaces:
    """The most similar gallery faces of P probes.

    Attributes:
        probes: (P,) faces.
        gallery: the searched gallery.
        places: (P, K) indices into the gallery, most similar first.
        similarity: (P, K) cosines.
        threshold: decision threshold; None without one.
    """

    probes: NamedEmbeddings
    gallery: NamedEmbeddings
    places: np.ndarray
    similarity: np.ndarray
    threshold: Threshold | None

    def same(self, probe: int, rank: int) -> bool | None:
        """Whether a probe and a gallery face are decided to be the same person; None without a threshold."""
        return None if self.threshold is None else bool(self.similarity[probe, rank] >= self.threshold.cosine)

    def _rows(self, probe: int) -> Iterator[tuple[int, str, float, float]]:
        """Yield rank from 0, name, similarity and norm of the gallery faces most similar to a probe."""
        for rank, place in enumerate(self.places[probe]):
            yield rank, self.gallery.names[place], self.similarity[probe, rank], self.gallery.norms[place]


def found_text(found: FoundFaces) -> str:
    """Format search results as text, a block for each probe; faces of the same person are marked."""
    lines = []
    for probe, name in enumerate(found.probes.names):
        lines.append(f"{short_name(name)} (quality {found.probes.norms[probe]:.2f})")
        for rank, face, similarity, norm in found._rows(probe):
            mark = "*" if found.same(probe, rank) else " "
            lines.append(f"{rank + 1:>5}  {similarity:>8.4f}{mark}  {printable(face)} (quality {norm:.2f})")
    threshold = found.threshold
    if threshold is None:
        lines.append(NO_THRESHOLD)
    else:
        lines.append(f"* same person if the cosine is at least {threshold_text(threshold)}")
    return "\n".join(lines)


def found_csv(found: FoundFaces) -> str:
    """Format search results as CSV, a row for each gallery face; ``same`` is empty without a threshold."""
    text = io.StringIO()
    writer = SafeWriter(text)
    writer.writerow(_COLUMNS)
    for probe, name in enumerate(found.probes.names):
        quality = f"{found.probes.norms[probe]:.4f}"
        for rank, face, similarity, norm in found._rows(probe):
            same = found.same(probe, rank)
            decision = "" if same is None else int(same)
            writer.writerow([name, quality, rank + 1, face, f"{similarity:.6f}", f"{norm:.4f}", decision])
    return text.getvalue()
