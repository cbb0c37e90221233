"""Group faces by person: average linkage, cut at the decision threshold.

Two groups are merged while the mean cosine between their faces is at least the threshold, the most similar first. A
face that is merged with no other is in no group.

Sources: average linkage (UPGMA) is Sokal and Michener, 1958, here SciPy's. It was compared with single and complete
linkage and with HDBSCAN on faces of people who were not in the training data; see docs/inference.md.
Differs from scikit-learn's `AgglomerativeClustering`, which gives the same groups: a mean cosine that equals the
threshold is enough, and distances are computed only among faces that are connected by pairs above the threshold. Groups
cannot reach beyond, since a mean is never above its largest value.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from adaface.data.image_list import ImageList
from adaface.inference.comparison import short_name
from adaface.inference.gallery import NamedEmbeddings
from adaface.inference.search import score_blocks
from adaface.reporting.contact_sheet import COLUMNS, Section, draw_sheet
from adaface.system.command_line import counted
from adaface.system.csv_text import SafeWriter
from adaface.system.devices import available_memory
from adaface.system.threads import in_order, usable_cores

NO_GROUP = 0
_COLUMNS = ("face", "person", "similarity", "quality")
_COPIES = 2  # of the distances, in SciPy
_ROUNDING = 1e-5  # of a float32 cosine
_SHOWN_PEOPLE = 20
_SHOWN_FACES = 5
_SHOWN_ALONE = 20
_ROWS = 256
_DRAWN_OF_PERSON = COLUMNS
_DRAWN_ALONE = 5 * COLUMNS
_DRAWN_PEOPLE = 100


@dataclass(frozen=True)
class FaceGroups:
    """Faces and their groups.

    Attributes:
        faces: N faces.
        person: (N,) int64, the number of the group from 1, larger groups first; ``NO_GROUP`` for a face alone.
        similarity: (N,) float32, mean cosine to the other faces of the group; NaN for a face alone.
    """

    faces: NamedEmbeddings
    person: np.ndarray
    similarity: np.ndarray

    @property
    def people(self) -> int:
        """Number of groups."""
        return int(self.person.max(initial=0))

    def order(self) -> np.ndarray:
        """Return the indices of all faces by person, the most typical (the highest similarity) first; those alone last.

        Returns:
            (N,) int64.
        """
        last = np.where(self.person == NO_GROUP, self.people + 1, self.person)
        return np.lexsort((-self.similarity, last))

    def members(self, person: int) -> np.ndarray:
        """Return the indices of a group, the most typical face first.

        Args:
            person: number of the group; ``NO_GROUP``: faces alone.
        """
        members = np.flatnonzero(self.person == person)
        return members[np.argsort(-self.similarity[members], kind="stable")]


def group_faces(faces: NamedEmbeddings, cosine: float) -> FaceGroups:
    """Group faces by person.

    Args:
        faces: N faces.
        cosine: lowest mean cosine between two groups of the same person, in [-1, 1].

    Raises:
        ValueError: so many faces are connected that their distances do not fit into memory.
    """
    embeddings = np.asarray(faces.embeddings, dtype=np.float32)
    groups = [
        connected[members]
        for connected in _parts(_connected(embeddings, cosine))
        for members in _parts(_average_linkage(embeddings[connected], cosine))
    ]
    groups = sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
    person = np.full(len(embeddings), NO_GROUP, dtype=np.int64)
    similarity = np.full(len(embeddings), np.nan, dtype=np.float32)
    for number, group in enumerate(groups, start=1):
        person[group] = number
        chosen = embeddings[group].astype(np.float64)
        similarity[group] = (chosen @ chosen.sum(axis=0) - np.square(chosen).sum(axis=1)) / (len(group) - 1)
    return FaceGroups(faces, person, similarity)


def _parts(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the indices of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(labels[order])) + 1))


def _connected(embeddings: np.ndarray, cosine: float) -> np.ndarray:
    """Return (N,) labels of faces that are connected by pairs whose cosine is at least the threshold."""
    count = len(embeddings)
    labels = np.arange(count)  # of each face, a face that it is connected to
    for rows, block in score_blocks(embeddings, embeddings):
        first, second = np.nonzero(block >= cosine - _ROUNDING)
        first += rows.start
        new = labels[first] != labels[second]
        if new.any():
            edges = np.concatenate([np.arange(count), first[new]]), np.concatenate([labels, second[new]])
            graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(count, count))
            _, parts = connected_components(graph, directed=False)
            labels = np.unique(parts, return_index=True)[1][parts]
    return labels


def _average_linkage(embeddings: np.ndarray, cosine: float) -> np.ndarray:
    """Return (N,) labels of the groups."""
    count = len(embeddings)
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    pairs = count * (count - 1) // 2
    needed = _COPIES * pairs * np.dtype(np.float64).itemsize
    if needed > (free := available_memory("cpu", 1)):
        raise ValueError(
            f"{count:,} faces are connected by pairs above the threshold {cosine:.4f}; grouping them takes "
            f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: set a higher --threshold, or group fewer "
            "images"
        )
    distances = np.empty(pairs)  # 1 - cosine of the pairs (0, 1), (0, 2), ..., (1, 2), ...
    end = 0
    for start in range(0, count, _ROWS):
        block = embeddings[start : start + _ROWS] @ embeddings[start:].T
        for row, line in enumerate(block):
            begin, end = end, end + len(line) - row - 1
            np.subtract(1, line[row + 1 :], out=distances[begin:end])
    np.maximum(distances, 0, out=distances)  # rounding: the cosine of equal float32 vectors may exceed 1
    return fcluster(linkage(distances, "average"), 1 - cosine, criterion="distance")


def groups_text(groups: FaceGroups) -> str:
    """Format groups as text: a line for each of the largest ones, the faces alone, and a line with the sums."""
    lines = []
    for person in range(1, min(groups.people, _SHOWN_PEOPLE) + 1):
        members = groups.members(person)
        lines.append(
            f"{title(groups, person)}, mean similarity {np.mean(groups.similarity[members]):.4f}: "
            + _names(groups, members, _SHOWN_FACES)
        )
    if groups.people > _SHOWN_PEOPLE:
        rest = np.count_nonzero(groups.person > _SHOWN_PEOPLE)
        lines.append(f"... and {groups.people - _SHOWN_PEOPLE:,} more people with {rest:,} faces")
    alone = groups.members(NO_GROUP)
    if len(alone):
        lines.append(f"{title(groups, NO_GROUP)}: {_names(groups, alone, _SHOWN_ALONE)}")
    total = len(groups.faces)
    grouped = f"{total - len(alone):,} of {counted(groups.people, 'person', 'people')}, " if groups.people else ""
    return "\n".join([*lines, f"{counted(total, 'face', 'faces')}: {grouped}{len(alone):,} in no group"])


def title(groups: FaceGroups, person: int) -> str:
    """Return the title of a group, such as ``person 1: 12 faces``.

    Args:
        groups: all groups.
        person: number of the group, or ``NO_GROUP``.
    """
    count = counted(int(np.count_nonzero(groups.person == person)), "face", "faces")
    return f"person {person}: {count}" if person != NO_GROUP else f"in no group: {count}"


def groups_csv(groups: FaceGroups) -> str:
    """Format groups as CSV, a row for each face by person; ``person`` and ``similarity`` are empty for a face alone."""
    text = io.StringIO()
    writer = SafeWriter(text)
    writer.writerow(_COLUMNS)
    for index in groups.order():
        person, similarity = groups.person[index], f"{groups.similarity[index]:.6f}"
        group = ("", "") if person == NO_GROUP else (person, similarity)
        writer.writerow([groups.faces.names[index], *group, f"{groups.faces.norms[index]:.4f}"])
    return text.getvalue()


def draw_groups(groups: FaceGroups, images: ImageList, path: Path) -> int:
    """Draw a contact sheet: of each person the most typical faces, the largest groups first, then the faces alone.

    Args:
        groups: groups of N faces.
        images: the N images.
        path: PNG file to write.

    Returns:
        The number of faces drawn: 20 of each of 100 people, and 100 of those alone, at most.

    Raises:
        ValueError: an image can no longer be read.
        OSError: the sheet cannot be written.
    """
    chosen = {
        person: groups.members(person)[: _DRAWN_ALONE if person == NO_GROUP else _DRAWN_OF_PERSON]
        for person in [*range(1, min(groups.people, _DRAWN_PEOPLE) + 1), NO_GROUP]
    }
    indices = [int(index) for members in chosen.values() for index in members]
    cores = usable_cores()
    faces = in_order(images.read, indices, threads=cores, ahead=cores + 2)
    sections = []
    for person, members in chosen.items():
        if len(members):
            missing = np.count_nonzero(groups.person == person) - len(members)
            more = f", {len(members)} of them shown" if missing else ""
            sections.append(Section(title(groups, person) + more, [next(faces) for _ in members]))
    draw_sheet(sections, path)
    return len(indices)


def _names(groups: FaceGroups, members: np.ndarray, most: int) -> str:
    shown = ", ".join(short_name(groups.faces.names[index]) for index in members[:most])
    return f"{shown}, ..." if len(members) > most else shown
