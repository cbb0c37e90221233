"""Find the image files of a folder: the one walk that training, audit, alignment, search and the protocols share.

Each file is an image, is skipped with a reason, or is litter (files that operating systems and this program leave).
Files with one of the usual extensions are images without a look at their content, since a listing of millions of files
must not open them. Of any other file, the first bytes decide; if they are of no image, but the extension is of one,
such as ``.heic``, the image is missed. Links to files and folders are followed.

Source: torchvision's `ImageFolder`, whose order this is.
Differs from it: files with other extensions are looked at, hidden images are reported, and a link to a folder above is
an error, as are many links below links: two in each of 30 folders to the next one make a billion paths.
"""

import errno
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adaface.data.image_header import SIGNATURE_BYTES, image_format, why_unreadable
from adaface.system.command_line import mark_incomplete, printable

logger = logging.getLogger(__name__)

USUAL_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_OTHER_EXTENSIONS = (  # a file of these is an image too, but its content decides which
    ".heic", ".heif", ".hif", ".heics", ".heifs", ".avif", ".avifs", ".gif", ".apng", ".mpo", ".jps", ".jfif", ".jfi",
    ".jif", ".jpe", ".jpg_large", ".jpeg_large", ".png_large", ".jpg_original", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx",
    ".jxl", ".jxr", ".pnm", ".pbm", ".dib",
)  # fmt: skip
_RAW_EXTENSIONS = (  # the content of most begins like a TIFF file, in which decoders find a small preview
    ".dng", ".nef", ".nrw", ".cr2", ".crw", ".arw", ".sr2", ".srf", ".pef", ".srw", ".rw2", ".rwl", ".orf", ".3fr",
    ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mos", ".mef", ".mrw", ".gpr", ".x3f",
)  # fmt: skip
_LITTER_FILES = frozenset((".ds_store", "thumbs.db", "desktop.ini", ".directory", ".gitkeep", ".gitignore"))
_LITTER_FOLDERS = frozenset((
    "@eadir", "__macosx", ".ipynb_checkpoints", ".git", ".hg", ".svn", ".dvc", ".cache", ".thumbnails", ".thumbs",
    ".spotlight-v100", ".fseventsd", ".documentrevisions-v100", ".temporaryitems", ".appledouble", ".picasaoriginals",
    ".dtrash", ".stversions", ".snapshot", ".zfs", ".idea", ".vscode", ".venv", "$recycle.bin",
    "system volume information", "lost+found", "#recycle", "#snapshot", "@recycle", ".@__thumb",
))  # fmt: skip
_OWN_FILES = frozenset((".convert.json", ".lock", "alignment.csv", "alignment.json"))  # as written by this program
_ICONS = frozenset(("ICO", "ICNS", "XBM", "XPM"))  # nobody misses a face without them
_SHOWN = 10
_MOST_LINKS = 100  # below other links, that lead to the same folder


class Skipped(NamedTuple):
    """A file or folder that is not read.

    Attributes:
        name: path relative to the searched folder, with / between folders.
        reason: why.
        photograph: it is an image, so that something is missing without it.
    """

    name: str
    reason: str
    photograph: bool


@dataclass(frozen=True)
class FolderListing:
    """What a folder contains.

    Attributes:
        names: image files, relative to the folder, with / between folders: a folder's files sorted by name, folders
            sorted by path.
        skipped: files that are not read, in the same order.
        litter: number of files without interest, such as ``.DS_Store``.
    """

    names: list[str]
    skipped: list[Skipped]
    litter: int

    @property
    def photographs_skipped(self) -> int:
        """Number of images that are not read."""
        return sum(entry.photograph for entry in self.skipped)


