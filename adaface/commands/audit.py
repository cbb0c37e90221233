"""Report problems in training images.

    adaface audit <DATA> --test_sets lfw.bin --output audit
    adaface audit <DATA> --model adaface_ir101_webface12m --apply

The audit finds damaged images, duplicates, wrong labels, identities to merge or to split, images of test sets, and
swapped color channels. Nothing is changed or deleted.
"""

import argparse
import sys

from adaface.audit.model_pass import AskedModel
from adaface.audit.run import AuditOptions, audit
from adaface.commands.model_options import add_model_options
from adaface.system.command_line import Parser, invocation, program_name, run_to_status, warnings_as_notes


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(prog=invocation("audit"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="training images: an image folder, or a folder with train.rec (train_0.rec, ...); several, separated by "
        "commas",
    )
    parser.add_argument(
        "--test_sets",
        default="",
        metavar="SETS",
        help="report training images that are also in these test sets: .bin files, folders of verification sets, or "
        "folders of images, separated by commas",
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="DIR",
        help="folder for audit.html, audit.csv and audit.json (default: DATA_audit)",
    )
    parser.add_argument(
        "--apply",
        action="store_true",
        help="also write cleaned_index.csv, for --train_data_index of adaface train: the images to use and their "
        "labels",
    )
    parser.add_argument(
        "--swap_color_channel", action="store_true", help="the images on disk have red and blue swapped"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads that read and compare (default: one per core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="check all images again, also those checked before")
    add_model_options(
        parser.add_argument_group(
            "model", "With a model, the audit also finds images of another person, identities to merge or to split, "
            "and people of the test sets.",
        )
    )  # fmt: skip
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Args:
        words: what follows the command's name.

    Raises:
        ValueError: an unknown option, or options that do not belong together.
    """
    parser = build_parser()
    options = parser.parse(words)
    if options.model and options.checkpoint:
        parser.error("--model and --checkpoint both name a model: give one of them")
    if options.arch and not (options.model or options.checkpoint):
        parser.error("--arch is the architecture of a model: give --checkpoint or --model too")
    if options.threads < 0:
        parser.error(f"--threads must be at least 1, or 0 for one per core; got {options.threads}")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the command.

    Args:
        words: what follows the command's name; those of the process when None.

    Returns:
        Exit status: 0 nothing but notes, 1 error (one line on stderr), 3 problems were found, 130 stopped with
        Ctrl-C.
    """

    def job() -> int:
        options = parse(sys.argv[1:] if words is None else words)
        with warnings_as_notes():
            return audit(
                AuditOptions(
                    options.data,
                    test_sets=options.test_sets,
                    output=options.output,
                    apply=options.apply,
                    swapped=options.swap_color_channel,
                    threads=options.threads,
                    overwrite=options.overwrite,
                ),
                AskedModel(options.model, options.checkpoint, options.arch)
                if options.model or options.checkpoint
                else None,
            )

    return run_to_status(
        program_name("audit"), job, stopped="nothing is half written; run the same command to continue", failed=1
    )
