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
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from adaface.alignment.warp import ARCFACE_TEMPLATE
from adaface.checkpoints.run_folder import describe_environment
from adaface.data.pair_sets import PairSet
from adaface.export.graph import OPSET, set_metadata, to_onnx
from adaface.export.int8 import FEWEST_IMAGES, LEAST_MEAN_COSINE, MOST_IMAGES, check_enough, quantize
from adaface.export.network import OnnxNetwork, load_network
from adaface.export.parity import compare_networks, compare_with_pytorch
from adaface.inference.embedder import Description, read_model
from adaface.inference.sample_images import drawn_faces, read_pair_set, read_sample
from adaface.metrics.results import evaluate_set
from adaface.models.backbone import IMAGE_SIZE
from adaface.models.registry import ARCHITECTURES, check_architecture
from adaface.system.command_line import Parser, check_packages, invocation, program_name, run_to_status
from adaface.system.files import atomic_file, check_writable

MOST_ACCURACY_LOSS = 1.0
_VERIFIED = 32  # images
_BATCH = 64
_DIGITS_OF_PERCENT = 1e-9


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=invocation("export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        required=True,
        help="checkpoint, of this project or the official code, file or folder",
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="ONNX file to write")
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help=f"architecture (default: that of the checkpoint): {', '.join(ARCHITECTURES)}, or timm:<name>",
    )
    parser.add_argument(
        "--verify_images",
        metavar="PATH",
        help=f"folder or .bin of aligned faces, {_VERIFIED} of which are used to compare the outputs with PyTorch "
        "(default: synthetic faces)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write <output>_int8.onnx: 8-bit integers for CPUs, a quarter of the size",
    )
    parser.add_argument(
        "--calibration_images",
        metavar="PATH",
        help="folder or .bin of aligned faces like those in your application, to calibrate the value ranges of "
        f"--int8; at least {FEWEST_IMAGES} are needed, at most {MOST_IMAGES} are used",
    )
    parser.add_argument(
        "--test_set",
        metavar="FILE",
        help=".bin of a verification set: print the 10-fold accuracies of the INT8 and the FP32 file on it",
    )
    parser.add_argument(
        "--most_accuracy_loss",
        type=float,
        metavar="POINTS",
        help="maximum loss of accuracy of INT8 on --test_set, in percentage points; above it, the file is not written "
        f"(default: {MOST_ACCURACY_LOSS:g})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and cross-check the command line.

    Args:
        words: what follows the program's name.

    Returns:
        The options.

    Raises:
        ValueError: unknown option, options that do not belong together, or a file that cannot be written there.
    """
    parser = build_parser()
    options = parser.parse(words)
    for name in ("calibration_images", "test_set"):
        if getattr(options, name) and not options.int8:
            parser.error(f"--{name} has no meaning without --int8")
    if options.int8 and not options.calibration_images:
        parser.error(f"--int8 needs --calibration_images, at least {FEWEST_IMAGES} aligned faces: a folder or a .bin")
    if options.most_accuracy_loss is not None and not options.test_set:
        parser.error("--most_accuracy_loss has no meaning without --test_set")
    if options.most_accuracy_loss is None:
        options.most_accuracy_loss = MOST_ACCURACY_LOSS
    if not 0 <= options.most_accuracy_loss <= 100:
        parser.error(f"--most_accuracy_loss is {options.most_accuracy_loss:g}, expected points from 0 to 100")
    if options.arch:
        check_architecture(options.arch)
    _check_outputs(options)
    return options


def int8_file(output: Path) -> Path:
    """Return where the INT8 file goes: beside the other one.

    Args:
        output: the FP32 file.
    """
    return output.with_name(f"{output.stem}_int8.onnx")


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise ValueError where a file cannot, or must not, be written; before anything is computed."""
    output = Path(options.output)
    if output.suffix != ".onnx":
        raise ValueError(f"--output {output} must end in .onnx")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}; make it first")
    check_writable(output.parent, f"--output {output}: the folder {output.parent}")
    for file in [output, int8_file(output)] if options.int8 else [output]:
        if file.is_dir():
            raise ValueError(f"{file} is a folder, --output is the file to write")
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file} exists; give --overwrite to replace it, or another --output")


