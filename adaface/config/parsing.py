"""The options of a run from a recipe and a command line.

Values come from the defaults of ``config/options.py``, then from a recipe (``--config recipe.yaml``, the same keys),
then from the command line; later values override earlier ones. Unknown keys, abbreviations and bad values are errors in
both, with the nearest match (in the official code, a misspelled option reads as None).
"""

import argparse
import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adaface.config.options import ABOUT, GROUPS, OPTIONS, Config
from adaface.config.rules import check_combinations, check_head_options, check_optimizer
from adaface.heads.names import MARGINS
from adaface.system.command_line import invocation, nearest, nearest_path
from adaface.system.files import with_home
from adaface.system.option_parser import HelpLines, Parser
from adaface.system.yaml_file import read_yaml

_FIRST = ("config", "data_root", "train_data_path", "val_data_path", "gpus")  # what everybody needs
Action = Literal["run", "plan", "print_config"]

# defaults with --finetune: fewer and smaller steps, and the paper's margin
FINETUNE_DEFAULTS: dict[str, Any] = {"epochs": 8, "batch_size": 64, "lr": 0.01, "lr_schedule": "cosine"}
FINETUNE_MARGIN: dict[str, Any] = {"m": 0.4, "h": 0.333}  # with --head adaface
_FOLDERS = ("data_root", "train_data_path", "val_data_path", "output_dir")
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("expected true or false")


def _to_int(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # such as 8.00, which a recipe keeps as text
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("expected a whole number")
    return int(value)


def _to_float(value: Any) -> float:
    # PyYAML reads 5e-4 as a string: YAML 1.1 requires 5.0e-4
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return float(value)


def _to_ints(value: Any) -> tuple[int, ...]:
    parts = [value] if isinstance(value, int) else value
    if isinstance(value, str):
        parts = [part for part in value.replace(" ", "").strip("[]()").split(",") if part]
    return tuple(_to_int(part) for part in parts or ())


def _to_str(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, dict, bool)):
        raise ValueError("expected a string")
    return ",".join(map(with_home, str(value).split(",")))  # of each path of a list


_CONVERTERS: dict[Any, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}


