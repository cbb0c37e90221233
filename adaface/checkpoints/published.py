"""The models published with the paper: architecture, training set, file and accuracy.

Source: the tables of the official AdaFace repository (accuracy, TAR at FAR 1e-4, rank-1 and rank-5, in percent), and
the Google Drive files that it links to; the numbers of identities are those of its training code.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaface.system.command_line import nearest

FOLDER_VARIABLE = "ADAFACE_MODELS"
_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)/([\w./-]+)")
_SETS = ("lfw", "cfp_fp", "cplfw", "calfw", "agedb_30", "ijbb", "ijbc")
IDENTITIES = {  # of training sets
    "CASIA-WebFace": 10_572,
    "VGGFace2": 9_131,
    "MS1MV2": 85_742,
    "MS1MV3": 93_431,
    "WebFace4M": 205_990,
    "WebFace12M": 617_970,
    "WebFace42M": 2_059_906,
    "the subset of MS1MV2": 70_722,
}
RANK_1, RANK_5 = "tinyface rank-1", "tinyface rank-5"


@dataclass(frozen=True)
class PublishedModel:
    """A model of the paper.

    Attributes:
        arch: backbone.
        data: training set.
        file: name of the published checkpoint.
        drive_id: ID of that file on Google Drive.
        numbers: percent for each set: mean 10-fold accuracy; TAR at FAR 1e-4 for ``ijbb`` and ``ijbc``; two ranks for
            TinyFace.
    """

    arch: str
    data: str
    file: str
    drive_id: str
    numbers: Mapping[str, float]

    @property
    def name(self) -> str:
        """Architecture and training set."""
        return f"{self.arch} {self.data}"

    @property
    def stem(self) -> str:
        """File name without extension, as ``--model`` takes it."""
        return self.file.removesuffix(".ckpt")


def _model(arch: str, data: str, file: str, drive_id: str, figures: str, tinyface: str = "") -> PublishedModel:
    numbers = dict(zip(_SETS, map(float, figures.split()), strict=False))
    numbers |= dict(zip((RANK_1, RANK_5), map(float, tinyface.split()), strict=False))
    return PublishedModel(arch, data, file, drive_id, numbers)


PUBLISHED = (
    _model("ir_18", "CASIA-WebFace", "adaface_ir18_casia.ckpt",
           "1BURBDplf2bXpmwOL1WVzqtaVmQl9NpPe", "99.13 92.59 87.00 92.65 92.72"),
    _model("ir_18", "VGGFace2", "adaface_ir18_vgg2.ckpt",
           "1k7onoJusC0xjqfjB-hNNaxz9u6eEzFdv", "99.47 97.13 91.72 93.90 94.07 90.67 92.95"),
    _model("ir_18", "WebFace4M", "adaface_ir18_webface4m.ckpt",
           "1J17_QW1Oq00EhSWObISnhWEYr2NNrg2y", "99.53 97.26 92.28 95.52 96.47 93.03 94.99"),
    _model("ir_50", "CASIA-WebFace", "adaface_ir50_casia.ckpt",
           "1g1qdg7_HSzkue7_VrW64fnWuHl0YL2C2", "99.42 96.41 89.97 93.23 94.38"),
    _model("ir_50", "MS1MV2", "adaface_ir50_ms1mv2.ckpt",
           "1eUaSHG4pGlIZK7hBkqjyp2fc2epKoBvI", "99.82 97.86 92.83 96.07 97.85 94.82 96.27"),
    _model("ir_50", "WebFace4M", "adaface_ir50_webface4m.ckpt",
           "1BmDRrhPsHSbXcWZoYFPJg2KJn1sd3QpN", "99.78 98.97 94.17 95.98 97.78 95.44 96.98"),
    _model("ir_101", "MS1MV2", "adaface_ir101_ms1mv2.ckpt",
           "1m757p4-tUU5xlSHLaO04sqnhvqankimN", "99.82 98.49 93.53 96.08 98.05 95.67 96.89", "68.21 71.54"),
    _model("ir_101", "MS1MV3", "adaface_ir101_ms1mv3.ckpt",
           "1hRI8YhlfTx2YMzyDwsqLTOxbyFVOqpSI", "99.78 98.91 93.93 96.02 98.17 95.84 97.09"),
    _model("ir_101", "WebFace4M", "adaface_ir101_webface4m.ckpt",
           "18jQkqB0avFqWa0Pas52g54xNshUOQJpQ", "99.80 99.17 94.63 96.05 97.90 96.03 97.39", "72.02 74.52"),
    _model("ir_101", "WebFace12M", "adaface_ir101_webface12m.ckpt",
           "1dswnavflETcnAuplZj1IOKKP0eM8ITgT", "99.82 99.26 94.57 96.12 98.00 96.41 97.66", "72.29 74.97"),
)  # fmt: skip


def published_by_name(name: str) -> PublishedModel:
    """Return a published model by name.

    Args:
        name: file name, with or without ``.ckpt``; case does not matter.

    Raises:
        ValueError: no such model; the message suggests the nearest one and lists all, or names the option for a file.
    """
    by_stem = {model.stem: model for model in PUBLISHED}
    stem = name.lower().removesuffix(".ckpt")
    if stem in by_stem:
        return by_stem[stem]
    if Path(name).is_file():
        raise ValueError(f"{name} is a file, not the name of a published model: give --checkpoint {name}")
    hint = nearest(stem, by_stem, always=f"choose from: {', '.join(by_stem)}")
    raise ValueError(f"there is no published model {name!r}; {hint}")


@dataclass(frozen=True)
class ModelSource:
    """The local and remote location of a named model.

    Attributes:
        name: the requested name.
        path: of the file on this machine, which may not exist yet.
        arch: its architecture; None if the name does not determine it.
        data: its training set, a key of ``IDENTITIES``; None for a file on the hub.
        address: web address for a manual download.
        drive_id: file ID on Google Drive; empty for a file on the hub.
        hub: repository and file on the hub; empty for a file on Google Drive.
    """

    name: str
    path: Path
    arch: str | None
    data: str | None
    address: str
    drive_id: str = ""
    hub: tuple[str, str] = ("", "")

    @property
    def package(self) -> str:
        """The optional package that downloads the file."""
        return "gdown" if self.drive_id else "huggingface_hub"

    @property
    def by_hand(self) -> str:
        """What to do without it."""
        return f"download it from {self.address} and save it as {self.path}"

    def not_downloadable(self) -> RuntimeError:
        """Return the error for a file that does not exist, without the package."""
        return RuntimeError(
            f"{self.name} is not on this machine, and downloading needs a package: pip install {self.package}; or "
            f"{self.by_hand}"
        )


def models_folder() -> Path:
    """Return the folder of the published models: ``ADAFACE_MODELS``, or ``~/.cache/adaface/models``."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "adaface" / "models")


