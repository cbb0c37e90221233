"""Templates of HTML pages: what they show is escaped, and long paths break after slashes."""

import html
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template
from jinja2.filters import do_mark_safe

_SEPARATORS = re.compile(r"([/\\]+)(?=[^/\\])")


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
    """Escape a text and let lines break after slashes, rather than inside of names."""
    return do_mark_safe(_SEPARATORS.sub(r"\1<wbr>", html.escape(text)))
