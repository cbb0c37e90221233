"""The options of ``adaface evaluate``: each protocol has its own help."""

import argparse
from pathlib import Path

from adaface.commands import model_options
from adaface.config.choices import CACHE, DEGRADATIONS, DEGRADED_PARTS, FAR, MOST_UNREADABLE, POOLINGS
from adaface.system.command_line import invocation
from adaface.system.files import check_output_folder
from adaface.system.option_parser import Parser

_SEEDS = 2**64
_HELP = ("-h", "--help")
PROTOCOLS = {
    "pairs": "verification sets (.bin, or converted): 10-fold accuracy, TAR at FAR, AUC, EER",
    "ijbb": "IJB-B, 1:1 and 1:N: <root>/IJBB/meta and <root>/IJBB/loose_crop",
    "ijbc": "IJB-C, 1:1 and 1:N: <root>/IJBC/meta and <root>/IJBC/loose_crop",
    "tinyface": "TinyFace with distractors: <root>/tinyface and <root>/aligned_pad_0.1_pad_high",
    "folder": "identification on your own faces: <root>/<identity>/<image>, aligned, 112x112",
    "paper": "every protocol with data in <root>, compared with the published results of the paper's models",
}


def build_parser(protocol: str = "") -> Parser:
    """Build the parser of one protocol, with its own options only; without a protocol, the parser of all options.

    Args:
        protocol: a key of ``PROTOCOLS``.
    """
    name = invocation(f"evaluate {protocol}".rstrip())
    comparing = " | --compare FILE ..." if protocol in ("pairs", "folder") else ""
    parser = Parser(
        prog=name,
        usage=f"{name} --root DIR (--checkpoint FILE | --model NAME{comparing}) [options]",
        description=PROTOCOLS.get(protocol, ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        listed="options" if protocol else "protocols",
    )
    if not protocol:
        parser.add_argument("protocol", choices=PROTOCOLS, help="evaluation protocol")
    add_model_options(parser)
    add_data_options(parser)
    add_protocol_options(parser)
    parser.hide(name for name, takers in _OF_PROTOCOL.items() if protocol and protocol not in takers)
    return parser


def overview() -> str:
    """Return the help of the command: its protocols."""
    command = invocation("evaluate")
    protocols = "\n".join(f"  {name:<10}{text}" for name, text in PROTOCOLS.items())
    return (
        f"usage: {command} PROTOCOL [options]\n\n"
        "Evaluate a model with the protocols of the AdaFace paper, or on your own faces.\n\n"
        f"protocols:\n{protocols}\n\n"
        f"{command} PROTOCOL --help shows the options of a protocol."
    )


def add_model_options(parser: Parser) -> None:
    """Add the options for the model and the hardware."""
    group = parser.add_argument_group("model")
    model_options.add_model_options(group)
    group.add_argument(
        "--compare", nargs="+", default=[], metavar="FILE",
        help="compare these models; folder compares them on clear and on blurred images",
    )  # fmt: skip
    model_options.add_accelerator_option(group)
    group.add_argument(
        "--devices", type=int, default=1, metavar="N", help="number of GPUs, or of CPU processes (default: 1)"
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
    group = parser.add_argument_group("options of the protocol")
    group.add_argument("--sets", default="", metavar="NAMES", help="sets to use, such as lfw,cfp_fp (default: all)")
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=POOLINGS[0],
        help="pooling of the images of a template (default: pre_norm_vector_add, as in the paper)",
    )
    group.add_argument(
        "--quality",
        action="store_true",
        help="evaluate the feature norm as a measure of image quality, on degraded images",
    )
    group.add_argument(
        "--target_far",
        type=float,
        default=0.0,
        metavar="FAR",
        help="false accept rate for which to calibrate the cosine threshold; with --compare, the rate at which "
        f"to compare the models (default with --compare: {FAR:g})",
    )
    group.add_argument(
        "--store_threshold", action="store_true", help="store the threshold of --target_far in the checkpoint"
    )
    group.add_argument(
        "--gallery_images",
        type=int,
        default=1,
        metavar="K",
        help="gallery images per identity (default: 1)",
    )
    group.add_argument(
        "--degrade", choices=("none", *DEGRADATIONS), default="none", help="degrade the images (default: none)"
    )
    group.add_argument(
        "--degraded_part", choices=DEGRADED_PARTS, default=DEGRADED_PARTS[0],
        help="degrade all images (default), or only the probes",
    )  # fmt: skip
    group.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="strength of the degradation, 0 to 1 (default: 1)",
    )
    group.add_argument(
        "--unknown_share", type=float, default=0.0, metavar="FRACTION",
        help="fraction of identities left out of the gallery, for open-set identification (default: 0)",
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
        help="model of the paper to compare with, such as 'ir_50 MS1MV2' (default: inferred from the file name)",
    )  # fmt: skip
    group.add_argument(
        "--strict", action="store_true",
        help="exit with status 1 if a published value is outside the 95%% confidence interval of the measured "
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
    protocol = next((word for word in words if word in PROTOCOLS), "")
    others = [word for word in words if word not in _HELP]
    if len(others) < len(words) and (protocol or not others or others[0].startswith("-")):
        print(build_parser(protocol).format_help() if protocol else overview())
        raise SystemExit(0)
    parser = build_parser()
    if protocol:  # the hint of an error names its help
        parser.prog, parser.listed = invocation(f"evaluate {protocol}"), "options"
    options = parser.parse(others)
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


def check_paths(options: argparse.Namespace) -> None:
    """Raise an error for models, data or folders that cannot be used, before PyTorch is imported.

    Args:
        options: of ``parse``.

    Raises:
        FileNotFoundError: the models or the data do not exist.
        ValueError: a file is not what it is given for.
        RuntimeError: a published model cannot be downloaded.
        OSError: a folder to write to is not writable.
    """
    model_options.check_model_file(options)
    for path in options.compare:
        model_options.check_model_path(Path(path))
    if not Path(options.root).exists():
        raise FileNotFoundError(f"--root {options.root} does not exist")
    _check_data(options.protocol, Path(options.root), options.sets)
    check_output_folder(Path(options.output_dir), "--output_dir")
    if options.cache:
        check_output_folder(Path(options.cache), "--cache")


def _check_data(protocol: str, root: Path, sets: list[str]) -> None:
    """Raise the error of a protocol for data that it does not find; what it imports loads no PyTorch."""
    if protocol == "pairs":
        from adaface.data.chosen_sets import folders_of_sets

        folders_of_sets(root, sets)
    elif protocol in ("ijbb", "ijbc"):
        from adaface.evaluation.ijb_metadata import find_files

        find_files(root, protocol.upper())
    elif protocol == "tinyface":
        from adaface.evaluation.tinyface import lists_and_folders

        lists_and_folders(root)
    elif protocol == "folder":
        from adaface.data.sources.folder import find_classes
        from adaface.evaluation.identity_folder import parts_of

        for part in parts_of(root):
            find_classes(part)
    elif not root.is_dir():
        raise FileNotFoundError(f"--root {root} is not a folder")


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
