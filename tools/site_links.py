"""Hooks of the site of the documentation (.mkdocs.yml): README.md is its first page, and links work here and on GitHub.

On GitHub a page links to any file of the checkout (`../recipes/...`). The site holds the pages alone: there such a link
leads to the repository.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """README.md lies outside the folder of the pages."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from where the page lies in the checkout become links of the site, or to the repository."""
    own = page.file.src_uri
    folder = posixpath.dirname("README.md" if own == "index.md" else f"docs/{own}")

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        on_site = "index.md" if path == "README.md" else path.removeprefix("docs/")
        if files.get_file_from_path(on_site) and not on_site.endswith(".ipynb"):  # GitHub shows notebooks
            return posixpath.relpath(on_site, posixpath.dirname(own) or ".")
        return f"{config.extra['repository']}/blob/main/{path}" if (ROOT / path).exists() else match[1]

    return LINK.sub(target, markdown)
