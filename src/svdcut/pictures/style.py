"""Style of pictures: themes, settings of matplotlib, labels, and the axis of ranks.

It knows nothing of what they show.
"""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from svdcut.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIXED_RANKS = (16, 64, 256)
"""Those that people ask for."""

FONT = "DejaVu Sans"
"""matplotlib brings it: the same file everywhere."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a picture."""

    ink: str
    muted: str
    """Colour of secondary text."""

    faint: str
    """Colour of grids and frames."""

    background: str
    """Background colour; panels leave it to their page."""

    palette: tuple[str, ...]
    """Okabe and Ito's: told apart under every common colour blindness."""

    rest: str
    """Colour of whatever has none of its own."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a picture."""

    width: float
    """In inches."""

    text: float
    """Size, in points; numbers at axes have nine tenths of it."""

    columns: int
    """Size of small panels side by side."""

    label: int
    """Characters of a label beside a panel."""

    @property
    def title(self) -> int:
        """Characters of a title, in bold, above a small panel."""
        return round(89 * self.width / self.text / self.columns) - 1


PAGE = Layout(width=7.4, text=7.0, columns=4, label=24)
"""A page for a paper."""

PANEL = Layout(width=300 / 72, text=12.3, columns=2, label=13)
"""A panel as wide as a phone, where a point is a pixel: no text has less than 11."""

LIGHT = Theme(
    ink="#24292F",
    muted="#57606A",
    faint="#D8DEE4",
    background="#FFFFFF",
    palette=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    rest="#8C959F",
)
DARK = Theme(
    ink="#E6EDF3",
    muted="#9198A1",
    faint="#30363D",
    background="#0D1117",
    palette=("#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442", "#E6EDF3"),
    rest="#7D8590",
)


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    # It warns where it cannot keep its fonts from one run to the next, as without a home.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a picture needs matplotlib, which is not installed",
            hint="pip install matplotlib",
        ) from error


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        require_matplotlib()
    except UsageError:
        return False
    return True


@contextmanager
def drawing(theme: Theme, size: float, *, text_as_paths: bool) -> Iterator[None]:
    """Set matplotlib up, whatever the user's own settings, and put these back.

    Parameters
    ----------
    theme : Theme
        Colours.
    size : float
        Of text, in points; everything else follows.
    text_as_paths : bool
        Whether an SVG brings its letters along.
    """
    from matplotlib import rc_context, style

    colours = ("text.color", "axes.labelcolor", "axes.titlecolor")
    settings = {
        **dict.fromkeys(colours, theme.ink),
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.labelsize": size * 0.9,
        "ytick.labelsize": size * 0.9,
        "font.family": [FONT],
        "font.size": size,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "axes.titlesize": size,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": size,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": "none",
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.major.size": 2.0,
        "ytick.major.size": 0.0,
        "xtick.major.width": 0.6,
        "figure.facecolor": "none",
        "svg.fonttype": "path" if text_as_paths else "none",
        "svg.hashsalt": "svdcut",  # the same numbers give the same file
        "pdf.fonttype": 42,  # what publishers ask for
        "path.simplify_threshold": 0.2,
    }
    with style.context("default"), rc_context(settings):
        yield


def mixed(colour: str, background: str, share: float) -> str:
    """Return a colour ``#RRGGBB`` of which only a share is left on a background."""
    pairs = ((int(c[i : i + 2], 16) for c in (colour, background)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02X}" for a, b in pairs)


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FONT, fallback_to_default=False)).get_charmap())


def readable(text: str, limit: int) -> str:
    """Return a stranger's text as one short line that the font can show.

    Parameters
    ----------
    text : str
        Any. What controls the line is dropped, what has no glyph is spelled out.
    limit : int
        In characters; the middle of a longer text is left out.
    """
    shown = []
    for letter in " ".join(text.split()):
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            continue
        known = ord(letter) in _drawable()
        shown.append(letter if known else letter.encode("unicode_escape").decode())
    line = "".join(shown) or "(no name)"
    if len(line) <= limit:
        return line
    head = (limit - 1) // 3
    return f"{line[:head]}…{line[len(line) - (limit - 1 - head) :]}"


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAX_TICKS = 6


def _power(exponent: int, *, plain: bool) -> str:
    if plain:
        return f"{10.0**exponent:.{max(-exponent, 0)}f}"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def decade_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return where a log axis has ticks, and their labels.

    Parameters
    ----------
    low, high : float
        Logarithms to base 10 of the ends of the axis.
    """
    first, last = math.ceil(low), math.floor(high)
    if last - first >= 1:
        step = -(-(last - first + 1) // _MAX_TICKS)
        exponents = [e for e in range(first, last + 1) if e % step == 0]
        plain = first >= -3 and last <= 4
        return [float(e) for e in exponents], [_power(e, plain=plain) for e in exponents]
    for factors in ((1, 2, 5), range(1, 10)):
        found = {
            exponent + math.log10(factor): _short(factor, exponent)
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= exponent + math.log10(factor) <= high
        }
        if len(found) > 1:
            break
    return list(found), list(found.values())


def _short(factor: float, exponent: int) -> str:
    if -4 <= exponent <= 4:
        return f"{factor * 10.0**exponent:.3g}"
    return f"{factor:.3g}·{_power(exponent, plain=False)}"


def short_number(logarithm: float) -> str:
    """Return a number of one digit, given its logarithm to base 10."""
    exponent = math.floor(logarithm)
    digit = round(10 ** (logarithm - exponent))
    return _short(1, exponent + 1) if digit == 10 else _short(digit, exponent)


def rank_ticks(largest: int) -> list[int]:
    """Return the powers of four up to a rank: among them the ranks that people ask for."""
    step = 4 if largest > 16 else 2
    return [step**power for power in range(32) if step**power <= max(largest, 1)]


def draw_rank_axis(
    axes: Axes, largest: float, place: Callable[[float], float], *, zero: bool = False
) -> None:
    """Draw the ticks and labels of an axis of ranks."""
    ranks = ([0] if zero else []) + rank_ticks(round(largest))
    axes.set_xticks([place(rank) for rank in ranks], [str(rank) for rank in ranks])


def draw_fixed_ranks(
    axes: Axes, largest: float, place: Callable[[float], float], theme: Theme
) -> None:
    """Draw lines at the ranks that people ask for."""
    for rank in FIXED_RANKS:
        if rank <= largest:
            axes.axvline(place(rank), color=theme.faint, linewidth=0.8, zorder=0.5)


def marker(face: str, edge: str, size: float) -> dict[str, Any]:
    """Return the settings of a mark."""
    return {
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markersize": size,
        "markeredgewidth": 0.8,
    }


def say(axes: Axes, text: str, theme: Theme) -> None:
    """Write a text in the middle."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme.muted)
