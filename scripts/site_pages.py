"""A hook of MkDocs: pages and files of the site that do not stand in docs/.

Links that leave docs/ lead to them, and such a page's own links back; what cannot be followed is
left as it is, and ``mkdocs build --strict`` refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Where a page, or a file to read, has its place in the site, and what it is in the tree.
ELSEWHERE = {
    "systemd.md": "integrations/systemd/README.md",
    "ansible.md": "integrations/ansible/README.md",
    "guests.md": "netns-fixtures/guest/README.md",
    "files/envoy.service": "integrations/systemd/envoy.service",
    "files/haproxy.yml": "integrations/ansible/examples/haproxy.yml",
}
_PLACES = {source: place for place, source in ELSEWHERE.items()}
_LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them to the site."""
    for place, source in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 -- MkDocs names them
    """Turn links by places in the tree into links by places in the site."""
    here = PurePosixPath(page.file.src_uri)
    source = PurePosixPath(ELSEWHERE.get(str(here), f"docs/{here}"))

    def turned(link: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / link[1])
        place = _PLACES.get(target, target.removeprefix("docs/"))
        if place == target:
            return link[0]
        return f"]({os.path.relpath(place, here.parent)}{link[2] or ''})"

    return _LINK.sub(turned, markdown)
