"""Pages of the site that lie at the root of the repository, where GitHub shows them: a hook of mkdocs.

mkdocs reads one folder and checks the links in it. README.md and the others are added, with links as seen from
that folder, so that their links are checked too.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root.

    Args:
        files: those of the documentation's folder; extended in place, as mkdocs expects.
        config: of the site.
    """
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page's text with links between the root and ``docs/`` turned into links between pages of the site.

    Args:
        markdown: of a file of the root, or of ``docs/``.
    """
    pages = "|".join(map(re.escape, PAGES))
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(rf"\]\((?:\.\./)?({pages})", lambda link: f"]({PAGES[link[1]]}", markdown)
