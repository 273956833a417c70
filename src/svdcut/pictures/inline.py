"""An SVG of matplotlib made fit to stand in a page of HTML, beside others.

It knows nothing of what the picture shows.
"""

from __future__ import annotations

import hashlib
import re
from xml.sax.saxutils import quoteattr

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PROLOGUE = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_STYLE = re.compile(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>")
_OPENING = re.compile(r"<svg[^>]*>")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_ID = re.compile(r' id="([^"]*)"')
_USED = re.compile(r'(?:url\(#|href="#)([^)"]*)')
_PATH = re.compile(r' d="([^"]*)"')
_DIGITS = re.compile(r"(\.\d\d)\d+")
_SPACE = re.compile(r"\s*\n\s*")
_TAG = re.compile(r"<[^>]*>")
"""What a tensor's name holds is escaped: outside of tags nothing looks like one."""


def inline(svg: str, title: str) -> str:
    """Return an element that an HTML page may hold, however many others it holds.

    Parameters
    ----------
    svg : str
        As matplotlib wrote it, with text as text.
    title : str
        Read out where the picture is not seen.
    """
    svg = _METADATA.sub("", _COMMENT.sub("", _PROLOGUE.sub("", svg)))
    # As a style sheet its rule would hold for the whole page.
    svg = _STYLE.sub("", svg, count=1)
    svg = _TAG.sub(lambda tag: _tidied(tag[0]), svg)
    svg = _unique(svg, title)
    view = _VIEW.search(svg)
    size = f'width="{view[1]}pt" height="{view[2]}pt" {view[0]} ' if view else ""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}role="img" aria-label={quoteattr(title)} '
        'style="max-width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt">'
    )
    return _OPENING.sub(lambda _: opening, svg, count=1).strip()


def _tidied(tag: str) -> str:
    """Return a tag with the fonts of the system, and no more digits than are seen."""
    tag = tag.replace("xlink:href", "href").replace("'DejaVu Sans'", _FONTS)
    return _PATH.sub(_shortened, tag)


def _shortened(path: re.Match[str]) -> str:
    steps = _SPACE.sub("", _DIGITS.sub(r"\1", path[1]))
    return f' d="{steps}"'


def _unique(svg: str, title: str) -> str:
    """Give ids that are used a name that no other picture has, and drop the others."""
    prefix = "s" + hashlib.sha256((title + svg).encode()).hexdigest()[:10]
    used = [name for tag in _TAG.findall(svg) for name in _USED.findall(tag)]
    names = {name: f"{prefix}-{i}" for i, name in enumerate(dict.fromkeys(used))}

    def renamed(tag: str) -> str:
        tag = _ID.sub(lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", tag)
        return _USED.sub(lambda m: m[0].removesuffix(m[1]) + names[m[1]], tag)

    return _TAG.sub(lambda tag: renamed(tag[0]), svg)
