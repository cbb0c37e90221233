"""Report problems in training images.

    adaface audit <DATA> --test_sets lfw.bin --output audit
    adaface audit <DATA> --model adaface_ir101_webface12m --apply

The audit finds damaged images, duplicates, swapped color channels, and images that are also in test sets. With a model,
it also finds wrong labels, identities to merge or to split, and identities that are also in test sets. The training
images are not changed.
"""

import argparse
import sys

from adaface.audit.model_pass import AskedModel
from adaface.audit.run import AuditOptions, audit
from adaface.commands.model_options import add_model_options
from adaface.system.command_line import invocation, program_name, run_to_status, warnings_as_notes
from adaface.system.option_parser import Parser


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(prog=invocation("audit"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="training images: an image folder, or a folder with train.rec or train_0.rec, train_1.rec, ...; several "
        "data sets are separated by commas",
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
        help="also write cleaned_index.csv, the images to use and their labels, for adaface train --train_data_index",
    )
    parser.add_argument(
        "--swap_color_channel", action="store_true", help="swap the red and blue channels of the training images"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="number of threads (default: one per core)")
    parser.add_argument(
        "--overwrite", action="store_true", help="check all images again, including those checked before"
    )
    add_model_options(
        parser.add_argument_group(
            "model", "needed to find wrong labels, identities to merge or to split, and identities of the test sets",
        )
    )  # fmt: skip
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Args:
        words: command-line arguments after the command's name.

    Raises:
        ValueError: an unknown option, or contradictory options.
    """
    parser = build_parser()
    options = parser.parse(words)
    if options.model and options.checkpoint:
        parser.error("--model and --checkpoint both name a model: give only one of them")
    if options.arch and not (options.model or options.checkpoint):
        parser.error("--arch is the architecture of a model: give --checkpoint or --model too")
    if options.threads < 0:
        parser.error(f"--threads must be at least 1, or 0 for one per core; got {options.threads}")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the command.

    Args:
        words: command-line arguments after the command's name; None: those of the process.

    Returns:
        Exit status: 0 nothing but notes, 1 problems were found, 2 error (one line on stderr), 130 interrupted.
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
                AskedModel(options.model, options.checkpoint, options.arch, options.color)
                if options.model or options.checkpoint
                else None,
            )

    return run_to_status(program_name("audit"), job, stopped="no file is incomplete; run the same command to continue")


if __name__ == "__main__":
    sys.exit(main())
