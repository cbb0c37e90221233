"""Progress of a conversion of `.rec` files to an image folder, stored in a small file in that folder.

Training refuses a folder whose conversion is not complete.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adaface.system.files import write_atomically

JOURNAL = ".convert.json"


@dataclass
class Journal:
    """Progress of a conversion.

    Attributes:
        rec_bytes: size of the `.rec`; the sum if there are several.
        rec_mtime_ns: its modification time; the sum if there are several.
        swap_color_channel: whether red and blue were swapped.
        index_crc: checksum over keys, offsets and labels; identifies the `.rec` after a copy changed its time.
        images: image records in the `.rec`.
        identities: number of distinct labels.
        done: records processed, in file order.
        skipped: names of records without a usable image: the key, or "<shard>-<key>" if there are several files.
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
        """Whether all records are processed."""
        return self.done == self.images

    @classmethod
    def load(cls, folder: Path) -> "Journal | None":
        """Read the journal of an image folder, or None if there is none.

        Args:
            folder: the image folder.

        Raises:
            ValueError: the journal is damaged.
        """
        try:
            return cls(**json.loads((folder / JOURNAL).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / JOURNAL} is damaged ({error}); use --overwrite to convert again") from None

    def save(self, folder: Path) -> None:
        """Write the journal atomically.

        Args:
            folder: the image folder.
        """
        # Not synced to disk, like the images: there is no guarantee after a power failure.
        write_atomically(folder / JOURNAL, json.dumps(asdict(self)), to_disk=False)
