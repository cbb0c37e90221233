"""Use a trained or published model on faces; the options and their help are in ``inference_options.py``."""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

import numpy as np

from adaface.alignment.detector import MTCNN
from adaface.alignment.photograph import Photographs
from adaface.commands.inference_options import BATCH_SIZE, check_new_folder, check_paths, parse
from adaface.commands.model_options import chosen_accelerator, model_path, print_foreign
from adaface.config.choices import EMBEDDINGS_SUFFIX, MOST_UNREADABLE
from adaface.data.image_list import ImageFiles
from adaface.inference.comparison import (
    NO_THRESHOLD,
    choose_threshold,
    compare_faces,
    comparison_text,
    draw_comparison,
    threshold_text,
)
from adaface.inference.embedding_cache import CachedEmbedding, ModelFile
from adaface.inference.face_folders import (
    OpenFaces,
    faces_of_files,
    faces_of_folder,
    joined,
    named_faces,
    read_faces,
)
from adaface.inference.gallery import FoundFaces, found_csv, found_text, write_embeddings
from adaface.inference.grouping import NO_GROUP, FaceGroups, draw_groups, group_faces, groups_csv, groups_text
from adaface.inference.search import most_similar
from adaface.system.command_line import counted, program_name, run_to_status
from adaface.system.files import atomic_path, write_atomically
from adaface.system.quiet import quiet_decoders


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after `adaface`; None: those of the process.

    Returns:
        Exit status: 0 success, 1 images skipped, 2 error (one line on stderr), 130 interrupted.
    """
    words = sys.argv[1:] if words is None else words

    def job() -> int:
        options = parse(words)
        check_paths(options)
        with quiet_decoders():
            _COMMANDS[options.command](options, _open_model(options))
        return 0

    name = next(iter(words), "")
    kept = "embeddings of folders are kept; run the same command to continue"
    stopped = {"compare": "nothing was written", "serve": "the page was not served"}
    return run_to_status(program_name(name), job, stopped=stopped.get(name, kept))


def _open_model(options: argparse.Namespace) -> CachedEmbedding:
    path = model_path(options)
    accelerator = chosen_accelerator(options.accelerator)
    cache = getattr(options, "cache", "")
    model = CachedEmbedding(
        ModelFile(str(path), options.arch, accelerator, options.color),
        folder=Path(cache) if cache else None,
        batch_size=getattr(options, "batch_size", BATCH_SIZE),
        most_unreadable=_most_unreadable(options),
    )
    print(f"model: {path} ({model.embedder.arch})")
    print_foreign(model.embedder.foreign, options.color)
    return model


def _most_unreadable(options: argparse.Namespace) -> float:
    """Return the fraction of images that may be left out: of photographs any, because not all have a face."""
    given: float | None = getattr(options, "most_unreadable", 0)
    return given if given is not None else 1 if options.align else MOST_UNREADABLE


def _opener(options: argparse.Namespace) -> OpenFaces:
    return Photographs if options.align else ImageFiles


def _compare(options: argparse.Namespace, model: CachedEmbedding) -> None:
    threshold = choose_threshold(options.threshold, model.embedder.threshold)
    faces = read_faces(options.images, _opener(options))
    comparison = compare_faces(model.embedder, faces, options.images, threshold)
    print(comparison_text(comparison))
    if options.save:
        draw_comparison(comparison, faces, Path(options.save))
        print(f"plot saved to {options.save}")


def _embed(options: argparse.Namespace, model: CachedEmbedding) -> None:
    faces = faces_of_folder(Path(options.folder), model, _opener(options), to_keep=True)
    write_embeddings(Path(options.out), faces)
    print(f"{counted(len(faces), 'face', 'faces')} of {options.folder} saved to {options.out}")


def _search(options: argparse.Namespace, model: CachedEmbedding) -> None:
    threshold = choose_threshold(options.threshold, model.embedder.threshold)
    open_faces = _opener(options)
    gallery = named_faces(Path(options.gallery), model, open_faces)
    files = [path for path in options.probes if not Path(path).is_dir() and Path(path).suffix != EMBEDDINGS_SUFFIX]
    parts = [named_faces(Path(path), model, open_faces) for path in options.probes if path not in files]
    probes = joined([*parts, *([faces_of_files(files, model, open_faces)] if files else [])])
    top = min(options.top, len(gallery))
    places, similarity = most_similar(probes.embeddings, gallery.embeddings, top)
    sizes = counted(len(probes), "probe", "probes"), counted(len(gallery), "face", "faces")
    print(f"{sizes[0]} in a gallery of {sizes[1]}, the {top} most similar of each:")
    found = FoundFaces(probes, gallery, places, similarity, threshold)
    print(found_text(found))
    if options.csv:
        write_atomically(options.csv, found_csv(found))
        print(f"table saved to {options.csv}")


def _group(options: argparse.Namespace, model: CachedEmbedding) -> None:
    threshold = choose_threshold(options.threshold, model.embedder.threshold)
    if threshold is None:
        raise ValueError(NO_THRESHOLD)
    folder, open_faces = Path(options.folder), _opener(options)
    faces = faces_of_folder(folder, model, open_faces)
    groups = group_faces(faces, threshold.cosine)
    print(groups_text(groups))
    print(f"same person if the mean cosine is at least {threshold_text(threshold)}")
    with atomic_path(options.folders) if options.folders else contextlib.nullcontext() as part:
        if part:
            check_new_folder(Path(options.folders))  # again: another process may have completed it a moment ago
        write_atomically(options.csv, groups_csv(groups))
        print(f"table saved to {options.csv}")
        files = [folder / name for name in faces.names]
        drawn = draw_groups(groups, open_faces(folder.resolve().name, files), Path(options.save))
        print(f"contact sheet with {drawn:,} of {len(faces):,} faces saved to {options.save}")
        if part:
            _copy_images(groups, files, part)
    if options.folders:
        print(f"images of {counted(groups.people, 'person', 'people')} copied to {options.folders}")


def _copy_images(groups: FaceGroups, files: list[Path], target: Path) -> None:
    """Copy the images of each person into a subfolder of a new folder."""
    target.mkdir()
    for index in np.flatnonzero(groups.person != NO_GROUP):
        copy = target / f"person_{groups.person[index]:04d}" / groups.faces.names[int(index)]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(files[index], copy)


def _serve(options: argparse.Namespace, model: CachedEmbedding) -> None:
    threshold = choose_threshold(options.threshold, model.embedder.threshold)
    print(
        "threshold: none, so there are no decisions" if threshold is None else f"threshold: {threshold_text(threshold)}"
    )
    from adaface.serving.app import Limits
    from adaface.serving.server import build_server, listen, serve

    listening = listen(options.host, options.port)
    server = build_server(options.host, model.embedder, MTCNN(), threshold, Limits())
    serve(server, listening)


_COMMANDS = {"compare": _compare, "embed": _embed, "search": _search, "group": _group, "serve": _serve}


if __name__ == "__main__":
    sys.exit(main())
