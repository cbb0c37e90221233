"""A private folder of faces as an identification set: its images, and their roles as gallery or probe.

Two layouts are supported:

    <root>/<identity>/<image>            the first k images of an identity, by file name, are its gallery
    <root>/gallery/<identity>/<image>    the gallery
    <root>/probe/<identity>/<image>      the probes; those of identities without a gallery are non-mated
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.data.image_files import FolderListing, Skipped, holds_images, list_classes, report_skipped
from adaface.data.image_list import ImageFiles, read_color_image
from adaface.data.images import IMAGE_SHAPE
from adaface.data.sources.folder import FolderSource, listing
from adaface.system.command_line import counted

GALLERY, PROBE = "gallery", "probe"
_TRIED = 16
_SHOWN = 5


@dataclass(frozen=True)
class IdentityFolder:
    """The images of a private folder, grouped by identity, in the order of the identities' names.

    Attributes:
        images: the N files, aligned faces of 112x112.
        identities: names of the identities.
        labels: (N,) indices into ``identities``, ascending.
        in_gallery: (N,) booleans; None in the layout without gallery and probe folders.
        skipped: number of files that are not read.
    """

    images: ImageFiles
    identities: tuple[str, ...]
    labels: np.ndarray
    in_gallery: np.ndarray | None
    skipped: int


@dataclass(frozen=True)
class Roles:
    """The roles of the images of a folder.

    Attributes:
        gallery: (N,) booleans.
        probes: (N,) booleans; an image may be neither.
        notes: remarks on the data.
    """

    gallery: np.ndarray
    probes: np.ndarray
    notes: tuple[str, ...]


def open_identity_folder(root: Path, limit: int | None = None) -> IdentityFolder:
    """List the images of a private folder, and check the size of a few.

    Args:
        root: folder in one of the two layouts.
        limit: for a quick test: take identities in the order of their names until there are that many images.

    Raises:
        FileNotFoundError: there is no such folder, no identity in it, an identity without images, or ``gallery``
            without ``probe``.
        ValueError: images are not aligned faces, or the limit is out of range.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit must be at least 1 image, got {limit}")
    parts = parts_of(root)
    sources = [FolderSource(part) for part in parts]
    identities = tuple(sorted({name for source in sources for name in source.class_names}))
    place = {name: number for number, name in enumerate(identities)}
    labels = np.concatenate([np.array([place[n] for n in source.class_names])[source.labels] for source in sources])
    part_of = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
    within = np.concatenate([np.arange(len(source)) for source in sources])
    order = np.argsort(labels, kind="stable")  # the gallery of an identity comes first
    if limit is not None and limit < len(order):
        order = order[labels[order] <= labels[order][limit - 1]]
    paths = [Path(sources[part].path(index)) for part, index in zip(part_of[order], within[order], strict=True)]
    images = ImageFiles(root.resolve().name, paths)
    _refuse_unaligned(images)
    listings = [source.listing for source in sources] + ([_beside(root)] if len(parts) > 1 else [])
    skipped = [entry for found in listings for entry in found.skipped]
    report_skipped(FolderListing([], skipped, sum(found.litter for found in listings)), count=len(labels))
    in_gallery = None if len(parts) == 1 else part_of[order] == 0
    return IdentityFolder(images, identities, labels[order], in_gallery, len(skipped))


def assign_roles(
    folder: IdentityFolder, readable: np.ndarray, *, gallery_images: int = 1, unknown_share: float = 0.0, seed: int = 0
) -> Roles:
    """Assign images to gallery and probes.

    An identity with no more than ``gallery_images`` images is in the gallery and has no probes. Images that cannot be
    read do not count.

    Args:
        folder: the images.
        readable: (N,) booleans.
        gallery_images: number of gallery images of each identity; only in the layout without gallery folder.
        unknown_share: share of the identities, in [0, 1), that are drawn at random to have no gallery, so that all
            their images are non-mated probes; only in the layout without gallery folder.
        seed: random seed of that draw.

    Raises:
        ValueError: options are out of range or not applicable to the layout, fewer than two identities are in the
            gallery, or no probe has its identity in it.
    """
    if gallery_images < 1 or not 0 <= unknown_share < 1:
        raise ValueError(
            f"got {gallery_images} gallery images and an unknown share of {unknown_share:g}: expected at least 1, and "
            "a share in [0, 1)"
        )
    if folder.in_gallery is None:
        roles = _first_images(folder, readable, gallery_images, unknown_share, seed)
    elif gallery_images != 1 or unknown_share:
        raise ValueError(
            f"{folder.images.name} has folders {GALLERY} and {PROBE}, which define the roles: do not set the number of "
            "gallery images or the share of unknown identities"
        )
    else:
        roles = _by_folder(folder, readable)
    _refuse_unusable(folder, roles, gallery_images)
    return roles


