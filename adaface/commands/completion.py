"""Print a script that completes commands, options, values and files in a shell.

    adaface completion bash >> ~/.bashrc
    adaface completion zsh > ~/.zfunc/_adaface

The package shtab generates the script; completing does not start Python. Regenerate it after an update.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from adaface.checkpoints.published import PUBLISHED
from adaface.commands import COMMANDS
from adaface.commands.evaluate_options import PROTOCOLS
from adaface.commands.evaluate_options import build_parser as evaluate_parser
from adaface.config.options import ABOUT
from adaface.config.parsing import build_parser as train_parser
from adaface.models.names import ARCHITECTURE_NAMES
from adaface.system.command_line import check_packages, invocation, program_name, run_to_status
from adaface.system.option_parser import Parser

SHELLS = ("bash", "zsh", "tcsh")
_MODELS = [model.stem for model in PUBLISHED]


def parser_of_all(shell: str) -> argparse.ArgumentParser:
    """Return one parser with all commands and their options.

    Args:
        shell: one of ``SHELLS``.
    """
    # the name of a published model or a file, which shtab can only complete both in bash
    file_or_model = [*importlib.import_module("shtab").Required.FILE, *_MODELS] if shell == "bash" else []
    parser = argparse.ArgumentParser("adaface")
    commands = parser.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        if name == "evaluate":
            evaluate = commands.add_parser(name, help=command.summary).add_subparsers(dest="protocol")
            for protocol, text in PROTOCOLS.items():
                _add(evaluate, protocol, text, evaluate_parser(protocol))
            continue
        module = importlib.import_module(command.options or command.module)
        if name == "train":
            _add(commands, name, command.summary, train_parser(), finetune=file_or_model)
        elif command.named:
            _add(commands, name, command.summary, module.build_parsers()[1][name])
        else:
            _add(commands, name, command.summary, module.build_parser())
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    parser: Parser,
    **more: Sequence[str],
) -> None:
    """Add a command; options complete their choices, ``more`` included, or else file names if they take a text."""
    choices: dict[str, Sequence[str]] = {option: about.choices for option, about in ABOUT.items() if about.choices}
    choices |= {option: some for option, some in more.items() if some}
    choices |= {"arch": ARCHITECTURE_NAMES, "model": _MODELS}
    for action in parser._actions:
        if action.type is None and action.choices is None and action.nargs != 0:
            if action.dest in choices:
                action.choices = choices[action.dest]
            else:
                action.complete = importlib.import_module("shtab").FILE  # type: ignore[attr-defined]
    commands.add_parser(name, help=text, parents=[parser], add_help=False)


def build_parser() -> Parser:
    """Build the command line's parser."""
    parser = Parser(
        prog=invocation("completion"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: command-line arguments after the command's name; None: those of the process.

    Returns:
        Exit status: 0 success, 2 error (one line on stderr), 130 interrupted.
    """

    def job() -> int:
        shell = build_parser().parse(sys.argv[1:] if words is None else words).shell
        check_packages("completion", {"shtab": "shtab"})
        print(importlib.import_module("shtab").complete(parser_of_all(shell), shell))
        return 0

    return run_to_status(program_name("completion"), job, stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
