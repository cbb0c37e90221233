r"""Export a trained model to ONNX. The file is written only after its outputs match PyTorch's on face images.

    adaface export --checkpoint experiments/default_11-24_0/best.ckpt --output model.onnx
    adaface export --checkpoint adaface_ir50_ms1mv2.ckpt --output model.onnx --verify_images <aligned faces> \
        --int8 --calibration_images <aligned faces> --test_set faces_emore/lfw.bin

The input of the graph is `images`, (B, 3, 112, 112) float32, normalized, in the color order given by the metadata. The
outputs are `embedding` (B, 512), unit vectors, and `norm` (B, 1), for any B. The metadata, JSON under the key
`adaface`, contains architecture, color order, size, mean, std, the landmark template of the alignment, the stored
threshold, commit and fingerprint of the weights; the other commands read it. `--int8` writes a second file,
`model_int8.onnx`.

No file is written if the cosine between an embedding and PyTorch's is below 0.99999 for any image, or if norms differ
by more than 0.1 %. No INT8 file is written if its embeddings are far from the FP32 ones, or if it loses more accuracy
on `--test_set` than `--most_accuracy_loss`.
"""

import argparse
from pathlib import Path

from adaface.commands.model_options import check_model_file
from adaface.config.choices import COLORS, FEWEST_IMAGES, MOST_IMAGES
from adaface.models.names import ARCHITECTURE_NAMES
from adaface.system.command_line import invocation
from adaface.system.files import check_writable
from adaface.system.option_parser import Parser

MOST_ACCURACY_LOSS = 1.0
VERIFIED = 32  # images


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=invocation("export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        required=True,
        help="checkpoint of this project or the official code; a file, or the folder of a sharded checkpoint",
    )
    parser.add_argument(
        "--color",
        choices=COLORS,
        help="color order that the network takes, for weights of another program, which do not store it",
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="ONNX file to write")
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help=f"architecture: {', '.join(ARCHITECTURE_NAMES)}, or timm:<name> (default: stored in the checkpoint)",
    )
    parser.add_argument(
        "--verify_images",
        metavar="PATH",
        help=f"folder or .bin of aligned faces, {VERIFIED} of which are used to compare the outputs with PyTorch's "
        "(default: synthetic faces)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write <output>_int8.onnx, quantized to 8-bit integers for CPUs, a quarter of the size",
    )
    parser.add_argument(
        "--calibration_images",
        metavar="PATH",
        help="folder or .bin of aligned faces like those in your application, to calibrate --int8; at least "
        f"{FEWEST_IMAGES} are needed, at most {MOST_IMAGES} are used",
    )
    parser.add_argument(
        "--test_set",
        metavar="FILE",
        help="verification set (.bin) on which to print the 10-fold accuracies of the FP32 and INT8 models",
    )
    parser.add_argument(
        "--most_accuracy_loss",
        type=float,
        metavar="POINTS",
        help="maximum loss of accuracy of INT8 on --test_set, in percentage points; the file is not written if it "
        f"loses more (default: {MOST_ACCURACY_LOSS:g})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and cross-check the command line.

    Args:
        words: command-line arguments after the program's name.

    Returns:
        The options.

    Raises:
        ValueError: an unknown option, contradictory options, or an output file that cannot be written.
    """
    parser = build_parser()
    options = parser.parse(words)
    for name in ("calibration_images", "test_set"):
        if getattr(options, name) and not options.int8:
            parser.error(f"--{name} has no effect without --int8")
    if options.int8 and not options.calibration_images:
        parser.error(f"--int8 needs --calibration_images, at least {FEWEST_IMAGES} aligned faces: a folder or a .bin")
    if options.most_accuracy_loss is not None and not options.test_set:
        parser.error("--most_accuracy_loss has no effect without --test_set")
    if options.most_accuracy_loss is None:
        options.most_accuracy_loss = MOST_ACCURACY_LOSS
    if not 0 <= options.most_accuracy_loss <= 100:
        parser.error(
            f"--most_accuracy_loss must be between 0 and 100 percentage points, got {options.most_accuracy_loss:g}"
        )
    _check_outputs(options)
    return options


def check_paths(options: argparse.Namespace) -> None:
    """Raise FileNotFoundError if the checkpoint or the images do not exist, before PyTorch is imported.

    Args:
        options: of ``parse``.
    """
    check_model_file(options)
    for name in ("verify_images", "calibration_images", "test_set"):
        path = getattr(options, name)
        if path and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no {path}")


def int8_file(output: Path) -> Path:
    """Return the path of the INT8 file, next to the FP32 file.

    Args:
        output: the FP32 file.
    """
    return output.with_name(f"{output.stem}_int8.onnx")


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise an error before anything is computed if a file cannot be written or already exists."""
    output = Path(options.output)
    if output.suffix != ".onnx":
        raise ValueError(f"--output {output} must end in .onnx")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}; create it first")
    check_writable(output.parent, f"--output {output}: the folder {output.parent}")
    for file in [output, int8_file(output)] if options.int8 else [output]:
        if file.is_dir():
            raise ValueError(f"{file} is a folder, but --output must be a file")
        of_killed_export = options.int8 and file == output and not int8_file(output).exists()  # compared when written
        if file.exists() and not options.overwrite and not of_killed_export:
            raise ValueError(f"{file} exists; give --overwrite to replace it, or another --output")
