"""What a search found, as text and as a CSV table."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from command_line import printable
from embedding_file import NamedEmbeddings
from face_comparison import NO_THRESHOLD, Threshold, short_name, threshold_text

_COLUMNS = ("probe", "probe_quality", "rank", "face", "similarity", "face_quality", "same")


@dataclass(frozen=True)
class FoundFaces:
    """The most similar gallery faces of P probes.

    Attributes:
        probes: (P,) faces.
        gallery: that was searched.
        places: (P, K) of the found faces in the gallery, most similar first.
        similarity: (P, K) cosines.
        threshold: that decides; None where there is none.
    """

    probes: NamedEmbeddings
    gallery: NamedEmbeddings
    places: np.ndarray
    similarity: np.ndarray
    threshold: Threshold | None

    def same(self, probe: int, rank: int) -> bool | None:
        """Whether a probe and a found face are taken for one person's; None where there is no threshold."""
        return None if self.threshold is None else bool(self.similarity[probe, rank] >= self.threshold.cosine)

    def _rows(self, probe: int) -> Iterator[tuple[int, str, float, float]]:
        """Yield rank from 0, name, similarity and norm of the faces that were found for a probe."""
        for rank, place in enumerate(self.places[probe]):
            yield rank, self.gallery.names[place], self.similarity[probe, rank], self.gallery.norms[place]


def found_text(found: FoundFaces) -> str:
    """Lay out what was found as text, a block for each probe; faces taken for the probe's person are marked."""
    lines = []
    for probe, name in enumerate(found.probes.names):
        lines.append(f"{short_name(name)} (quality {found.probes.norms[probe]:.2f})")
        for rank, face, similarity, norm in found._rows(probe):
            mark = "*" if found.same(probe, rank) else " "
            lines.append(f"{rank + 1:>5}  {similarity:>8.4f}{mark}  {printable(face)} (quality {norm:.2f})")
    decided = found.threshold
    lines.append(NO_THRESHOLD if decided is None else f"* one person: cosine at or above {threshold_text(decided)}")
    return "\n".join(lines)


def found_csv(found: FoundFaces) -> str:
    """Return what was found as CSV, a row for each found face; ``same`` is empty where there is no threshold."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for probe, name in enumerate(found.probes.names):
        quality = f"{found.probes.norms[probe]:.4f}"
        for rank, face, similarity, norm in found._rows(probe):
            same = found.same(probe, rank)
            decision = "" if same is None else int(same)
            writer.writerow([name, quality, rank + 1, face, f"{similarity:.6f}", f"{norm:.4f}", decision])
    return text.getvalue()
