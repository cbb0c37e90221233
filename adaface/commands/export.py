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

from adaface.alignment.warp import ARCFACE_TEMPLATE
from adaface.checkpoints.run_folder import describe_environment
from adaface.checkpoints.weights import COLORS
from adaface.data.pair_sets import PairSet
from adaface.export.graph import OPSET, set_metadata, to_onnx
from adaface.export.int8 import FEWEST_IMAGES, LEAST_MEAN_COSINE, MOST_IMAGES, check_enough, quantize
from adaface.export.network import OnnxNetwork, load_network
from adaface.export.parity import compare_networks, compare_with_pytorch
from adaface.inference.embedder import Description, Embedder, read_model
from adaface.inference.sample_images import drawn_faces, read_pair_set, read_sample
from adaface.metrics.results import evaluate_set
from adaface.models.backbone import IMAGE_SIZE
from adaface.models.registry import ARCHITECTURES, check_architecture
from adaface.system.command_line import Parser, check_packages, invocation, program_name, run_to_status
from adaface.system.files import atomic_file, check_writable
from adaface.system.progress_bar import progress_bar

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
        help=f"architecture: {', '.join(ARCHITECTURES)}, or timm:<name> (default: stored in the checkpoint)",
    )
    parser.add_argument(
        "--verify_images",
        metavar="PATH",
        help=f"folder or .bin of aligned faces, {_VERIFIED} of which are used to compare the outputs with PyTorch's "
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
    if options.arch:
        check_architecture(options.arch)
    _check_outputs(options)
    return options


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
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file} exists; give --overwrite to replace it, or another --output")


def export(options: argparse.Namespace) -> None:
    """Write the requested files, each only after its outputs were checked.

    Args:
        options: options returned by ``parse``.

    Raises:
        FileNotFoundError: the checkpoint or the images do not exist.
        ValueError: not a checkpoint, unusable images, or a failed check.
        RuntimeError: a package of the extra ``[export]`` is not installed.
        OSError: a file cannot be written; an existing file is then unchanged.
    """
    check_packages("the export", {"onnxscript": "onnxscript"})
    model, description = read_model(options.checkpoint, options.arch, options.color)
    in_order = _to_network_order(description)
    chosen = options.verify_images
    faces = in_order(read_sample(chosen, _VERIFIED) if chosen else drawn_faces(_VERIFIED))
    calibration = in_order(read_sample(options.calibration_images, MOST_IMAGES)) if options.int8 else None
    if calibration is not None:
        check_enough(len(calibration))
    test_set = read_pair_set(options.test_set) if options.test_set else None

    output = Path(options.output)
    graph = to_onnx(model)
    set_metadata(graph, _metadata(description, "fp32"))

    def same_as_pytorch(network: OnnxNetwork) -> str:
        parity = compare_with_pytorch(model, network, faces, description.input_format)
        parity.check()
        return f"against PyTorch, {'' if chosen else 'synthetic faces, '}{parity.line()}"

    _write(graph, output, same_as_pytorch)
    if calibration is None:
        return
    reference = load_network(output)[0]
    print(f"calibrating on {len(calibration)} images ...", flush=True)
    quantized = quantize(graph, calibration, reference)
    set_metadata(quantized, _metadata(description, "int8"))

    def near_fp32(network: OnnxNetwork) -> str:
        parity = compare_networks(reference, network, faces)
        if not parity.mean_cosine >= LEAST_MEAN_COSINE:
            raise ValueError(
                f"INT8 differs too much from FP32: {parity.line()}; expected a mean of at least {LEAST_MEAN_COSINE}. "
                f"{int8_file(output)} was not written. --calibration_images must be aligned faces, like those used to "
                "verify"
            )
        lines = [f"against {output.name}, {parity.line()}"]
        if test_set is not None:
            lines.append(_accuracies(reference, network, test_set, description, options.most_accuracy_loss))
        return "\n  ".join(lines)

    _write(quantized, int8_file(output), near_fp32)


def _to_network_order(description: Description) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that converts BGR images to the color order of the network."""
    return (lambda images: images[..., ::-1]) if description.input_format.color == "RGB" else (lambda images: images)


def _metadata(description: Description, precision: str) -> dict[str, Any]:
    """Return the metadata of a file, as plain values."""
    threshold: Mapping[str, Any] | None = description.threshold
    return {
        "arch": description.arch,
        "color": description.input_format.color,
        "size": [IMAGE_SIZE, IMAGE_SIZE],
        "mean": description.input_format.mean,
        "std": description.input_format.std,
        "template": [[round(float(number), 4) for number in point] for point in ARCFACE_TEMPLATE],
        "threshold": None if threshold is None else dict(threshold),
        "precision": precision,
        "checkpoint": description.fingerprint,
        "commit": describe_environment()["commit"],
    }


def _write(graph: onnx.ModelProto, path: Path, check: Callable[[OnnxNetwork], str]) -> None:
    """Write a file under a temporary name, load and check it, and rename it."""
    with atomic_file(path) as file:
        file.write(graph.SerializeToString())
        file.flush()
        found = check(load_network(Path(file.name))[0])
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, opset {OPSET}\n  {found}", flush=True)


def _accuracies(
    reference: OnnxNetwork,
    network: OnnxNetwork,
    test_set: PairSet,
    description: Description,
    most_loss: float,
) -> str:
    """Return the accuracy of both networks in one line; raise ValueError if the second one loses too much."""
    accuracies = []
    for precision, candidate in (("FP32", reference), ("INT8", network)):
        embedder = Embedder(  # with mirror images, as in the evaluation
            candidate,
            name=precision,
            arch=description.arch,
            input_format=description.input_format,
            fingerprint=description.fingerprint,
        )
        starts = range(0, len(test_set.images), _BATCH)
        embeddings = [
            embedder.embed(np.stack(test_set.images[start : start + _BATCH]))[0]
            for start in progress_bar(starts, desc=f"{test_set.name}, {precision}", leave=False)
        ]
        accuracies.append(evaluate_set(test_set.name, np.concatenate(embeddings), test_set.issame).accuracy)
    lost = accuracies[0] - accuracies[1]
    line = (
        f"accuracy on {test_set.name}, {len(test_set.issame):,} pairs: FP32 {accuracies[0]:.2f} %, "
        f"INT8 {accuracies[1]:.2f} % ({-lost:+.2f} points)"
    )
    if not lost <= most_loss + _DIGITS_OF_PERCENT:
        raise ValueError(
            f"INT8 loses too much accuracy: {line}; the maximum loss is {most_loss:g}. No INT8 file was written. Give "
            "more --calibration_images, or images more like those of the test set, or a larger --most_accuracy_loss"
        )
    return line


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after the program's name; None: those of the process.

    Returns:
        Exit status: 0 success, 2 error (one line on stderr), 130 interrupted.
    """

    def job() -> int:
        export(parse(sys.argv[1:] if words is None else words))
        return 0

    return run_to_status(program_name("export"), job, stopped="no file is incomplete")


if __name__ == "__main__":
    sys.exit(main())
