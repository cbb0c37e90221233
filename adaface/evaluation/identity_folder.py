"""A private folder of faces as an identification set: which images there are, and which are gallery and probes.

Two layouts:

    <root>/<identity>/<image>            the first k images of an identity, by file name, are its gallery
    <root>/gallery/<identity>/<image>    the gallery
    <root>/probe/<identity>/<image>      the probes; those of identities without a gallery are non-mated
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.data.conversion_journal import JOURNAL
from adaface.data.image_list import ImageFiles, read_color_image
from adaface.data.images import IMAGE_SHAPE
from adaface.data.sources.folder import FolderSource, listing

GALLERY, PROBE = "gallery", "probe"
_TRIED = 16
_SHOWN = 5


@dataclass(frozen=True)
class IdentityFolder:
    """The images of a private folder, those of an identity in one piece, in the order of the identities' names.

    Attributes:
        images: the N files, aligned faces of 112x112.
        identities: names of the identities.
        labels: (N,) places in ``identities``, ascending.
        in_gallery: (N,) booleans where folders tell gallery and probes apart; None in the layout that does not.
        ignored: number of files that are hidden or no images.
    """

    images: ImageFiles
    identities: tuple[str, ...]
    labels: np.ndarray
    in_gallery: np.ndarray | None
    ignored: int


@dataclass(frozen=True)
class Roles:
    """What the images of a folder are for.

    Attributes:
        gallery: (N,) booleans.
        probes: (N,) booleans; an image may be neither.
        notes: what is unusual about them.
    """

    gallery: np.ndarray
    probes: np.ndarray
    notes: tuple[str, ...]


def open_identity_folder(root: Path, limit: int | None = None) -> IdentityFolder:
    """List the images of a private folder, and look at the size of a few.

    Args:
        root: in one of the two layouts.
        limit: for a quick look: identities in the order of their names, until there are that many images.

    Raises:
        FileNotFoundError: no such folder, no identities in it, one without images, ``gallery`` without ``probe``.
        ValueError: images that are no aligned faces, or another limit.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"a limit is a number of images from 1 on, got {limit}")
    parts = _parts(root)
    sources = [FolderSource(part) for part in parts]
    identities = tuple(sorted({name for source in sources for name in source.class_names}))
    place = {name: number for number, name in enumerate(identities)}
    labels = np.concatenate([np.array([place[n] for n in source.class_names])[source.labels] for source in sources])
    part_of = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
    within = np.concatenate([np.arange(len(source)) for source in sources])
    order = np.argsort(labels, kind="stable")  # of an identity the gallery comes first
    if limit is not None and limit < len(order):
        order = order[labels[order] <= labels[order][limit - 1]]
    paths = [Path(sources[part].path(index)) for part, index in zip(part_of[order], within[order], strict=True)]
    images = ImageFiles(root.resolve().name, paths)
    _refuse_unaligned(images)
    ignored = sum(map(_files, parts)) - sum(map(len, sources))
    in_gallery = None if len(parts) == 1 else part_of[order] == 0
    return IdentityFolder(images, identities, labels[order], in_gallery, ignored)


def assign_roles(
    folder: IdentityFolder, readable: np.ndarray, *, gallery_images: int = 1, unknown_share: float = 0.0, seed: int = 0
) -> Roles:
    """Decide which images are gallery and which are probes.

    An identity with no more than ``gallery_images`` images is in the gallery and has no probes. Images that cannot be
    read do not count.

    Args:
        folder: its images.
        readable: (N,) booleans.
        gallery_images: k; only where folders do not tell gallery and probes apart.
        unknown_share: share of the identities, in [0, 1), that are drawn to have no gallery, so that all their images
            are non-mated probes; only where folders do not tell them apart.
        seed: of that draw.

    Raises:
        ValueError: options that are out of range or do not fit the layout, fewer than two identities in the gallery,
            or no probe whose identity is in it.
    """
    if gallery_images < 1 or not 0 <= unknown_share < 1:
        raise ValueError(
            f"got {gallery_images} gallery images and an unknown share of {unknown_share:g}: expected from 1 on, and a "
            "number from 0 to below 1"
        )
    if folder.in_gallery is None:
        roles = _first_images(folder, readable, gallery_images, unknown_share, seed)
    elif gallery_images != 1 or unknown_share:
        raise ValueError(
            f"{folder.images.name} has folders {GALLERY} and {PROBE}, which say what is what: leave the number of "
            "gallery images and the share of unknown identities out"
        )
    else:
        roles = _by_folder(folder, readable)
    _refuse_unusable(folder, roles, gallery_images)
    return roles