def export(options: argparse.Namespace) -> None:
    """Write what was asked for, each file only after it was compared.

    Args:
        options: of ``parse``.

    Raises:
        FileNotFoundError: no checkpoint, or no images.
        ValueError: not a checkpoint, unusable images, or an export that is refused.
        RuntimeError: a package of the extra ``[export]`` is not installed.
        OSError: a file cannot be written; what was there before is untouched.
    """
    check_packages("the export", {"onnxscript": "onnxscript"})
    model, told = read_model(options.checkpoint, options.arch)
    in_order = _to_network_order(told)
    chosen = options.verify_images
    faces = in_order(read_sample(chosen, _VERIFIED) if chosen else drawn_faces(_VERIFIED))
    calibration = in_order(read_sample(options.calibration_images, MOST_IMAGES)) if options.int8 else None
    if calibration is not None:
        check_enough(len(calibration))
    test_set = read_pair_set(options.test_set) if options.test_set else None

    output = Path(options.output)
    graph = to_onnx(model)
    set_metadata(graph, _metadata(told, "fp32"))

    def same_as_pytorch(network: OnnxNetwork) -> str:
        parity = compare_with_pytorch(model, network, faces, told.input_format)
        parity.check()
        return f"against PyTorch, {'' if chosen else 'drawn faces, '}{parity.line()}"

    _write(graph, output, same_as_pytorch)
    if calibration is None:
        return
    reference = load_network(output)[0]
    print(f"calibrating on {len(calibration)} images ...", flush=True)
    quantised = quantize(graph, calibration, reference)
    set_metadata(quantised, _metadata(told, "int8"))

    def near_fp32(network: OnnxNetwork) -> str:
        parity = compare_networks(reference, network, faces)
        if not parity.mean_cosine >= LEAST_MEAN_COSINE:
            raise ValueError(
                f"refused: INT8 is far from FP32 ({parity.line()}; expected {LEAST_MEAN_COSINE} on average). No file "
                f"{int8_file(output)} was written. --calibration_images must be aligned faces, like those to verify on"
            )
        lines = [f"against {output.name}, {parity.line()}"]
        if test_set is not None:
            lines.append(_accuracies(reference, network, test_set, in_order, options.most_accuracy_loss))
        return "\n  ".join(lines)

    _write(quantised, int8_file(output), near_fp32)


def _to_network_order(told: Description) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns BGR images into those that the network wants."""
    return (lambda images: images[..., ::-1]) if told.input_format.color == "RGB" else (lambda images: images)


def _metadata(told: Description, precision: str) -> dict[str, Any]:
    """Return what a file says of itself, as plain values."""
    threshold: Mapping[str, Any] | None = told.threshold
    return {
        "arch": told.arch,
        "color": told.input_format.color,
        "size": [IMAGE_SIZE, IMAGE_SIZE],
        "mean": told.input_format.mean,
        "std": told.input_format.std,
        "template": [[round(float(number), 4) for number in point] for point in ARCFACE_TEMPLATE],
        "threshold": None if threshold is None else dict(threshold),
        "precision": precision,
        "checkpoint": told.fingerprint,
        "commit": describe_environment()["commit"],
    }


def _write(graph: onnx.ModelProto, path: Path, check: Callable[[OnnxNetwork], str]) -> None:
    """Write a file under a temporary name, check it as it is on the disk, and give it its name."""
    with atomic_file(path) as file:
        file.write(graph.SerializeToString())
        file.flush()
        found = check(load_network(Path(file.name))[0])
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, opset {OPSET}\n  {found}", flush=True)


def _accuracies(
    reference: OnnxNetwork,
    network: OnnxNetwork,
    test_set: PairSet,
    in_order: Callable[[np.ndarray], np.ndarray],
    most_loss: float,
) -> str:
    """Return the accuracy of both networks in one line, or raise ValueError where the second loses too much."""
    accuracies = []
    for precision, candidate in (("FP32", reference), ("INT8", network)):
        embeddings = []
        for start in tqdm(range(0, len(test_set.images), _BATCH), desc=f"{test_set.name}, {precision}", leave=False):
            embeddings.append(candidate(in_order(np.stack(test_set.images[start : start + _BATCH])))[0])
        accuracies.append(evaluate_set(test_set.name, np.concatenate(embeddings), test_set.issame).accuracy)
    lost = accuracies[0] - accuracies[1]
    line = (
        f"accuracy on {test_set.name}, {len(test_set.issame):,} pairs: FP32 {accuracies[0]:.2f} %, "
        f"INT8 {accuracies[1]:.2f} % ({-lost:+.2f} points)"
    )
    if not lost <= most_loss + _DIGITS_OF_PERCENT:
        raise ValueError(
            f"refused: {line}; at most {most_loss:g} may be lost. No INT8 file was written. Give --calibration_images "
            "that are more, and more like those of the set, or a larger --most_accuracy_loss"
        )
    return line


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: what follows the program's name; those of the process when None.

    Returns:
        Exit status: 0 done, 2 error (one line on stderr), 130 stopped with Ctrl-C.
    """

    def job() -> int:
        export(parse(sys.argv[1:] if words is None else words))
        return 0

    return run_to_status(program_name("export"), job, stopped="nothing is half written")


if __name__ == "__main__":
    sys.exit(main())