def find_image_files(root: str | os.PathLike[str], *, omit: Path | None = None) -> FolderListing:
    """List the image files of a folder, at any depth.

    Args:
        root: the folder.
        omit: a folder below it that is not searched, such as the output.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a link leads to a folder above itself, or more than 100 links below other links to one folder.
    """
    names: list[str] = []
    skipped: list[Skipped] = []
    litter = 0
    omitted = omit.resolve() if omit is not None else None
    for prefix, entries in sorted(_walk(os.fspath(root), omitted), key=lambda part: part[0][:-1]):
        for entry in entries:
            if is_litter(entry.name):
                litter += 1
            elif _is_hidden_folder(entry):
                hidden = _list_hidden(entry, prefix + entry.name, omitted)
                skipped += hidden.skipped
                litter += hidden.litter
            elif problem := _problem(entry):
                skipped.append(Skipped(prefix + entry.name, *problem))
            else:
                names.append(prefix + entry.name)
    return FolderListing(names, skipped, litter)


def holds_images(root: str | os.PathLike[str]) -> bool:
    """Return whether there is an image in a folder, at any depth; the search ends at the first one.

    Args:
        root: the folder.

    Raises:
        OSError: a folder cannot be read.
    """
    entries = itertools.chain.from_iterable(entries for _, entries in _walk(os.fspath(root), None))
    return any(not is_litter(e.name) and not _is_hidden_folder(e) and _problem(e) is None for e in entries)


def list_classes(root: str | os.PathLike[str]) -> tuple[list[str], FolderListing]:
    """List the class folders of an image folder.

    Args:
        root: the folder.

    Returns:
        Sorted names of the class folders; and the files beside them, of which images are skipped, being in no class.

    Raises:
        OSError: the folder cannot be read.
    """
    classes, skipped, litter = [], [], 0
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_litter(entry.name) or (is_folder(entry) and _is_passed_over(entry, None)):
                litter += 1
            elif is_folder(entry) and not entry.name.startswith("."):
                classes.append(entry.name)
            elif _is_hidden_folder(entry):
                hidden = _list_hidden(entry, entry.name)
                skipped += hidden.skipped
                litter += hidden.litter
            else:
                reason, photograph = _problem(entry) or ("not in a folder of a class", True)
                skipped.append(Skipped(entry.name, reason, photograph))
    return classes, FolderListing([], skipped, litter)


def is_litter(name: str) -> bool:
    """Return whether a file is one that nobody misses, by its name.

    They are ``.DS_Store``, ``Thumbs.db``, ``desktop.ini``, ``.directory``, ``._*``, ``.gitkeep``, ``.gitignore``, and
    the journals, locks and temporary files of this program. Folders: ``@eaDir``, ``__MACOSX``,
    ``.ipynb_checkpoints``, ``.Trash*`` and other recycle bins, ``System Volume Information``, ``lost+found``, and
    hidden ones of version control, caches, earlier versions and editors.
    """
    own = name in _OWN_FILES or (name.startswith(".") and name.endswith((".part", ".part.lock")))
    return own or name.startswith("._") or name.lower() in _LITTER_FILES


def summary(found: FolderListing, what: str = "images", count: int | None = None) -> list[str]:
    """Describe a listing: a line with sums that add up, and a line for each of the first skipped files.

    Args:
        found: the listing.
        what: name of the images.
        count: number of images, if the listing does not hold their names.

    Returns:
        Lines; none if nothing was skipped.
    """
    if not found.skipped:
        return []
    count = len(found.names) if count is None else count
    total = count + len(found.skipped) + found.litter
    litter = f", {found.litter:,} system files" if found.litter else ""
    lines = [f"{total:,} files: {count:,} {what}, {len(found.skipped):,} skipped{litter}"]
    first = sorted(found.skipped, key=lambda entry: not entry.photograph)[:_SHOWN]  # what is missed comes first
    lines += [f"  skipped {printable(entry.name)}: {entry.reason}" for entry in first]
    rest = len(found.skipped) - _SHOWN
    return [*lines, f"  ... and {rest:,} more"] if rest > 0 else lines


def report_skipped(found: FolderListing, what: str = "images", count: int | None = None) -> None:
    """Log what was skipped, and let the command end with status 1 if photographs are among it.

    Args:
        found: the listing.
        what: name of the images.
        count: number of images, if the listing does not hold their names.
    """
    for line in summary(found, what, count):
        logger.info(line)
    if found.photographs_skipped:
        mark_incomplete()


