"""How far a conversion of `.rec` files to an image folder is: a small file in that folder.

Training refuses a folder whose journal is not at its end.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adaface.system.files import write_atomically

JOURNAL = ".convert.json"


@dataclass
class Journal:
    """How far it is.

    Attributes:
        rec_bytes: size of the `.rec`, of several the sum.
        rec_mtime_ns: its time of modification, of several the sum.
        swap_color_channel: whether red and blue were swapped.
        index_crc: checksum over keys, offsets and labels (knows the `.rec` again after a copy changed its time).
        images: image records in the `.rec`.
        identities: different labels.
        done: records done, in file order.
        skipped: names of records without a usable image: the key, of several files "<shard>-<key>".
    """

    rec_bytes: int
    rec_mtime_ns: int
    swap_color_channel: bool
    index_crc: int = 0
    images: int = -1
    identities: int = 0
    done: int = 0
    skipped: list[int | str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.images

    @classmethod
    def load(cls, folder: Path) -> "Journal | None":
        """Read the journal of an image folder, or None where there is none.

        Args:
            folder: the image folder.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls(**json.loads((folder / JOURNAL).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / JOURNAL} is damaged ({error}); use --overwrite to convert again") from None

    def save(self, folder: Path) -> None:
        """Write the journal, all or nothing.

        Args:
            folder: the image folder.
        """
        # Not forced to the disk, as the images are not: a power cut is not promised to be survived.
        write_atomically(folder / JOURNAL, json.dumps(asdict(self)), to_disk=False)