def parts_of(root: Path) -> list[Path]:
    """Return the folder itself, or its gallery and probe folders.

    Args:
        root: as in ``open_identity_folder``.

    Raises:
        FileNotFoundError: only one of the two folders has identities.
    """
    trees = [root / GALLERY, root / PROBE]
    parts = [tree for tree in trees if tree.is_dir() and any(entry.is_dir() for entry in tree.iterdir())]
    if len(parts) == 1:
        absent = next(tree for tree in trees if tree not in parts)
        raise FileNotFoundError(
            f"{parts[0]} contains identities, but {absent} does not: expected both, or <identity>/<image> in "
            f"{root}, which contains {listing(root)}"
        )
    return parts or [root]


def _beside(root: Path) -> FolderListing:
    """List what is beside the gallery and probe folders, where no image is used."""
    folders, found = list_classes(root)
    others = [folder for folder in folders if folder not in (GALLERY, PROBE)]
    reason = f"a folder beside {GALLERY} and {PROBE}"
    skipped = [Skipped(folder, reason, holds_images(root / folder)) for folder in others]
    return FolderListing([], [*found.skipped, *skipped], found.litter)


def _refuse_unaligned(images: ImageFiles) -> None:
    """Raise ValueError if one of a few images has another size; embedding checks all of them later."""
    for index in np.unique(np.linspace(0, len(images) - 1, _TRIED).astype(int)):
        path = images.paths[index]
        try:
            height, width = read_color_image(path).shape[:2]
        except ValueError:
            continue  # embedding counts unreadable images
        if (height, width) != IMAGE_SHAPE[:2]:
            raise ValueError(
                f"{path} is {width}x{height} px, expected aligned faces of 112x112. A photograph that is only resized "
                "is not aligned, and models work poorly on it: adaface align <photographs> <faces> aligns a "
                "tree of them"
            )


def _first_images(
    folder: IdentityFolder, readable: np.ndarray, gallery_images: int, unknown_share: float, seed: int
) -> Roles:
    counts = np.bincount(folder.labels[readable], minlength=len(folder.identities))
    present = np.flatnonzero(counts)
    unknown = np.zeros(len(counts), dtype=bool)
    if unknown_share:
        drawn = np.random.default_rng(seed).permutation(present)[: max(1, round(unknown_share * len(present)))]
        unknown[drawn] = True
    usable = np.flatnonzero(readable)
    labels = folder.labels[usable]  # ascending: an image's number within its identity is its distance to the first
    number = np.arange(len(labels)) - np.searchsorted(labels, labels)
    is_gallery = (number < gallery_images) & ~unknown[labels]
    gallery, probes = np.zeros_like(readable), np.zeros_like(readable)
    gallery[usable], probes[usable] = is_gallery, ~is_gallery
    notes = []
    single = int(((counts > 0) & (counts <= gallery_images) & ~unknown).sum())
    if single:
        notes.append(
            f"{single:,} of {len(present):,} identities have no more than {gallery_images} "
            f"image{'s' * (gallery_images > 1)}: they are in the gallery and have no probes"
        )
    if unknown_share:
        notes.append(f"{int(unknown.sum()):,} of {len(present):,} identities, drawn by seed {seed}, have no gallery")
    return Roles(gallery, probes, tuple(notes))


def _by_folder(folder: IdentityFolder, readable: np.ndarray) -> Roles:
    assert folder.in_gallery is not None
    gallery, probes = folder.in_gallery & readable, ~folder.in_gallery & readable
    lost = np.setdiff1d(folder.labels[folder.in_gallery], folder.labels[gallery])
    without_gallery = probes & np.isin(folder.labels, lost)
    notes: tuple[str, ...] = ()
    if without_gallery.any():  # these are not unknown people, and must not count as non-mated
        notes = (
            f"{counted(len(lost), 'identity has', 'identities have')} no readable gallery image: "
            f"{counted(int(without_gallery.sum()), 'probe is', 'probes are')} left out",
        )
    return Roles(gallery, probes & ~without_gallery, notes)


def _refuse_unusable(folder: IdentityFolder, roles: Roles, gallery_images: int) -> None:
    known, probed = np.unique(folder.labels[roles.gallery]), np.unique(folder.labels[roles.probes])
    if len(known) < 2:
        raise ValueError(
            f"the gallery of {folder.images.name} has {counted(len(known), 'identity', 'identities')}, identification "
            "needs at least 2"
        )
    if len(np.intersect1d(known, probed)):
        return
    if folder.in_gallery is None:
        raise ValueError(
            f"no identity of {folder.images.name} has more than {gallery_images} "
            f"image{'s' * (gallery_images > 1)}, so that none is left as a probe: use fewer gallery "
            "images, or add images"
        )
    names = [", ".join(folder.identities[i] for i in some[:_SHOWN]) or "nobody" for some in (known, probed)]
    raise ValueError(
        f"no identity of {folder.images.name}/{PROBE} is in {folder.images.name}/{GALLERY}, so that no probe can be "
        f"identified (first names: {names[1]}; {names[0]}): use the same folder name for the same person in both"
    )
