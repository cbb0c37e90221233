r"""Evaluate a model with the protocols of the AdaFace paper, or on your own faces.

    adaface evaluate pairs --checkpoint experiments/<run>/best.ckpt --root <DATASET_ROOT>/faces_emore
    adaface evaluate ijbc --checkpoint adaface_ir101_webface12m.ckpt --root <DATASET_ROOT>
    adaface evaluate paper --model adaface_ir50_ms1mv2 --root <DATASET_ROOT> --report
    adaface evaluate folder --compare pretrained.ckpt finetuned.ckpt --root <FACES>

``adaface evaluate --help`` shows all options.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaface.checkpoints.run_folder import choose_run_folder
from adaface.commands import model_options
from adaface.commands.model_options import model_path
from adaface.evaluation import protocols
from adaface.evaluation.degradation import DEGRADATIONS
from adaface.evaluation.findings import Evaluated, Findings, text_of, write_findings
from adaface.evaluation.folder import DEGRADED_PARTS
from adaface.evaluation.pair_comparison import FAR
from adaface.evaluation.template_pooling import POOLINGS
from adaface.inference.embedding_cache import CACHE, MOST_UNREADABLE, CachedEmbedding, ModelFile
from adaface.system.command_line import DONE_WITH_PROBLEMS, Parser, invocation, program_name, run_to_status
from adaface.system.files import check_writable, make_writable_folder

_SEEDS = 2**64


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog=invocation("evaluate"),
        description="Evaluate a model with the protocols of the AdaFace paper, or on your own faces.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="protocols:\n" + "\n".join(f"  {name:<10}{protocol.text}" for name, protocol in _PROTOCOLS.items()),
    )
    parser.add_argument("protocol", choices=_PROTOCOLS, help="evaluation protocol; see below")
    add_model_options(parser)
    add_data_options(parser)
    add_protocol_options(parser)
    return parser


def add_model_options(parser: Parser) -> None:
    """Add the options for the model and the hardware."""
    group = parser.add_argument_group("model")
    model_options.add_model_options(group)
    group.add_argument(
        "--compare", nargs="+", default=[], metavar="FILE",
        help="pairs, folder: compare these models; folder compares them on clear and on blurred images",
    )  # fmt: skip
    model_options.add_accelerator_option(group)
    group.add_argument(
        "--devices", type=int, default=1, metavar="N", help="number of processes, one per GPU (default: 1)"
    )
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="images per batch (default: 64)")


def add_data_options(parser: Parser) -> None:
    """Add the options for data and output."""
    group = parser.add_argument_group("data and output")
    group.add_argument("--root", default="", metavar="DIR", help="folder of the evaluation data (required)")
    group.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="quick test: use only N pairs (pairs, ijbb, ijbc), probes and distractors (tinyface) or images (folder); "
        "0: no limit (default: 0)",
    )
    group.add_argument(
        "--most_unreadable", type=float, default=MOST_UNREADABLE, metavar="FRACTION",
        help=f"maximum fraction of unreadable images, 0 to 1 (default: {MOST_UNREADABLE})",
    )  # fmt: skip
    group.add_argument(
        "--cache", default=CACHE, metavar="DIR",
        help=f"folder that caches embeddings; '' disables the cache (default: {CACHE})",
    )  # fmt: skip
    group.add_argument(
        "--output_dir",
        default="experiments",
        metavar="DIR",
        help="folder in which the results folder is created (default: experiments)",
    )
    group.add_argument(
        "--report", action="store_true", help="also write report.html, a single file with tables and curves"
    )


def add_protocol_options(parser: Parser) -> None:
    """Add the options of individual protocols."""
    group = parser.add_argument_group("options of individual protocols")
    group.add_argument(
        "--sets", default="", metavar="NAMES", help="pairs, paper: sets to use, such as lfw,cfp_fp (default: all)"
    )
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=POOLINGS[0],
        help="ijbb, ijbc: pooling of the images of a template (default: pre_norm_vector_add, as in the paper)",
    )
    group.add_argument(
        "--quality",
        action="store_true",
        help="pairs: evaluate the feature norm as a measure of image quality, on degraded images",
    )
    group.add_argument(
        "--target_far",
        type=float,
        default=0.0,
        metavar="FAR",
        help="pairs: false accept rate for which to calibrate the cosine threshold; with --compare, the rate at which "
        f"to compare the models (default with --compare: {FAR:g})",
    )
    group.add_argument(
        "--store_threshold", action="store_true", help="pairs: store the threshold of --target_far in the checkpoint"
    )
    group.add_argument(
        "--gallery_images",
        type=int,
        default=1,
        metavar="K",
        help="folder: gallery images per identity (default: 1)",
    )
    group.add_argument(
        "--degrade", choices=("none", *DEGRADATIONS), default="none", help="folder: degrade the images (default: none)"
    )
    group.add_argument(
        "--degraded_part", choices=DEGRADED_PARTS, default=DEGRADED_PARTS[0],
        help="folder: degrade all images (default), or only the probes",
    )  # fmt: skip
    group.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="folder: strength of the degradation, 0 to 1 (default: 1)",
    )
    group.add_argument(
        "--unknown_share", type=float, default=0.0, metavar="FRACTION",
        help="folder: fraction of identities left out of the gallery, for open-set identification (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed of degradation and unknown identities (default: 0)",
    )
    group.add_argument(
        "--published", default="", metavar="MODEL",
        help="paper: model of the paper to compare with, such as 'ir_50 MS1MV2' (default: inferred from the file name)",
    )  # fmt: skip
    group.add_argument(
        "--strict", action="store_true",
        help="paper: exit with status 1 if a published value is outside the 95%% confidence interval of the measured "
        "one",
    )  # fmt: skip


_OF_PROTOCOL = {
    "sets": ("pairs", "paper"),
    "pooling": ("ijbb", "ijbc", "paper"),
    "quality": ("pairs",),
    "target_far": ("pairs",),
    "store_threshold": ("pairs",),
    "gallery_images": ("folder",),
    "degrade": ("folder",),
    "degraded_part": ("folder",),
    "strength": ("folder",),
    "unknown_share": ("folder",),
    "compare": ("folder", "pairs"),
    "seed": ("folder", "pairs"),
    "published": ("paper",),
    "strict": ("paper",),
}


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and cross-check the command line.

    Args:
        words: command-line arguments after `adaface evaluate`.

    Raises:
        ValueError: an unknown option, a value out of range, or contradictory options.
    """
    parser = build_parser()
    options = parser.parse(words)
    for name, takers in _OF_PROTOCOL.items():
        if options.protocol not in takers and getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} has no effect with {options.protocol}, it is for {', '.join(takers)}")
    if not options.root:
        parser.error("--root is required: the folder of the evaluation data")
    if sum(map(bool, (options.model, options.checkpoint, options.compare))) != 1:
        parser.error(
            "give the model to evaluate with --checkpoint or --model, or several with --compare (folder, pairs)"
        )
    if not options.compare:
        model_options.check_model_options(options)
    if options.compare and options.degrade != "none":
        parser.error("--compare always evaluates both clear and blurred images: leave out --degrade")
    if options.compare and (options.quality or options.store_threshold):
        parser.error("--quality and --store_threshold are for one model: leave out --compare")
    if options.store_threshold and not options.target_far:
        parser.error("--store_threshold needs --target_far, the false accept rate of the threshold")
    if options.store_threshold and Path(options.checkpoint).suffix == ".onnx":
        parser.error("--store_threshold needs a .ckpt: store the threshold in the checkpoint, then export it again")
    _check_ranges(parser, options)
    options.sets = [name.strip() for name in options.sets.split(",") if name.strip()]
    return options


