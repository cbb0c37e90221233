r"""Convert face data sets: `.rec` to image folders, `.bin` to memory-mapped sets, and back; checkpoints too.

    python convert.py --rec_path <ROOT>/faces_emore                    # everything in the folder
    python convert.py --rec_path <ROOT>/faces_emore --make_image_files # only the training images
    python convert.py --rec_path <ROOT>/webface42m                     # train_0.rec, train_1.rec, ... -> one folder
    python convert.py --pack <IMAGE_FOLDER> --output <DIR>             # image folder -> train.rec
    python convert.py --pairs pairs.txt --images_root <DIR>            # pairs file -> .bin
    python convert.py --checkpoint <RUN>/last.ckpt --output one.ckpt   # sharded checkpoint -> single file

Source: the data layout of InsightFace and the official AdaFace converter (`imgs/<label>/<key>.jpg`).
Differences: encoded images are copied byte for byte (the official converter decodes and encodes them again,
and loses quality); validation sets become uint8 `.npy` files (the official float32 bcolz folders are written
with --validation_format bcolz); an interrupted conversion resumes. It resumes correctly after the program was
killed, but not necessarily after a power failure.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from adaface.conversion.pack import pack_folder, pack_pairs
from adaface.conversion.unpack_bin import convert_set
from adaface.conversion.unpack_rec import convert_images
from adaface.data.pair_sets import PAPER_SETS
from adaface.data.sources.folder import listing
from adaface.records.shards import find_records
from adaface.system.command_line import (
    DONE_WITH_PROBLEMS,
    counted,
    invocation,
    program_name,
    run_to_status,
    warnings_as_notes,
)
from adaface.system.files import refuse_existing
from adaface.system.locks import locked
from adaface.system.option_parser import Parser

_LISTED = 10
_JOBS = ("rec_path", "pack", "pairs", "checkpoint")


# --- command line ---------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog=invocation("convert"),
        description="Convert face data sets from the InsightFace format and back. train.rec is unpacked to "
        "imgs/<label>/<key>.jpg, train_0.rec, train_1.rec, ... to imgs/<label>/<shard>-<key>.jpg, and .bin files are "
        "converted to validation sets. --pack and --pairs create such files. Run the same command again to continue "
        "an interrupted conversion.",
    )
    forward = parser.add_argument_group("from InsightFace files")
    forward.add_argument(
        "--rec_path",
        metavar="DIR",
        help="folder with train.rec (or train_0.rec, train_1.rec, ...), their .idx and the .bin files",
    )
    forward.add_argument(
        "--make_image_files", action="store_true", help="convert only the training images, to DIR/imgs"
    )
    forward.add_argument(
        "--make_validation_memfiles", action="store_true", help="convert only the validation sets, DIR/*.bin"
    )
    forward.add_argument(
        "--validation_format",
        choices=("memfile", "bcolz"),
        default="memfile",
        help="format of the validation sets: memfile (default), uint8 .npy files that are read without decompression, "
        "or bcolz, the float32 folders of the official code",
    )
    forward.add_argument(
        "--swap_color_channel",
        action="store_true",
        help="swap red and blue, for images stored in the wrong channel order. JPEG images are decoded and encoded "
        "again at quality 95, 4:4:4, which is lossy; PNG images stay exact. Without this option, images are copied "
        "byte for byte",
    )
    forward.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="skip and report unusable images instead of stopping. Pairs of validation sets are never skipped",
    )
    back = parser.add_argument_group("to InsightFace files")
    back.add_argument(
        "--pack",
        metavar="IMAGE_FOLDER",
        help="write train.rec, train.idx and property from IMAGE_FOLDER/<class>/<image>, color images of 112x112 px. "
        "Labels follow the sorted class names; JPEG and PNG files are copied, other formats are converted to PNG",
    )
    back.add_argument(
        "--pairs",
        metavar="PAIRS_FILE",
        help="write a .bin from LFW's pairs.txt (images <name>/<name>_0001.jpg or .png) or from a CSV file with the "
        "columns path1,path2,same. Mix genuine and impostor pairs, because 10-fold cross-validation splits the pairs "
        "into consecutive tenths",
    )
    back.add_argument("--images_root", metavar="DIR", help="folder that the paths in PAIRS_FILE are relative to")
    back.add_argument(
        "--output",
        metavar="PATH",
        help="output folder of --pack (default: IMAGE_FOLDER_rec), .bin file of --pairs (default: next to PAIRS_FILE), "
        "or file of --checkpoint",
    )
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="convert a sharded checkpoint, which is a folder, to a single file that the official code can also read",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the output of an earlier conversion and convert again; by default, finished work is kept",
    )
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and cross-check the command line.

    Args:
        words: command-line arguments after the program's name.

    Returns:
        The options.

    Raises:
        ValueError: an unknown option, or contradictory options.
    """
    parser = build_parser()
    if any(word.partition("=")[0] == "--audit" for word in words):
        parser.error(f"--audit is now a separate command: {invocation('audit')} DATA")
    options = parser.parse(words)
    jobs = [name for name in _JOBS if getattr(options, name)]
    if len(jobs) != 1:
        got = ", ".join(f"--{job}" for job in jobs) or "none"
        parser.error(f"give one of {', '.join(f'--{job}' for job in _JOBS)}; got {got}")
    allowed = {
        "rec_path": {
            "make_image_files",
            "make_validation_memfiles",
            "validation_format",
            "swap_color_channel",
            "skip_bad_images",
        },
        "pack": {"output", "swap_color_channel", "skip_bad_images"},
        "pairs": {"images_root", "output", "swap_color_channel"},
        "checkpoint": {"output"},
    }[jobs[0]] | {jobs[0], "overwrite"}
    for name, value in vars(options).items():
        if name not in allowed and value != parser.get_default(name):
            parser.error(f"--{name} has no effect with --{jobs[0]}")
    if options.pairs and not options.images_root:
        parser.error("--pairs needs --images_root, the folder that its paths are relative to")
    if options.checkpoint and not options.output:
        parser.error("--checkpoint needs --output, the file to write")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after the program's name; None: those of the process.

    Returns:
        Exit status: 0 success, 1 unusable images skipped, announced images missing or converted ones gone, 2 error (one
        line on stderr), 130 interrupted.
    """

    def run() -> int:
        options = parse(sys.argv[1:] if words is None else words)
        jobs = {"pack": _run_pack, "pairs": _run_pairs, "checkpoint": _run_checkpoint, "rec_path": _run_conversion}
        with warnings_as_notes():
            skipped = next(job for name, job in jobs.items() if getattr(options, name))(options)
        return DONE_WITH_PROBLEMS if skipped else 0

    return run_to_status(
        program_name("convert"), run, stopped="no file is incomplete; run the same command to continue"
    )


def _run_checkpoint(options: argparse.Namespace) -> int:
    """Write a checkpoint folder as a single file; return 0, nothing is skipped."""
    if not options.overwrite:
        refuse_existing(Path(options.output))  # before the work
    # importing PyTorch takes seconds, and only this job needs it
    from adaface.checkpoints.sharded import export_single_file

    export_single_file(options.checkpoint, options.output, overwrite=options.overwrite)
    print(f"{options.output}: {Path(options.output).stat().st_size / 1e6:,.1f} MB")
    return 0


# --- .rec and .bin of one folder --------------------------------------------------------------------------------


def _run_conversion(options: argparse.Namespace) -> int:
    """Convert the requested files of an InsightFace folder, or all of them; return the number of skipped images."""
    folder = Path(options.rec_path)
    if not folder.is_dir():
        raise FileNotFoundError(f"--rec_path {folder} is not a folder; give the folder that contains train.rec")
    everything = options.make_image_files == options.make_validation_memfiles
    bins = _bin_files(folder)
    want_images = everything or options.make_image_files
    want_sets = everything or options.make_validation_memfiles
    recs = find_records(folder) if want_images else []
    if (want_images and not recs and not (everything and bins)) or (want_sets and not everything and not bins):
        wanted = "train.rec or *.bin" if everything else "train.rec" if want_images else "*.bin"
        raise FileNotFoundError(f"{folder} contains no {wanted}; found: {listing(folder)}")
    with locked(folder, f"another conversion of {folder} is running; wait for it, or stop it"):
        skipped = 0
        if recs:
            skipped = convert_images(
                recs, folder / "imgs", options.swap_color_channel, options.skip_bad_images, options.overwrite
            )
        elif want_images:
            print(f"no train.rec in {folder}: only its validation sets are converted")
        if want_sets:
            for path in bins:
                convert_set(path, options.validation_format, options.swap_color_channel, options.overwrite)
            if not bins:
                print(f"no .bin in {folder}: no validation sets to convert")
    _say_next(folder)
    return skipped


def _bin_files(folder: Path) -> list[Path]:
    """List the `.bin` files of a folder, the paper's sets first."""
    order = {name: rank for rank, name in enumerate(PAPER_SETS)}
    found = [path for path in folder.glob("*.bin") if path.is_file() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (order.get(path.stem, len(order)), path.stem))


