r"""Evaluate a model with the protocols of the AdaFace paper, or on your own faces.

    adaface evaluate pairs --checkpoint experiments/<run>/best.ckpt --root <DATASET_ROOT>/faces_emore
    adaface evaluate ijbc --checkpoint adaface_ir101_webface12m.ckpt --root <DATASET_ROOT>
    adaface evaluate paper --model adaface_ir50_ms1mv2 --root <DATASET_ROOT> --report
    adaface evaluate folder --compare pretrained.ckpt finetuned.ckpt --root <FACES>

``adaface evaluate PROTOCOL --help`` shows the options of a protocol.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adaface.checkpoints.files import file_of_threshold, load_checkpoint, load_for_threshold
from adaface.checkpoints.run_folder import choose_run_folder
from adaface.checkpoints.weights import describe_foreign
from adaface.commands import model_options
from adaface.commands.evaluate_options import check_paths, parse
from adaface.commands.model_options import model_path
from adaface.config.choices import FAR
from adaface.evaluation import protocols
from adaface.evaluation.findings import Evaluated, Findings, text_of, write_findings
from adaface.inference.embedding_cache import CachedEmbedding, ModelFile
from adaface.system.command_line import DONE_WITH_PROBLEMS, invocation, program_name, run_to_status
from adaface.system.files import check_writable, make_writable_folder


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after `adaface evaluate`; None: those of the process.

    Returns:
        Exit status: 0 success, 1 unreadable images left out, or a published value outside the confidence interval with
        --strict, 2 error (one line on stderr), 130 interrupted.
    """
    words = sys.argv[1:] if words is None else words
    stopped = "embeddings are kept; run the same command to continue"
    return run_to_status(program_name("evaluate"), lambda: _run(parse(words), words), stopped=stopped)


def _run(options: argparse.Namespace, words: list[str]) -> int:
    check_paths(options)
    if options.model:
        options.checkpoint = str(model_path(options))
    paths = options.compare or [options.checkpoint]
    _check_folders(options, paths)
    models = [_open_model(options, path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        print(f"model: {path} ({model.embedder.arch})")
        model_options.print_foreign(model.embedder.foreign, options.color)
    if options.compare and options.color and not any(model.embedder.foreign for model in models):
        raise ValueError("--color is for weights of other programs, and none of the models is: omit it")
    findings = _compare(options, models) if options.compare else _RUN[options.protocol](options, models[0])
    print(text_of(findings))
    _keep(findings, options, words, paths, models)
    return DONE_WITH_PROBLEMS if findings.failed and options.strict else 0


def _check_folders(options: argparse.Namespace, paths: list[str]) -> None:
    """Raise an error, before anything is computed, if a folder to write to is not writable."""
    make_writable_folder(Path(options.output_dir), "--output_dir")
    if options.cache:
        make_writable_folder(Path(options.cache), "--cache")
    for file in map(file_of_threshold, paths if options.store_threshold else []):
        advice = "copy the checkpoint to another folder, or leave --store_threshold out"
        if file.parent.is_dir():
            what = f"--store_threshold writes to the checkpoint, but its folder {file.parent}"
            check_writable(file.parent, what, advice=advice)
        if file.exists() and not os.access(file, os.W_OK):
            raise OSError(f"--store_threshold writes to the checkpoint, but {file} is read-only: {advice}")
        if file.exists():
            load_for_threshold(file)


def _open_model(options: argparse.Namespace, path: str) -> CachedEmbedding:
    return CachedEmbedding(
        ModelFile(
            path,
            options.arch,
            model_options.chosen_accelerator(options.accelerator, options.devices),
            _color_of(options, path),
        ),
        folder=Path(options.cache) if options.cache else None,
        processes=options.devices,
        batch_size=options.batch_size,
        most_unreadable=options.most_unreadable,
    )


def _color_of(options: argparse.Namespace, path: str) -> str | None:
    """Return ``--color`` for a model; of several models, it belongs to those of other programs."""
    if not options.compare or not options.color or path.endswith(".onnx"):
        return options.color
    return options.color if describe_foreign(load_checkpoint(path), path) else None


def _keep(
    findings: Findings, options: argparse.Namespace, words: list[str], paths: list[str], models: list[CachedEmbedding]
) -> None:
    """Write all results to a new folder and print its name."""
    folder = choose_run_folder(options.output_dir, f"evaluation_{options.protocol}")
    evaluated = Evaluated(
        title=f"{options.protocol}: {', '.join(Path(path).name for path in paths)}",
        model=", ".join(f"{path} ({model.embedder.arch})" for path, model in zip(paths, models, strict=True)),
        options=vars(options),
        command=f"{invocation('evaluate')} {shlex.join(words)}",
    )
    write_findings(folder, findings, evaluated, report=options.report)
    print(f"results are in {folder}")


def _pairs(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_pairs(
        model,
        options.root,
        options.sets,
        limit=options.limit,
        quality=options.quality,
        seed=options.seed,
        target_far=options.target_far or None,
        store_in=options.checkpoint if options.store_threshold else None,
    )


def _ijbb(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_ijb(model, Path(options.root), "IJBB", pooling=options.pooling, limit=options.limit)


def _ijbc(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_ijb(model, Path(options.root), "IJBC", pooling=options.pooling, limit=options.limit)


def _tinyface(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_tinyface(model, Path(options.root), options.limit)


def _folder(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_folder(
        model,
        Path(options.root),
        _split(options),
        degrade=None if options.degrade == "none" else options.degrade,
        degraded_part=options.degraded_part,
        strength=options.strength,
    )


def _paper(options: argparse.Namespace, model: CachedEmbedding) -> Findings:
    return protocols.run_paper(
        model,
        Path(options.root),
        options.sets,
        published=options.published,
        file=Path(options.checkpoint).name,
        pooling=options.pooling,
        limit=options.limit,
    )


def _compare(options: argparse.Namespace, models: Sequence[CachedEmbedding]) -> Findings:
    if options.protocol == "pairs":
        far = options.target_far or FAR
        return protocols.compare_pairs(
            options.compare, models, options.root, options.sets, far=far, limit=options.limit
        )
    return protocols.compare_folder(
        options.compare, models, Path(options.root), _split(options), strength=options.strength
    )


def _split(options: argparse.Namespace) -> protocols.FolderSplit:
    return protocols.FolderSplit(
        gallery_images=options.gallery_images,
        unknown_share=options.unknown_share,
        seed=options.seed,
        limit=options.limit or None,
    )


_RUN: dict[str, Callable[[argparse.Namespace, CachedEmbedding], Findings]] = {
    "pairs": _pairs,
    "ijbb": _ijbb,
    "ijbc": _ijbc,
    "tinyface": _tinyface,
    "folder": _folder,
    "paper": _paper,
}


if __name__ == "__main__":
    sys.exit(main())