def _check_ranges(parser: Parser, options: argparse.Namespace) -> None:
    for name, least in {"devices": 1, "batch_size": 1, "limit": 0, "gallery_images": 1, "seed": 0}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.seed >= _SEEDS:
        parser.error(f"--seed must be below 2**64, got {options.seed}")
    if not 0 <= options.most_unreadable <= 1:
        parser.error(f"--most_unreadable must be between 0 and 1, got {options.most_unreadable}")
    if not 0 <= options.strength <= 1:
        parser.error(f"--strength must be between 0 and 1, got {options.strength}")
    if not 0 <= options.unknown_share < 1:
        parser.error(f"--unknown_share must be at least 0 and below 1, got {options.unknown_share}")
    if not 0 <= options.target_far < 1:
        parser.error(f"--target_far must be above 0 and below 1, such as 0.001, got {options.target_far}")


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
    if not Path(options.root).exists():
        raise FileNotFoundError(f"--root {options.root} does not exist")
    if options.model:
        options.checkpoint = str(model_path(options))
    paths = options.compare or [options.checkpoint]
    _check_folders(options, paths)
    models = [_open_model(options, path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        print(f"model: {path} ({model.embedder.arch})")
    findings = _compare(options, models) if options.compare else _PROTOCOLS[options.protocol].run(options, models[0])
    print(text_of(findings))
    _keep(findings, options, words, paths, models)
    return DONE_WITH_PROBLEMS if findings.failed and options.strict else 0


def _check_folders(options: argparse.Namespace, paths: list[str]) -> None:
    """Raise an error, before anything is computed, if a folder to write to is not writable."""
    make_writable_folder(Path(options.output_dir), "--output_dir")
    if options.cache:
        make_writable_folder(Path(options.cache), "--cache")
    folders = [Path(path).resolve().parent for path in paths] if options.store_threshold else []
    for folder in filter(Path.is_dir, folders):
        check_writable(
            folder,
            f"--store_threshold writes to the checkpoint, but its folder {folder}",
            advice="copy the checkpoint to another folder, or leave --store_threshold out",
        )


def _open_model(options: argparse.Namespace, path: str) -> CachedEmbedding:
    return CachedEmbedding(
        ModelFile(
            path,
            options.arch,
            model_options.chosen_accelerator(options.accelerator, options.devices),
            options.color,
        ),
        folder=Path(options.cache) if options.cache else None,
        processes=options.devices,
        batch_size=options.batch_size,
        most_unreadable=options.most_unreadable,
    )


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


@dataclass(frozen=True)
class _Protocol:
    text: str  # for --help
    run: Callable[[argparse.Namespace, CachedEmbedding], Findings]


_PROTOCOLS = {
    "pairs": _Protocol("verification sets (.bin, or converted): 10-fold accuracy, TAR at FAR, AUC, EER", _pairs),
    "ijbb": _Protocol("IJB-B, 1:1 and 1:N: <root>/IJBB/meta and <root>/IJBB/loose_crop", _ijbb),
    "ijbc": _Protocol("IJB-C, 1:1 and 1:N: <root>/IJBC/meta and <root>/IJBC/loose_crop", _ijbc),
    "tinyface": _Protocol("TinyFace with its distractors: <root>/tinyface", _tinyface),
    "folder": _Protocol("identification on your own faces: <root>/<identity>/<image>, aligned, 112x112", _folder),
    "paper": _Protocol(
        "every protocol with data in <root>, compared with the published results of the paper's models", _paper
    ),
}


if __name__ == "__main__":
    sys.exit(main())