def locate(name: str) -> ModelSource:
    """Return the location of a named model, without checking whether the file exists.

    Args:
        name: a published model, or ``hf:<owner>/<repository>/<file>``.

    Raises:
        ValueError: unknown name; the message suggests the nearest one and lists all.
    """
    folder = models_folder()
    if not name.startswith("hf:"):
        model = published_by_name(name)
        address = f"https://drive.google.com/file/d/{model.drive_id}"
        return ModelSource(name, folder / model.file, model.arch, model.data, address, drive_id=model.drive_id)
    match = _HUB.fullmatch(name)
    if match is None or {"", ".", ".."} & set(name[3:].split("/")) or not name.endswith(".ckpt"):
        raise ValueError(f"{name!r} is not a file on the hub: expected hf:<owner>/<repository>/<file>.ckpt")
    repository, file = match.groups()
    arch = {model.file: model.arch for model in PUBLISHED}.get(Path(file).name)
    address = f"https://huggingface.co/{repository}/resolve/main/{file}"
    return ModelSource(name, folder / "hf" / repository / file, arch, None, address, hub=(repository, file))


def check_available(name: str) -> ModelSource:
    """Return the location of a named model whose file exists, or can be downloaded.

    Args:
        name: as of ``locate``.

    Raises:
        ValueError: unknown name.
        RuntimeError: the file does not exist, and the package that downloads it is not installed.
    """
    source = locate(name)
    imported = source.package in sys.modules
    spec = sys.modules[source.package] if imported else importlib.util.find_spec(source.package)
    if spec is None and not source.path.exists():
        raise source.not_downloadable()
    return source
