"""The metadata of IJB-B and IJB-C, in the layout of InsightFace's IJB evaluation.

Files in ``<root>/<IJBB|IJBC>/meta/``, with <set> for ``ijbb`` or ``ijbc``:

    <set>_name_5pts_score.txt       file name, five landmarks (x, y in px of the crop), detector score: one image
    <set>_face_tid_mid.txt          file name, template id, media id; the same images in the same order
    <set>_template_pair_label.txt   template id, template id, 1 for the same subject: the 1:1 pairs
    <set>_1N_gallery_<part>.csv     TEMPLATE_ID,SUBJECT_ID,...; parts G1, G2 (IJB-C) or S1, S2 (IJB-B)
    <set>_1N_probe_mixed.csv        the same for the probes

The photographs are in ``<root>/<IJBB|IJBC>/loose_crop/``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adaface.system.text_table import line_number, read_table

GALLERY_PARTS = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}
TITLES = {"IJBB": "IJB-B", "IJBC": "IJB-C"}
_NAMED = 5  # examples in a message


@dataclass(frozen=True)
class TemplateSubjects:
    """Unique templates of the 1:N protocol.

    Attributes:
        template_ids: (T,) int64, ascending.
        subject_ids: (T,) int64.
    """

    template_ids: np.ndarray
    subject_ids: np.ndarray


@dataclass(frozen=True)
class IJBMetadata:
    """The metadata of a set, checked for consistency.

    Attributes:
        name: ``IJBB`` or ``IJBC``.
        folder: folder of the photographs.
        file_names: (N,) objects, file names in it.
        landmarks: (N, 5, 2) float32, x and y in px.
        template_ids: (N,) int64 template of each image.
        media_ids: (N,) int64 medium of each image.
        pairs: (2, P) int32: the two templates of each pair, as indices into the sorted template ids.
        issame: (P,) booleans.
        gallery: gallery of the 1:N protocol, both parts.
        probes: probes of the 1:N protocol, each with exactly one template of its subject in the gallery.
        missing_lists: files of the 1:N protocol that are missing; if any is, its gallery and probes are empty.
    """

    name: str
    folder: Path
    file_names: np.ndarray
    landmarks: np.ndarray
    template_ids: np.ndarray
    media_ids: np.ndarray
    pairs: np.ndarray
    issame: np.ndarray
    gallery: TemplateSubjects
    probes: TemplateSubjects
    missing_lists: tuple[Path, ...] = ()


def read_metadata(root: Path, name: str) -> IJBMetadata:
    """Read the metadata of a set.

    Args:
        root: the folder that contains the set's folder.
        name: ``IJBB`` or ``IJBC``.

    Raises:
        FileNotFoundError: files of 1:1 are missing; the message names all missing ones.
        ValueError: an unknown name, a malformed line (the message names file and line), or inconsistent files.
    """
    files, missing = find_files(root, name)
    folder = root / name / "loose_crop"
    file_names, landmarks = _read_landmarks(files["landmarks"])
    template_ids, media_ids = _read_templates(files["templates"], files["landmarks"], file_names)
    known = np.unique(template_ids)
    pairs, issame = _read_pairs(files["pairs"], known)
    if missing:
        none = TemplateSubjects(np.empty(0, np.int64), np.empty(0, np.int64))
        return IJBMetadata(
            name, folder, file_names, landmarks, template_ids, media_ids, pairs, issame, none, none, tuple(missing)
        )
    gallery = _read_subjects([path for key, path in files.items() if key.startswith("gallery")], known)
    probes = _read_subjects([files["probes"]], known)
    _check_mates(probes, gallery, files["probes"])
    return IJBMetadata(name, folder, file_names, landmarks, template_ids, media_ids, pairs, issame, gallery, probes)


def find_files(root: Path, name: str) -> tuple[Mapping[str, Path], list[Path]]:
    """Return the metadata files of a set, and those of 1:N that are missing.

    Args:
        root: as in ``read_metadata``.
        name: as in ``read_metadata``.

    Raises:
        FileNotFoundError: files of 1:1 are missing; the message names all missing ones.
        ValueError: an unknown name.
    """
    if name not in GALLERY_PARTS:
        raise ValueError(f"got the set {name!r}, expected {' or '.join(GALLERY_PARTS)}")
    files = metadata_files(root, name)
    of_search = [path for key, path in files.items() if key not in ("landmarks", "templates", "pairs")]
    missing = [path for path in (*files.values(), root / name / "loose_crop") if not path.exists()]
    if set(missing) - set(of_search):
        raise FileNotFoundError(
            f"{TITLES[name]} is incomplete in {root}, missing: {', '.join(map(str, missing))}. Expected the layout of "
            f"InsightFace's IJB evaluation: {name}/meta/ and {name}/loose_crop/"
        )
    return files, missing


def with_fewer_pairs(metadata: IJBMetadata, limit: int) -> IJBMetadata:
    """Return some pairs, spread evenly, and the images of their templates.

    Args:
        metadata: metadata of the set.
        limit: number of pairs, at least 1.
    """
    chosen = np.linspace(0, len(metadata.issame) - 1, limit).round().astype(int)
    pairs = metadata.pairs[:, chosen]
    places = np.unique(pairs)
    kept = np.isin(metadata.template_ids, np.unique(metadata.template_ids)[places])
    return replace(
        metadata,
        file_names=metadata.file_names[kept],
        landmarks=metadata.landmarks[kept],
        template_ids=metadata.template_ids[kept],
        media_ids=metadata.media_ids[kept],
        pairs=np.searchsorted(places, pairs).astype(np.int32),
        issame=metadata.issame[chosen],
    )


def template_subjects(metadata: IJBMetadata) -> np.ndarray:
    """Return the subject of each template, (T,) int64 in the order of the sorted template ids.

    Args:
        metadata: metadata of the set; a template that is not in 1:N gets a negative number of its own.
    """
    known = np.unique(metadata.template_ids)
    subjects = -1 - np.arange(len(known))
    for part in (metadata.probes, metadata.gallery):
        present = np.isin(part.template_ids, known)
        subjects[np.searchsorted(known, part.template_ids[present])] = part.subject_ids[present]
    return subjects


def metadata_files(root: Path, name: str) -> Mapping[str, Path]:
    """Return the files by content: landmarks, templates, pairs, gallery and its part, probes.

    Args:
        root: the folder that contains the set's folder.
        name: ``IJBB`` or ``IJBC``.
    """
    meta, prefix = root / name / "meta", name.lower()
    return {
        "landmarks": meta / f"{prefix}_name_5pts_score.txt",
        "templates": meta / f"{prefix}_face_tid_mid.txt",
        "pairs": meta / f"{prefix}_template_pair_label.txt",
        **{f"gallery {part}": meta / f"{prefix}_1N_gallery_{part}.csv" for part in GALLERY_PARTS[name]},
        "probes": meta / f"{prefix}_1N_probe_mixed.csv",
    }


def examples(values: np.ndarray) -> str:
    """Return the first ids for a message, and the number of the others."""
    shown = ", ".join(str(value) for value in values[:_NAMED])
    return shown + (f" and {len(values) - _NAMED} more" if len(values) > _NAMED else "")


def _read_landmarks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    points = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
    columns = {"name": "str", **dict.fromkeys(points, "float32"), "score": "float32"}
    names, landmarks = [], []
    for piece in read_table(path, columns):
        names.append(piece["name"].to_numpy(object))
        landmarks.append(piece[points].to_numpy(np.float32).reshape(-1, 5, 2))
    if not sum(map(len, names)):
        raise ValueError(f"{path} lists no images")
    return np.concatenate(names), np.concatenate(landmarks)


def _read_templates(path: Path, landmark_file: Path, file_names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pieces, row = [], 0
    for piece in read_table(path, {"name": "str", "template": "int64", "media": "int64"}):
        expected = file_names[row : row + len(piece)]
        # features are in the order of the landmark file, templates in that of this file
        other = np.flatnonzero(piece["name"].to_numpy(object)[: len(expected)] != expected)
        if len(other):
            raise ValueError(
                f"{path}, line {line_number(path, row + int(other[0]))}: got {piece['name'].iloc[other[0]]}, expected "
                f"{expected[other[0]]} as in {landmark_file}: both must list the same images in the same order"
            )
        pieces.append(piece[["template", "media"]].to_numpy(np.int64))
        row += len(piece)
    if row != len(file_names):
        raise ValueError(f"{path} lists {row} images, {landmark_file} {len(file_names)}: expected the same number")
    template_ids, media_ids = np.concatenate(pieces).T
    return template_ids.copy(), media_ids.copy()


def _read_pairs(path: Path, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs, issame, row = [], [], 0
    for piece in read_table(path, {"first": "int64", "second": "int64", "same": "int64"}):
        ids = piece[["first", "second"]].to_numpy(np.int64).T  # (2, rows)
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        unknown = np.flatnonzero((known[places] != ids).any(axis=0))
        if len(unknown):
            line = line_number(path, row + int(unknown[0]))
            raise ValueError(
                f"{path}, line {line}: the pair {ids[0, unknown[0]]} and {ids[1, unknown[0]]} refers to a "
                "template without images"
            )
        same = piece["same"].to_numpy()
        other = np.flatnonzero((same != 0) & (same != 1))
        if len(other):
            line = line_number(path, row + int(other[0]))
            raise ValueError(f"{path}, line {line}: the label must be 0 or 1, got {same[other[0]]}")
        pairs.append(places.astype(np.int32))
        issame.append(same.astype(bool))
        row += len(piece)
    if not row:
        raise ValueError(f"{path} lists no pairs")
    return np.concatenate(pairs, axis=1), np.concatenate(issame)


def _read_subjects(paths: list[Path], known: np.ndarray) -> TemplateSubjects:
    """Read templates and subjects; a template is listed once for each of its images, but counts once."""
    pieces = []
    for path in paths:
        rows_of_file = list(read_table(path, {"TEMPLATE_ID": "int64", "SUBJECT_ID": "int64"}, commas=True))
        if not sum(map(len, rows_of_file)):
            raise ValueError(f"{path} lists no templates")
        pieces += [piece.to_numpy(np.int64) for piece in rows_of_file]
    rows = np.unique(np.concatenate(pieces), axis=0)
    template_ids, subject_ids = rows[:, 0], rows[:, 1]
    names = " and ".join(map(str, paths))
    twice = template_ids[1:][template_ids[1:] == template_ids[:-1]]
    if len(twice):
        raise ValueError(f"{names}: templates with several subjects, expected one each: {examples(np.unique(twice))}")
    without = np.setdiff1d(template_ids, known)
    if len(without):
        raise ValueError(f"{names}: {len(without)} templates have no images: {examples(without)}")
    return TemplateSubjects(template_ids, subject_ids)


def _check_mates(probes: TemplateSubjects, gallery: TemplateSubjects, path: Path) -> None:
    subjects, counts = np.unique(gallery.subject_ids, return_counts=True)
    place = np.searchsorted(subjects, probes.subject_ids).clip(max=len(subjects) - 1)
    mates = np.where(subjects[place] == probes.subject_ids, counts[place], 0)
    for wrong, what in ((mates == 0, "no gallery template of their subject"), (mates > 1, "several of them")):
        if wrong.any():
            raise ValueError(
                f"{path}: {wrong.sum()} probes have {what}, expected exactly one: templates "
                f"{examples(probes.template_ids[wrong])}"
            )
