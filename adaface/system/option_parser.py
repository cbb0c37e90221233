"""The argument parser of all commands."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from adaface.system.command_line import nearest

_HELP_WIDTH = 100


class HelpLines(argparse.RawDescriptionHelpFormatter):
    """Help with the line breaks of the texts, and ``--[no-]option`` for a switch and its opposite."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.dest}"
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that suggests the nearest name for a misspelled option or choice.

    Args:
        listed: what its help lists, for the hint of an error.
        options: as of ``argparse.ArgumentParser``.
    """

    def __init__(self, *, listed: str = "options", **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.listed = listed

    def error(self, message: str) -> NoReturn:
        """Raise ValueError instead of exiting, so that all errors are reported in the same way."""
        raise ValueError(f"{message} ({self.prog} --help lists the {self.listed})")

    def hide(self, names: Iterable[str]) -> None:
        """Leave options out of the help; they are parsed as before.

        Args:
            names: of the options, without dashes.
        """
        hidden = set(names)
        for action in self._actions:
            if action.dest in hidden:
                action.help = argparse.SUPPRESS

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest the nearest choice before all of them, which argparse lists."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = nearest(str(value), choices, always=f"choose from: {', '.join(choices)}")
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")

    def format_short_help(self, first: Sequence[str], more: str) -> str:
        """Return the help with a few options explained, and the names of the others by group.

        Args:
            first: names of the options to explain, without dashes.
            more: last line, on how to see the rest.
        """
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        by_name = {action.dest: action for action in self._actions}
        formatter.start_section("the most important options")
        formatter.add_arguments([by_name[name] for name in first])
        formatter.end_section()
        for group in self._action_groups:
            names = [f"--{one.dest}" for one in group._group_actions if one.dest not in (*first, "help")]
            if names:
                formatter.start_section(str(group.title))
                formatter.add_text("\n".join(textwrap.wrap(" ".join(names), _HELP_WIDTH)))
                formatter.end_section()
        formatter.add_text(more)
        return formatter.format_help()

    def print_help(self, file: Any = None, text: str = "") -> None:
        """Print the help; argparse ignores it if the output cannot be written.

        Args:
            file: stdout if None.
            text: printed instead of the whole help.
        """
        output = sys.stdout if file is None else file
        output.write(text or self.format_help())

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all words; unknown ones are an error.

        Args:
            words: the arguments after the program's name.

        Raises:
            ValueError: unknown option, extra argument, or option without its value.
        """
        names = [name for action in self._actions for name in action.option_strings]
        try:
            options, unknown = self.parse_known_args(words)
        except ValueError as error:
            # a misspelled option may be the reason why a required one is missing
            unknown = [word for word in words if word[:2] == "--" and word != "--" and word.split("=")[0] not in names]
            if not unknown or "are required" not in str(error):
                raise
        if unknown:
            word = unknown[0].split("=")[0]
            known = [name for name in names if name.startswith("--")]
            self.error(
                f"unknown option {word}; {nearest(word, known)}" if word[:1] == "-" else f"unexpected argument {word!r}"
            )
        return options