def _parts(root: Path) -> list[Path]:
    """Return the folder itself, or its gallery and probes."""
    trees = [root / GALLERY, root / PROBE]
    found = [tree for tree in trees if tree.is_dir() and any(entry.is_dir() for entry in tree.iterdir())]
    if len(found) == 1:
        absent = next(tree for tree in trees if tree not in found)
        raise FileNotFoundError(
            f"{found[0]} holds identities, but there are none in {absent}: expected both, or <identity>/<image> in "
            f"{root}, which holds {listing(root)}"
        )
    return found or [root]


def _files(part: Path) -> int:
    """Count the files that lie where images are expected, whatever they are."""
    count = 0
    with os.scandir(part) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                with os.scandir(entry) as inside:
                    count += sum(file.is_file() for file in inside)
            else:
                count += entry.is_file() and entry.name != JOURNAL
    return count


def _refuse_unaligned(images: ImageFiles) -> None:
    """Raise where one of a few images is of another size; embedding counts those among all the others."""
    for index in np.unique(np.linspace(0, len(images) - 1, _TRIED).astype(int)):
        path = images.paths[index]
        try:
            height, width = read_color_image(path).shape[:2]
        except ValueError:
            continue  # embedding counts what cannot be read
        if (height, width) != IMAGE_SHAPE[:2]:
            raise ValueError(
                f"{path} is {width}x{height} px, expected aligned faces of 112x112. A photograph that is only resized "
                "is not aligned, and no model recognises it well: adaface align <photographs> <faces> aligns a "
                "tree of them"
            )


def _first_images(
    folder: IdentityFolder, readable: np.ndarray, gallery_images: int, unknown_share: float, seed: int
) -> Roles:
    counts = np.bincount(folder.labels[readable], minlength=len(folder.identities))
    there = np.flatnonzero(counts)
    unknown = np.zeros(len(counts), dtype=bool)
    if unknown_share:
        drawn = np.random.default_rng(seed).permutation(there)[: max(1, round(unknown_share * len(there)))]
        unknown[drawn] = True
    usable = np.flatnonzero(readable)
    labels = folder.labels[usable]  # ascending, so that an image's number in its identity is its distance to the first
    number = np.arange(len(labels)) - np.searchsorted(labels, labels)
    is_gallery = (number < gallery_images) & ~unknown[labels]
    gallery, probes = np.zeros_like(readable), np.zeros_like(readable)
    gallery[usable], probes[usable] = is_gallery, ~is_gallery
    notes = []
    single = int(((counts > 0) & (counts <= gallery_images) & ~unknown).sum())
    if single:
        notes.append(
            f"{single:,} of {len(there):,} identities have no more than {gallery_images} "
            f"image{'s' * (gallery_images > 1)}: they are in the gallery and have no probes"
        )
    if unknown_share:
        notes.append(f"{int(unknown.sum()):,} of {len(there):,} identities, drawn by seed {seed}, have no gallery")
    return Roles(gallery, probes, tuple(notes))


def _by_folder(folder: IdentityFolder, readable: np.ndarray) -> Roles:
    assert folder.in_gallery is not None
    gallery, probes = folder.in_gallery & readable, ~folder.in_gallery & readable
    lost = np.setdiff1d(folder.labels[folder.in_gallery], folder.labels[gallery])
    without_gallery = probes & np.isin(folder.labels, lost)
    notes: tuple[str, ...] = ()
    if without_gallery.any():  # not unknown people: to count them as non-mated would be wrong
        notes = (
            f"{len(lost):,} identities have no gallery image that can be read: their {int(without_gallery.sum()):,} "
            "probes are left out",
        )
    return Roles(gallery, probes & ~without_gallery, notes)


def _refuse_unusable(folder: IdentityFolder, roles: Roles, gallery_images: int) -> None:
    known, wanted = np.unique(folder.labels[roles.gallery]), np.unique(folder.labels[roles.probes])
    if len(known) < 2:
        raise ValueError(
            f"the gallery of {folder.images.name} has {len(known)} identities, identification needs at least 2"
        )
    if len(np.intersect1d(known, wanted)):
        return
    if folder.in_gallery is None:
        raise ValueError(
            f"no identity of {folder.images.name} has more than {gallery_images} "
            f"image{'s' * (gallery_images > 1)}, so that none is left as a probe: give a smaller number of gallery "
            "images, or more images"
        )
    names = [", ".join(folder.identities[i] for i in some[:_SHOWN]) or "nobody" for some in (known, wanted)]
    raise ValueError(
        f"no identity of {folder.images.name}/{PROBE} is in {folder.images.name}/{GALLERY}, so that no probe can be "
        f"identified: the first ones are {names[1]} and {names[0]}, the same person needs the same name in both"
    )