def _walk(root: str, omitted: Path | None) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield (prefix of the names, sorted entries that are not searched further) of each folder, in sorted order."""
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...], bool]] = [("", root, (_identity(root),), False)]
    linked: Counter[tuple[int, int]] = Counter()  # how often a link was found below another one that leads to a folder
    while waiting:
        prefix, folder, above, below_link = waiting.pop()
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not is_folder(entry):
                    files.append(entry)
                elif _is_passed_over(entry, omitted):
                    continue
                elif entry.name.startswith("."):
                    files.append(entry)
                else:
                    own = _identity(entry.path)
                    is_link = entry.is_symlink()
                    folders.append((f"{prefix}{entry.name}/", entry.path, (*above, own), below_link or is_link))
                    linked[own] += below_link and is_link
        for _, path, (*parents, own), _ in folders:
            if own in parents:
                raise ValueError(f"{path}: a link leads back to a folder above it; remove the link")
            if linked[own] > _MOST_LINKS:
                raise ValueError(
                    f"{path}: more than {_MOST_LINKS} links lead to this folder, below other links; remove some"
                )
        yield prefix, files
        waiting += reversed(folders)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link that leads to one.

    Args:
        entry: of a folder that is searched.

    Raises:
        OSError: the folder of a link's target cannot be searched.
        ValueError: a link leads to itself.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(
                f"{entry.path}: this link leads back to itself, or through too many others; remove it"
            ) from error
        raise


def _is_passed_over(folder: os.DirEntry[str], omitted: Path | None) -> bool:
    name = folder.name.lower()
    litter = name in _LITTER_FOLDERS or name.startswith(".trash")  # such as .Trash-1000
    return litter or (omitted is not None and Path(folder.path).resolve() == omitted)


def _is_hidden_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)


def _list_hidden(folder: os.DirEntry[str], name: str, omitted: Path | None = None) -> FolderListing:
    """List the files below a hidden folder, none of which is read; links to folders are not followed."""
    skipped, litter = [], 0
    waiting = [(name, folder)]
    while waiting:
        name, entry = waiting.pop()
        if is_litter(entry.name):
            litter += 1
        elif not entry.is_dir(follow_symlinks=False):
            problem = _problem(entry)
            skipped.append(Skipped(name, "in a hidden folder", problem is None or problem[1]))
        elif not _is_passed_over(entry, omitted):
            try:
                with os.scandir(entry.path) as inside:
                    entries = sorted(inside, key=lambda inner: inner.name, reverse=True)
            except OSError as error:
                reason = f"a hidden folder that cannot be read: {error.strerror or error}"
                skipped.append(Skipped(name, reason, photograph=False))
                continue
            waiting += [(f"{name}/{inner.name}", inner) for inner in entries]
    return FolderListing([], skipped, litter)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - once for each of a million folders
    return status.st_dev, status.st_ino


def _problem(entry: os.DirEntry[str]) -> tuple[str, bool] | None:
    """Return why an entry is not an image to read, and whether something is missing without it; None for an image."""
    hidden = entry.name.startswith(".")
    if is_folder(entry):
        return ("a hidden link to a folder", False)
    lower = entry.name.lower()
    if lower.endswith(USUAL_EXTENSIONS) and entry.is_file():
        return ("a hidden file", True) if hidden else None
    if not entry.is_file():
        return ("a link to nothing", True) if entry.is_symlink() else ("not a regular file", False)
    try:
        with open(entry.path, "rb") as file:  # noqa: PTH123 - as above
            start = file.read(SIGNATURE_BYTES)
    except OSError as error:
        return (f"cannot be read: {error.strerror or error}", True)
    found = image_format(start)
    if lower.endswith(_RAW_EXTENSIONS):
        found = "camera raw"
    elif lower.endswith(".tga"):  # it has no signature
        found = "TGA"
    if not found and lower.endswith(_OTHER_EXTENSIONS):
        return ("damaged: its content is not an image" if start else "an empty file", True)
    if reason := why_unreadable(found):
        return (reason, bool(found) and found not in _ICONS)
    return ("a hidden file", True) if hidden else None
