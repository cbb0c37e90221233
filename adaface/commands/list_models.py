"""Print a table of the backbones: parameters, operations, input and embedding size.

    adaface models                                   # all except timm's
    adaface models timm:vit_small_patch16_224        # one of timm's

Operations are counted as multiply-accumulates for one image.
"""

import argparse
import sys

from adaface.models.names import ARCHITECTURE_NAMES, check_name
from adaface.system.command_line import invocation, program_name, run_to_status
from adaface.system.imports import imported_for_good
from adaface.system.option_parser import Parser
from adaface.system.text_table import aligned

_HEAD = ("architecture", "parameters", "multiply-accumulates", "input", "embedding")


def rows(names: list[str]) -> list[tuple[str, ...]]:
    """Return name, parameters, multiply-accumulates per image, input and embedding size of networks, formatted.

    Args:
        names: names of architectures.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a network of timm, if timm is not installed.
    """
    with imported_for_good():
        import torch  # the import takes seconds, and a misspelled name does not need it

        from adaface.models.backbone import EMBEDDING_SIZE
        from adaface.models.registry import build_model, check_architecture, count_macs

    found: list[tuple[str, ...]] = []
    for name in names:
        check_architecture(name)
        with torch.device("meta"):  # no memory is allocated, so large networks are as fast as small ones
            model = build_model(name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        size = f"{model.side}x{model.side}"
        found.append((name, _millions(parameters), _millions(count_macs(model)), size, str(EMBEDDING_SIZE)))
    return found


def _millions(number: int) -> str:
    return f"{number / 1e6:,.{1 if number < 1e9 else 0}f} M"


def table(names: list[str]) -> str:
    """Return the table of networks as text, in aligned columns.

    Args:
        names: names of architectures.
    """
    return "\n".join(aligned([_HEAD, *rows(names)]))


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog=invocation("models"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="architecture, which may be timm:<name> (default: all except timm's)"
    )
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after the program's name; None: those of the process.

    Returns:
        Exit status: 0 success, 2 error (one line on stderr), 130 interrupted.
    """

    def job() -> int:
        names = build_parser().parse(sys.argv[1:] if words is None else words).names
        for name in names:
            check_name(name)
        print(table(names or list(ARCHITECTURE_NAMES)))
        return 0

    return run_to_status(program_name("models"), job, stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
