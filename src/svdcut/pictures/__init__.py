"""Pictures of what was measured: a page for a paper, and panels for a page of HTML.

It measures nothing. matplotlib, of the extra ``plot``, is imported where it is needed.
"""

from svdcut.pictures.figure import (
    check_figure,
    panels_as_svg,
    save_comparison,
    save_figure,
)
from svdcut.pictures.page import Picture
from svdcut.pictures.style import DARK, LIGHT, Theme, can_draw

__all__ = [
    "DARK",
    "LIGHT",
    "Picture",
    "Theme",
    "can_draw",
    "check_figure",
    "panels_as_svg",
    "save_comparison",
    "save_figure",
]
