"""Read JSON that must be an object; whatever is wrong with it is a ValueError.

Journals and descriptions can be damaged, edited, or nested so deeply that the parser gives up.
"""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or not an object; the message names the file.
    """
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not a JSON object ({error})") from error


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse JSON.

    Args:
        text: as text, or as bytes in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    if not isinstance(content, dict):
        raise ValueError(f"it is a {type(content).__name__}")
    return content
