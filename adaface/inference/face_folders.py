"""Named embeddings of folders, image files and `.npz` files: the inputs of ``embed``, ``search`` and ``group``."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adaface.alignment.photograph import Photographs
from adaface.data.image_list import ImageList
from adaface.inference.embedding_cache import CachedEmbedding
from adaface.inference.gallery import NamedEmbeddings, read_embeddings
from adaface.inference.sample_images import check_gallery, check_image_file, find_images
from adaface.system.command_line import mark_incomplete, printable
from adaface.system.files import FileState, state_of

logger = logging.getLogger(__name__)

# opens image files as aligned faces: called with a name for the list and its files
OpenFaces = Callable[[str, Sequence[Path]], ImageList]
_SHOWN = 5


def named_faces(path: Path, model: CachedEmbedding, open_faces: OpenFaces) -> NamedEmbeddings:
    """Return the faces of a folder or of an ``.npz`` of ``embed``.

    Args:
        path: the folder or file.
        model: embeds the images of a folder.
        open_faces: opens them.

    Raises:
        FileNotFoundError: there is no such path, or no image in the folder.
        ValueError: neither a folder nor an ``.npz``; or as ``faces_of_folder`` and ``read_embeddings``.
    """
    check_gallery(path)
    if path.is_dir():
        return faces_of_folder(path, model, open_faces)
    faces = read_embeddings(path, model.embedder.fingerprint)
    if changed := faces.changed():
        mark_incomplete()
        logger.info(
            f"note: {len(changed):,} of {len(faces):,} images of {path} have changed in {faces.folder} since, or "
            f"are gone ({_some(changed)}): embed the folder again"
        )
    return faces


def faces_of_folder(
    folder: Path, model: CachedEmbedding, open_faces: OpenFaces, *, to_keep: bool = False
) -> NamedEmbeddings:
    """Embed the images of a folder; unreadable ones, up to the allowed fraction, are skipped and reported.

    Args:
        folder: searched at any depth.
        model: embeds the images, and caches the embeddings.
        open_faces: opens the images.
        to_keep: also read the states of the files, for an ``.npz``.

    Returns:
        The faces; names are paths relative to the folder.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: more images than allowed are unreadable, or all.
    """
    files = find_images(folder)
    names = [file.relative_to(folder).as_posix() for file in files]
    states = [_state_of(file) for file in files] if to_keep else []  # before they are embedded: they may change
    embedded = model(open_faces(folder.resolve().name, files))
    good = np.flatnonzero(embedded.readable)
    bad = [names[index] for index in np.flatnonzero(~embedded.readable)]
    if bad:
        why = "no face or unreadable" if open_faces is Photographs else "unreadable"
        logger.info(f"skipped {len(bad):,} of {len(files):,} images, {why}: {_some(bad)}")
    if not len(good):
        raise ValueError(f"{folder} contains no usable image, so there are no embeddings")
    faces = _with_model(model, [names[i] for i in good], embedded.embeddings[good], embedded.norms[good, 0])
    return replace(faces, folder=str(folder.resolve()), states=[states[i] for i in good]) if to_keep else faces


def _state_of(file: Path) -> FileState:
    try:
        return state_of(file)
    except OSError:  # counted as unreadable
        return FileState(0, 0, "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def faces_of_files(paths: Sequence[str], model: CachedEmbedding, open_faces: OpenFaces) -> NamedEmbeddings:
    """Embed image files.

    Args:
        paths: of the files.
        model: embeds the images.
        open_faces: opens them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is a folder, or not a face.
    """
    embeddings, norms = model.embedder.embed(read_faces(paths, open_faces))
    return _with_model(model, paths, embeddings, norms[:, 0])


def joined(parts: Sequence[NamedEmbeddings]) -> NamedEmbeddings:
    """Return the faces of several parts of one model, in order.

    Args:
        parts: at least one.
    """
    return NamedEmbeddings(
        [name for part in parts for name in part.names],
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.norms for part in parts]),
        parts[0].model,
        parts[0].arch,
    )


def read_faces(paths: Sequence[str], open_faces: OpenFaces) -> np.ndarray:
    """Read image files.

    Args:
        paths: of the files.
        open_faces: opens them.

    Returns:
        (N, 112, 112, 3) uint8 BGR.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is a folder, or not a face.
    """
    for path in map(Path, paths):
        check_image_file(path)
    images = open_faces("images", [Path(path) for path in paths])
    return np.stack([images.read(index) for index in range(len(paths))])


def _with_model(
    model: CachedEmbedding, names: Sequence[str], embeddings: np.ndarray, norms: np.ndarray
) -> NamedEmbeddings:
    return NamedEmbeddings(names, embeddings, norms, model.embedder.fingerprint, model.embedder.arch)
