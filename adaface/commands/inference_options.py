r"""Use a trained or published model on faces.

    adaface compare a.jpg b.jpg --model adaface_ir101_webface12m --save picture.png
    adaface embed <faces> --out faces.npz --checkpoint experiments/default_11-24_0/best.ckpt
    adaface search faces.npz c.jpg --top 5 --csv found.csv --model adaface_ir101_webface12m
    adaface group <PHOTOGRAPHS> --align --csv people.csv --save people.png --model adaface_ir101_webface12m
    adaface serve --model adaface_ir101_webface12m

Images must be faces aligned to 112x112 px, or photographs with --align; the page of ``serve`` takes photographs.
Similarities are cosines. The quality of a face is the norm of its embedding, AdaFace's measure of image quality; it can
be compared between images, not between models. ``adaface COMMAND --help`` shows all options.
"""

import argparse
from pathlib import Path

from adaface.commands.model_options import (
    add_accelerator_option,
    add_model_options,
    check_model_file,
    check_model_options,
)
from adaface.config.choices import CACHE, EMBEDDINGS_SUFFIX, MOST_DRAWN, MOST_UNREADABLE
from adaface.system.command_line import check_packages, invocation
from adaface.system.files import check_output_folder, check_writable
from adaface.system.option_parser import Parser

HOST, PORT, MOST_PORT = "127.0.0.1", 8000, 65535
BATCH_SIZE = 64
_SERVING = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module: package
_IMAGES_TEXT = "Images must be faces aligned to 112x112 px, or photographs with --align."


def build_parsers() -> tuple[Parser, dict[str, Parser]]:
    """Build the command line's parser, and those of its commands by name."""
    parser = Parser(
        prog=invocation(""),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        listed="commands",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    compare = commands.add_parser(
        "compare", help="similarities of face images, and decisions",
        description="Print the cosine similarities of face images and, if there is a threshold, whether they show the "
        f"same person. {_IMAGES_TEXT}",
    )  # fmt: skip
    compare.add_argument("images", nargs="+", metavar="IMAGE", help="two or more image files")
    compare.add_argument("--save", metavar="PNG", help="save a plot of the faces and their similarities to this file")
    embed = commands.add_parser(
        "embed", help="embeddings of all images of a folder, in one file",
        description=f"Compute the embeddings of all images in a folder and save them to one file. {_IMAGES_TEXT}",
    )  # fmt: skip
    embed.add_argument("folder", metavar="FOLDER", help="folder of images, at any depth")
    embed.add_argument(
        "--out", required=True, metavar="NPZ", help="output file (.npz) with names, embeddings, norms and model"
    )
    search = commands.add_parser(
        "search", help="most similar faces in a gallery",
        description=f"Find the faces in a gallery that are most similar to each probe image. {_IMAGES_TEXT}",
    )  # fmt: skip
    search.add_argument("gallery", metavar="GALLERY", help="folder of images, or .npz file of adaface embed")
    search.add_argument(
        "probes", nargs="+", metavar="PROBE", help="image file, folder of images, or .npz file of adaface embed"
    )
    search.add_argument(
        "--top", type=int, default=5, metavar="K", help="number of gallery faces to print per probe (default: 5)"
    )
    search.add_argument("--csv", metavar="CSV", help="save the results to this file")
    group = commands.add_parser(
        "group", help="group the faces of a folder by person",
        description="Group the faces of a folder by person: two groups are the same person if the mean similarity "
        f"between their faces is at least the threshold. {_IMAGES_TEXT}",
    )  # fmt: skip
    group.add_argument("folder", metavar="FOLDER", help="folder of images, at any depth")
    group.add_argument(
        "--csv", default="people.csv", metavar="CSV", help="table of faces and groups (default: people.csv)"
    )
    group.add_argument(
        "--save", default="people.png", metavar="PNG",
        help="contact sheet: the faces of each group, the most typical first (default: people.png)",
    )  # fmt: skip
    group.add_argument(
        "--folders", metavar="DIR", help="also copy the images into this new folder, with one subfolder per person"
    )
    page = commands.add_parser(
        "serve", help="web page that compares two photographs",
        description="Serve a web page that detects the faces in two photographs and compares them. Stop the server "
        "with Ctrl-C.",
    )  # fmt: skip
    page.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"port of the page (default: {PORT}; 0: any free port)"
    )
    page.add_argument(
        "--host", default=HOST,
        help=f"name or address to listen on (default: {HOST}, this machine only; 0.0.0.0: all network interfaces)",
    )  # fmt: skip
    for command in (compare, search, group, page):
        command.add_argument(
            "--threshold", type=float, default=None, metavar="COSINE",
            help="minimum cosine for the same person, -1 to 1 (default: the threshold stored in the model, if "
            "any)",
        )  # fmt: skip
    for command in (embed, search, group):
        _add_list_options(command)
    for command in (compare, embed, search, group):
        _add_image_options(command)
    for command in (compare, embed, search, group, page):
        options = command.add_argument_group("model")
        add_model_options(options)
        add_accelerator_option(options)
    return parser, {"compare": compare, "embed": embed, "search": search, "group": group, "serve": page}


