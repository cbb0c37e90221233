"""Export a trained model to ONNX: ``adaface export --help``; the options are in ``export_options.py``.

A file is written only after its outputs match PyTorch's on face images.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaface.alignment.warp import ARCFACE_TEMPLATE
from adaface.checkpoints.run_folder import describe_environment
from adaface.commands.export_options import VERIFIED, check_paths, int8_file, parse
from adaface.commands.model_options import print_foreign
from adaface.config.choices import MOST_IMAGES
from adaface.data.pair_sets import PairSet
from adaface.export.graph import OPSET, to_file, to_onnx
from adaface.export.int8 import LEAST_MEAN_COSINE, check_enough, quantize
from adaface.export.network import OnnxNetwork, load_network
from adaface.export.parity import compare_networks, compare_with_pytorch
from adaface.inference.embedder import Description, Embedder, read_model
from adaface.inference.sample_images import drawn_faces, read_pair_set, read_sample
from adaface.metrics.results import evaluate_set
from adaface.models.backbone import IMAGE_SIZE
from adaface.system.command_line import check_packages, program_name, run_to_status
from adaface.system.files import atomic_file
from adaface.system.progress_bar import progress_bar

_BATCH = 64
_DIGITS_OF_PERCENT = 1e-9


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
    print_foreign(description.foreign, options.color)
    in_order = _to_network_order(description)
    chosen = options.verify_images
    faces = in_order(read_sample(chosen, VERIFIED) if chosen else drawn_faces(VERIFIED))
    calibration = in_order(read_sample(options.calibration_images, MOST_IMAGES)) if options.int8 else None
    if calibration is not None:
        check_enough(len(calibration))
    test_set = read_pair_set(options.test_set) if options.test_set else None

    output = Path(options.output)
    graph = to_onnx(model)

    def same_as_pytorch(network: OnnxNetwork) -> str:
        parity = compare_with_pytorch(model, network, faces, description.input_format)
        parity.check()
        return f"against PyTorch, {'' if chosen else 'synthetic faces, '}{parity.line()}"

    _write(to_file(graph, _metadata(description, "fp32")), output, same_as_pytorch, overwrite=options.overwrite)
    if calibration is None:
        return
    reference = load_network(output)[0]
    print(f"calibrating on {len(calibration)} images ...", flush=True)
    quantized = quantize(graph, calibration, reference)

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

    _write(
        to_file(quantized, _metadata(description, "int8")), int8_file(output), near_fp32, overwrite=options.overwrite
    )


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


def _write(content: bytes, path: Path, check: Callable[[OnnxNetwork], str], *, overwrite: bool) -> None:
    """Write a file under a temporary name, load and check it, and rename it; keep one of the same content."""
    if not overwrite and path.is_file() and path.read_bytes() == content:  # an export was killed before the INT8 file
        print(f"{path} is complete\n  {check(load_network(path)[0])}", flush=True)
        return
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(content)
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
        options = parse(sys.argv[1:] if words is None else words)
        check_paths(options)
        export(options)
        return 0

    return run_to_status(program_name("export"), job, stopped="no file is incomplete")


if __name__ == "__main__":
    sys.exit(main())
