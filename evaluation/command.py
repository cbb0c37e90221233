"""The options of `python -m evaluation`."""

import argparse
from pathlib import Path

import model_options
from command_line import Parser
from evaluation.cached import MOST_UNREADABLE
from evaluation.degradation import DEGRADATIONS
from evaluation.folder import DEGRADED_PARTS
from evaluation.pair_comparison import FAR
from evaluation.template_pooling import POOLINGS

CACHE = "experiments/embeddings"
_SEEDS = 2**64
_PROTOCOLS = {
    "pairs": "verification sets (.bin, or converted): 10-fold accuracy, TAR at FAR, AUC, EER",
    "ijbb": "IJB-B, 1:1 and 1:N: <root>/IJBB/meta and <root>/IJBB/loose_crop",
    "ijbc": "IJB-C, 1:1 and 1:N: <root>/IJBC/meta and <root>/IJBC/loose_crop",
    "tinyface": "TinyFace with its distractors: <root>/tinyface",
    "folder": "identification on your own faces: <root>/<identity>/<image>, aligned, 112x112",
    "paper": "all of the above that is found under the root, beside the published results of the paper's models",
}


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog="python -m evaluation",
        description="Evaluate a model: protocols of the AdaFace paper, and your own faces.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="protocols:\n" + "\n".join(f"  {name:<10}{text}" for name, text in _PROTOCOLS.items()),
    )
    parser.add_argument("protocol", choices=_PROTOCOLS, help="what to evaluate; see below")
    add_model_options(parser)
    add_data_options(parser)
    add_protocol_options(parser)
    return parser


def add_model_options(parser: Parser) -> None:
    """Add the options on the model and the hardware."""
    group = parser.add_argument_group("model")
    model_options.add_model_options(group)
    group.add_argument(
        "--compare", nargs="+", default=[], metavar="FILE",
        help="folder, pairs: several models side by side; folder: on clear and on blurred images",
    )  # fmt: skip
    group.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where to compute; auto: a GPU if there is one",
    )
    group.add_argument("--devices", type=int, default=1, metavar="N", help="processes, one per GPU (default 1)")
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="images at a time (default 64)")


def add_data_options(parser: Parser) -> None:
    """Add the options on the data and on what is written."""
    group = parser.add_argument_group("data and output")
    group.add_argument("--root", default="", metavar="DIR", help="where the data is")
    group.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="a quick look: N pairs (pairs, ijbb, ijbc), probes and distractors (tinyface), images (folder)",
    )
    group.add_argument(
        "--most_unreadable", type=float, default=MOST_UNREADABLE, metavar="SHARE",
        help=f"share of the images that may be unreadable, 0 to 1 (default {MOST_UNREADABLE})",
    )  # fmt: skip
    group.add_argument(
        "--cache", default=CACHE, metavar="DIR", help=f"embeddings are kept there (default {CACHE}); '' keeps none"
    )
    group.add_argument("--output_dir", default="experiments", metavar="DIR", help="where the results' folder is made")
    group.add_argument("--report", action="store_true", help="write report.html too, one file with tables and curves")


def add_protocol_options(parser: Parser) -> None:
    """Add the options of single protocols."""
    group = parser.add_argument_group("protocols")
    group.add_argument("--sets", default="", metavar="A,B", help="pairs, paper: only these sets (lfw,cfp_fp)")
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=POOLINGS[0],
        help="ijbb, ijbc: how a template is made of its images; the first is the paper's",
    )
    group.add_argument("--quality", action="store_true", help="pairs: norm against quality, by degrading images")
    group.add_argument(
        "--target_far",
        type=float,
        default=0.0,
        metavar="FAR",
        help=f"pairs: find the cosine threshold for this FAR; with --compare, compare TAR at it (default {FAR:g})",
    )
    group.add_argument(
        "--store_threshold", action="store_true", help="write the threshold of --target_far into the checkpoint"
    )
    group.add_argument(
        "--gallery_images",
        type=int,
        default=1,
        metavar="K",
        help="folder: images of an identity in the gallery (default 1)",
    )
    group.add_argument(
        "--degrade", choices=("none", *DEGRADATIONS), default="none", help="folder: degrade all images first"
    )
    group.add_argument(
        "--degraded_part", choices=DEGRADED_PARTS, default=DEGRADED_PARTS[0],
        help="folder: degrade gallery and probes, or the probes alone",
    )  # fmt: skip
    group.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="folder: of the degradation, 0 to 1 (default 1)"
    )
    group.add_argument(
        "--unknown_share", type=float, default=0.0, metavar="SHARE",
        help="folder: share of the identities that get no gallery, for open-set numbers (default 0)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the degradation (default 0)")
    group.add_argument(
        "--published", default="", metavar="MODEL",
        help="paper: row of the table (such as 'ir_50 MS1MV2'), where the file's name does not tell it",
    )  # fmt: skip
    group.add_argument(
        "--strict", action="store_true",
        help="paper: end with status 3 where a published value lies outside the measured one's 95%% interval",
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
        words: what follows `python -m evaluation`.

    Raises:
        ValueError: unknown option, values out of range, or options that do not belong together.
    """
    parser = build_parser()
    options = parser.parse(words)
    for name, protocols in _OF_PROTOCOL.items():
        if options.protocol not in protocols and getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} has no meaning with {options.protocol}, it is for {', '.join(protocols)}")
    if not options.root:
        parser.error("--root is missing: the folder of the data")
    if sum(map(bool, (options.model, options.checkpoint, options.compare))) != 1:
        parser.error("give --checkpoint or --model with what to evaluate, or --compare with several (folder, pairs)")
    if not options.compare:
        model_options.check_model_options(options)
    if options.compare and options.degrade != "none":
        parser.error("--compare takes clear and blurred images anyway: leave out --degrade")
    if options.compare and (options.quality or options.store_threshold):
        parser.error("--quality and --store_threshold are for one model: leave out --compare")
    if options.store_threshold and not options.target_far:
        parser.error("--store_threshold needs --target_far, the false accept rate that the threshold is for")
    if options.store_threshold and Path(options.checkpoint).suffix == ".onnx":
        parser.error("--store_threshold writes into a checkpoint: give that, and export it again")
    _check_ranges(parser, options)
    options.sets = [name.strip() for name in options.sets.split(",") if name.strip()]
    return options


def _check_ranges(parser: Parser, options: argparse.Namespace) -> None:
    for name, least in {"devices": 1, "batch_size": 1, "limit": 0, "gallery_images": 1, "seed": 0}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: at least {least} is expected")
    if options.seed >= _SEEDS:
        parser.error(f"--seed {options.seed}: below 2**64 is expected")
    if not 0 <= options.most_unreadable <= 1:
        parser.error(f"--most_unreadable {options.most_unreadable}: a share from 0 to 1 is expected")
    if not 0 <= options.strength <= 1:
        parser.error(f"--strength {options.strength}: a number from 0 to 1 is expected")
    if not 0 <= options.unknown_share < 1:
        parser.error(f"--unknown_share {options.unknown_share}: a share from 0 to less than 1 is expected")
    if not 0 <= options.target_far < 1:
        parser.error(f"--target_far {options.target_far}: a fraction between 0 and 1 is expected, such as 0.001")