def _say_next(folder: Path) -> None:
    """Print the command that trains on the converted data."""
    root, name = folder.resolve().parent, folder.resolve().name
    train = f" --train_data_path {shlex.quote(name)}" + ("/imgs" if (folder / "imgs").is_dir() else "")
    print(
        f"next: {invocation('train')} --data_root {shlex.quote(str(root))}{train} "
        f"--val_data_path {shlex.quote(name)} ..."
    )


# --- image files to .rec and .bin -------------------------------------------------------------------------------


def _run_pack(options: argparse.Namespace) -> int:
    """Image folder -> train.rec, train.idx, property; return the number of skipped images."""
    source = Path(options.pack)
    output = Path(options.output) if options.output else source.with_name(source.resolve().name + "_rec")
    started = time.monotonic()
    result = pack_folder(
        source, output, swap=options.swap_color_channel, skip_bad=options.skip_bad_images, overwrite=options.overwrite
    )
    print(
        f"{output / 'train.rec'}: {counted(result.images, 'image', 'images')}, "
        f"{counted(result.identities, 'identity', 'identities')}, "
        f"{time.monotonic() - started:.1f} s, {len(result.skipped)} skipped"
    )
    for reason in result.skipped[:_LISTED]:
        print(f"skipped: {reason}")
    if len(result.skipped) > _LISTED:
        print(f"skipped: {len(result.skipped) - _LISTED} more")
    _say_next(output)
    return len(result.skipped)


def _run_pairs(options: argparse.Namespace) -> int:
    """Pairs file -> `.bin`; return 0, no pair is skipped."""
    source = Path(options.pairs)
    output = Path(options.output) if options.output else source.with_suffix(".bin")
    started = time.monotonic()
    same, different = pack_pairs(
        source, Path(options.images_root), output, swap=options.swap_color_channel, overwrite=options.overwrite
    )
    print(f"{output}: {same + different:,} pairs ({same:,} same), {time.monotonic() - started:.1f} s")
    print(
        f"next: {invocation('convert')} --rec_path {shlex.quote(str(output.resolve().parent))} "
        "--make_validation_memfiles"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