def convert_value(name: str, value: Any) -> Any:
    """Convert a value from the command line or a recipe to the type of its option.

    Args:
        name: option name, without dashes.
        value: string, or a YAML value.

    Raises:
        ValueError: the value cannot be converted to the option's type.
    """
    kind: Any = OPTIONS[name].type
    converter = _to_ints if isinstance(kind, types.GenericAlias) else _CONVERTERS[kind]
    try:
        return converter(value)
    except (TypeError, ValueError, OverflowError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(
            kind, "whole numbers such as 12,20,24"
        )
        raise ValueError(f"--{name} takes {expected}, got {value!r} ({ABOUT[name].help})") from error


def _margins_explained() -> str:
    """Return the options of each margin and the first line of its docstring."""
    lines = ["margins (--head) and their options in addition to --s:"]
    for name, margin in MARGINS.items():
        lines += [f"  {name} ({', '.join(f'--{option}' for option in margin.options)})", f"      {margin.text}"]
    return "\n".join(lines)


class _Help(argparse.Action):
    """Print the short help, or with ``all`` the whole one, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        assert isinstance(parser, Parser)
        more = f"{parser.prog} --help all explains every option; every option is also a key of a recipe (YAML)."
        parser.print_help(text="" if values == "all" else parser.format_short_help(_FIRST, more))
        parser.exit()


def build_parser() -> Parser:
    """Build the parser of ``adaface train``."""
    parser = Parser(
        prog=invocation("train"),
        usage=f"{invocation('train')} [--config RECIPE] [--OPTION VALUE ...]",
        description="Train and evaluate a face recognition model with AdaFace, ArcFace, CosFace, MagFace or another "
        "margin.",
        epilog=f"{_margins_explained()}\n\n"
        "Every option is also a key of a recipe (YAML). Command-line options override the recipe.",
        formatter_class=HelpLines,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", nargs="?", const="short", choices=("all", "short"), metavar="all", action=_Help,
        help="explain the most important options and exit; all: explain every option",
    )  # fmt: skip
    parser.add_argument("--config", metavar="RECIPE", default="", help="YAML file with any of the options below")
    parser.add_argument("--print_config", action="store_true", help="print the resolved options as YAML and exit")
    parser.add_argument(
        "--plan", action="store_true", help="print the memory, steps and time that the training needs, and exit"
    )
    for group in GROUPS.values():
        title = (group.__doc__ or "").partition("\n")[0].rstrip(".").lower()
        section = parser.add_argument_group(title)
        for name in (one.name for one in dataclasses.fields(group)):
            kind: Any = OPTIONS[name].type
            flag: dict[str, Any] = {"default": None, "help": _help(name).replace("%", "%%")}
            if kind is bool:
                section.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **flag)
            else:
                choices = ABOUT[name].choices
                word = "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()
                section.add_argument(f"--{name}", metavar=word.replace("TUPLE", "INT,INT,..."), **flag)
    return parser


def _help(name: str) -> str:
    """Return the help of an option, with its unit, range, the option it requires, and its default."""
    about, default = ABOUT[name], OPTIONS[name].default
    unit = about.unit if about.unit not in about.help else ""
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    facts = [
        ", ".join(word for word in (unit, about.range) if word),
        f"only with --{' '.join(about.only_with)}" if about.only_with else "",
        f"default: {shown!r}" if shown == "" else f"default: {shown}",
    ]
    return f"{about.help} ({'; '.join(fact for fact in facts if fact)})"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe and return its options, converted.

    Args:
        path: YAML file with option names as keys.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, not a mapping, or has an unknown key or a value of the wrong type.
    """
    if not Path(path).is_file():
        advice = "give the path of a YAML file, such as those in recipes/ of the repository"
        hint = nearest_path(str(path), files=True, always=advice)
        raise FileNotFoundError(f"--config: there is no recipe {path}: {hint}")
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must contain `option: value` lines, got a {type(values).__name__}")
    for key in values:
        if key not in OPTIONS:
            raise ValueError(f"{path}: unknown option {key!r}; {nearest(str(key), list(OPTIONS))}")
    try:
        return {key: convert_value(key, _null_or_home(key, value)) for key, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _null_or_home(name: str, value: Any) -> Any:
    """Return None for ``~``, YAML's null, unless the option is a folder: there it is the home folder."""
    return None if value == "~" and name not in _FOLDERS else value


def finetune_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that differ for fine-tuning.

    Args:
        values: values given by the user, by option; they are not overridden.
    """
    if not values.get("finetune"):
        return {}
    margin = FINETUNE_MARGIN if values.get("head", OPTIONS["head"].default) == "adaface" else {}
    of_another = any(
        about.only_with and about.only_with[0] == "lr_schedule" for about in map(ABOUT.get, values) if about
    )
    return {
        name: value
        for name, value in (FINETUNE_DEFAULTS | margin).items()
        if name not in values and not (name == "lr_schedule" and of_another)
    }


def parse(arguments: Sequence[str]) -> tuple[Config, Action]:
    """Parse a command line into a checked configuration.

    Args:
        arguments: command-line arguments, without the program's name.

    Returns:
        The configuration, and what to do with it.

    Raises:
        ValueError: an unknown option, a bad value, or contradictory options.
        FileNotFoundError: the recipe does not exist.
    """
    parsed = build_parser().parse(arguments)
    values = read_recipe(parsed.config) if parsed.config else {}
    for name in OPTIONS:
        if (value := getattr(parsed, name)) is not None:
            values[name] = convert_value(name, value)
    config = Config(given=frozenset(values)).with_values({**values, **finetune_defaults(values)})
    check_combinations(config)
    if not config.run.resume_from_checkpoint:  # otherwise checked after the checkpoint's options are known
        check_optimizer(config)
        check_head_options(config, config.given)
    if parsed.plan and config.run.evaluate:
        raise ValueError("--plan describes a training, but --evaluate does not train: give only one of them")
    return config, "print_config" if parsed.print_config else "plan" if parsed.plan else "run"
