"""The command line: ``adaface COMMAND ...``, the same as ``python -m adaface COMMAND ...``."""

import sys

from adaface.system.interrupt import end_on_interrupt, is_process_of_command

if __name__ == "__main__":
    end_on_interrupt()

import importlib
import os

from adaface import __version__
from adaface.commands import COMMANDS
from adaface.system.command_line import (
    FAILED,
    check_to_status,
    full_memory_told,
    nearest,
    one_line,
    program_name,
    run_to_status,
)
from adaface.system.imports import imported_for_good
from adaface.system.threads import limit_spinning

# of a launcher: a process of several reports its mistakes to the others, which needs PyTorch
_ONE_OF_SEVERAL = {"RANK", "SLURM_PROCID", "LOCAL_RANK"}
_OPTIONS = ("-h", "--help", "--version")


def overview() -> str:
    """Return the help of the command line, with one line per command."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: adaface COMMAND [options]\n\n"
        "Train, evaluate and use face recognition models.\n\n"
        f"commands:\n{commands}\n\n"
        "adaface COMMAND --help shows the options of a command, adaface --version the version."
    )


def _show(option: str) -> int:
    print(f"adaface {__version__}" if option == "--version" else overview())
    return 0


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"unknown command {word!r}; {nearest(word, COMMANDS)}"
    order = "options of a command come after its name: adaface COMMAND [options]"
    return f"unknown option {word!r}; {nearest(word, _OPTIONS[1:], always=order)}"


def main(words: list[str] | None = None) -> int:
    """Run one command.

    Args:
        words: command and its options; those of the process when None.

    Returns:
        Exit status of the command: 0 success, 2 error (one line on stderr), 130 interrupted; others are in its help.
    """
    if words is None:
        end_on_interrupt()
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in _OPTIONS:
        return run_to_status("adaface", lambda: _show(name), stopped="nothing was done")
    if name not in COMMANDS:
        print(f"adaface: error: {_unknown(name)}", file=sys.stderr)
        return FAILED
    if name == "serve" and is_process_of_command():
        end_on_interrupt(in_background=True)
    limit_spinning()
    command = COMMANDS[name]
    words = [name, *rest] if command.named else rest
    if command.options and not _ONE_OF_SEVERAL & set(os.environ):
        failed = check_to_status(program_name(name), lambda: _check(command.options, words))
        if failed:
            return failed
    try:
        with full_memory_told(), imported_for_good():
            module = importlib.import_module(command.module)
    except MemoryError as error:
        print(f"{program_name(name)}: error: {one_line(error)}", file=sys.stderr)
        return FAILED
    status: int = module.main(words)
    return status


def _check(module: str, words: list[str]) -> None:
    options = importlib.import_module(module)
    options.check_paths(options.parse(words))


if __name__ == "__main__":
    sys.exit(main())
