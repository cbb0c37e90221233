"""Read a YAML file of simple values strictly.

A recipe needs plain scalars, and lists of them. Aliases (which can expand to any size), explicit tags, keys that occur
twice (the later one would silently override the earlier) and deep nesting are errors; dates, `<<`, `010`, `1:30`,
`on`, `2024_01`, `1.50` and `~`, which is a home folder to most people, are texts: what would not be written the same
way again may be a name.

Source: YAML 1.1 as PyYAML's ``SafeLoader`` reads it.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from adaface.system.text_file import read_text

_MOST_BYTES = 100_000
_DEEPEST = 10
_NOT_RESOLVED = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_RESOLVED = {
    "tag:yaml.org,2002:bool": re.compile(r"(true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"),  # 010 would be 8
    "tag:yaml.org,2002:float": re.compile(r"[-+]?((0|[1-9][0-9]*)\.(0|[0-9]*[1-9])|\.inf|\.nan)$"),
}
_INNER_TAB = re.compile(r"(?<=\S)[ \t]*\t[ \t]*|^[ \t]+(?=#)")


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` without dates, merges (<<), and keys that occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that occurs twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                line = key_node.start_mark.line + 1
                raise ValueError(f"line {line}: the key {key!r} occurs twice, or is no plain value")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, _RESOLVED.get(tag, pattern)) for tag, pattern in resolvers if tag not in _NOT_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first != "~"  # YAML's other name of null
}


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Args:
        path: the file.

    Returns:
        Its content, as plain values; None for an empty file.

    Raises:
        OSError: it cannot be read.
        ValueError: not YAML, or not as simple as described above; the message names the file and the line.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        text = _without_tabs(read_text(path))
        _check_events(text)
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is not a valid YAML file: {' '.join(str(error).split())}") from error


def _without_tabs(text: str) -> str:
    """Return the text with blanks for tabs behind a value or before a comment, which PyYAML refuses.

    Tabs in quotes and in the indentation stay.
    """
    lines = text.splitlines(keepends=True)
    return "".join(
        line if not line.strip() or "'" in line or '"' in line else _INNER_TAB.sub(" ", line) for line in lines
    )


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _StrictLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {line}: aliases and anchors (& and *) are not allowed")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"line {line}: the tag {tag} is not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"line {line}: nested more than {_DEEPEST} levels deep")
