"""Templates of HTML pages: what they show is escaped, and long paths break between their words."""

import html
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template
from jinja2.filters import do_mark_safe

# after slashes, underscores, hyphens inside of names, and the dot of an extension, but not inside of numbers and dates
_SEPARATORS = re.compile(r"([/\\_]+|(?<=[^\W\d])-+|(?<=\d)-+(?!\d)|(?<=\w)\.(?=[^\W\d]))(?=[^/\\_\s])")


def page_template(path: Path) -> Template:
    """Return the template of a page, with the filter ``breakable`` for paths.

    Args:
        path: template; what it shows is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(path.resolve().parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(path.name)


def _breakable(text: str) -> str:
    """Escape a text and let lines break after slashes and between the words of names, rather than inside of words."""
    return do_mark_safe(_SEPARATORS.sub(r"\1<wbr>", html.escape(text)))