def _add_list_options(command: Parser) -> None:
    command.add_argument(
        "--cache", default=CACHE, metavar="DIR",
        help="folder that caches embeddings, so that an interrupted command can be continued; '' disables the cache "
        f"(default: {CACHE})",
    )  # fmt: skip
    command.add_argument(
        "--most_unreadable", type=float, default=None, metavar="FRACTION",
        help=f"maximum fraction of unreadable images in a folder, 0 to 1 (default: {MOST_UNREADABLE}; 1 with --align, "
        "where photographs without a face are left out)",
    )  # fmt: skip


def _add_image_options(command: Parser) -> None:
    command.add_argument(
        "--align", action="store_true", help="detect and align the largest face of each image; use it for photographs"
    )
    command.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, metavar="N", help=f"images per batch (default: {BATCH_SIZE})"
    )


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Args:
        words: command-line arguments after `adaface`.

    Raises:
        ValueError: an unknown command or option, or an invalid value.
    """
    parser, commands = build_parsers()
    if not words or words[0] not in commands:
        return parser.parse(words)  # help, or the error
    command = commands[words[0]]
    options = command.parse(words[1:])
    options.command = words[0]
    check_model_options(options)
    _check_values(command, options)
    return options


def check_paths(options: argparse.Namespace) -> None:
    """Raise an error for a model, images or a cache that cannot be used, before PyTorch is imported.

    Args:
        options: of ``parse``.

    Raises:
        FileNotFoundError: the model or the images do not exist.
        ValueError: a file is not what it is given for.
        RuntimeError: a published model cannot be downloaded.
        OSError: the cache is not writable.
    """
    check_model_file(options)
    if options.command == "serve":
        return
    from adaface.inference.sample_images import check_gallery, check_image_file, check_image_folder  # with OpenCV

    if options.command == "compare":
        _check_images(options)
    elif options.command == "search":
        check_gallery(Path(options.gallery))
        for path in map(Path, options.probes):
            (check_gallery if path.is_dir() or path.suffix == EMBEDDINGS_SUFFIX else check_image_file)(path)
    else:
        check_image_folder(Path(options.folder))
    if getattr(options, "cache", ""):
        check_output_folder(Path(options.cache), "--cache")


def _check_images(options: argparse.Namespace) -> None:
    """Read the faces of ``compare``, few and small files; photographs take longer."""
    from adaface.data.image_list import ImageFiles
    from adaface.inference.sample_images import check_image_file
    from adaface.system.quiet import quiet_decoders

    paths = [Path(path) for path in options.images]
    for path in paths:
        check_image_file(path)
    with quiet_decoders():
        for index, path in enumerate(paths):
            if path.is_file() and not options.align:  # a pipe can be read only once
                ImageFiles("images", paths).read(index)


def check_new_folder(folder: Path) -> None:
    """Raise FileExistsError if the folder of ``--folders`` exists and is not empty.

    Args:
        folder: path given by the user.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--folders {folder} exists, expected a new folder")


def _check_values(command: Parser, options: argparse.Namespace) -> None:
    if not -1 <= (getattr(options, "threshold", None) or 0) <= 1:
        command.error(f"the threshold {options.threshold} (set by --threshold) is not a cosine from -1 to 1")
    if getattr(options, "batch_size", 1) < 1:
        command.error(f"--batch_size must be at least 1, got {options.batch_size}")
    if options.command == "compare" and len(options.images) < 2:
        command.error("give two or more images to compare")
    if options.command == "compare" and options.save and len(options.images) > MOST_DRAWN:
        command.error(f"--save draws at most {MOST_DRAWN} faces, got {len(options.images)} images")
    if options.command == "search" and options.top < 1:
        command.error(f"--top must be at least 1, got {options.top}")
    if options.command == "serve" and not 0 <= options.port <= MOST_PORT:
        command.error(f"--port must be between 0 and {MOST_PORT}, got {options.port}")
    if options.command == "serve":
        check_packages("the page", _SERVING)
    if not 0 <= (getattr(options, "most_unreadable", None) or 0) <= 1:
        command.error(f"--most_unreadable must be between 0 and 1, got {options.most_unreadable}")
    for name, ending in {"save": ".png", "out": EMBEDDINGS_SUFFIX, "csv": ".csv"}.items():
        if getattr(options, name, None) is None:
            continue
        file = Path(getattr(options, name))
        if file.suffix != ending:
            command.error(f"--{name} {file} must be a file name that ends in {ending}")
        if file.is_dir():
            command.error(f"--{name} {file} is a folder, expected a file")
        if not file.parent.is_dir():
            command.error(f"--{name} {file}: there is no folder {file.parent}")
        check_writable(file.parent, f"--{name} {file}: the folder {file.parent}")
    if options.command == "group":
        _check_group(command, options)


def _check_group(command: Parser, options: argparse.Namespace) -> None:
    for name in ("save", "folders"):
        path = getattr(options, name)
        if path and Path(options.folder).resolve() in Path(path).resolve().parents:
            command.error(
                f"--{name} {path} lies in {options.folder}, so that the next run would take it for one of the images: "
                f"give another --{name}"
            )
    if not options.folders:
        return
    folder = Path(options.folders)
    check_new_folder(folder)
    if not folder.absolute().parent.is_dir():
        command.error(f"--folders {folder}: there is no folder {folder.parent}")
    check_writable(folder.absolute().parent, f"--folders {folder}: the folder {folder.parent}")
