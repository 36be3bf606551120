"""A page that would load anything from another host fails the build: no font, script or picture tells anybody who reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

LOADS: Final = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|srcset|data)=[\"']?(?:https?:)?//[^\s>]*"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|icon|preload|preconnect|dns-prefetch|manifest|modulepreload))"
    r"[^>]*?\bhref=[\"']?(?:https?:)?//[^\s>]*"
    r"|@import\s+[\"'](?:https?:)?//[^\s;]*|\burl\([\"']?(?:https?:)?//[^)]*",
    re.IGNORECASE,
)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """MkDocs shows what it is about to write. Raises RuntimeError, which ends the build."""
    if found := loads(output):
        raise RuntimeError(f"{page.file.src_uri}: would load from another host: {', '.join(found)}")
    return output


def loads(html: str) -> list[str]:
    """What a browser would fetch from elsewhere while it shows the page; a link that a reader may follow is none."""
    return [found[0] for found in LOADS.finditer(html)]
