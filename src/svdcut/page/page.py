"""Write the page: one HTML file that holds all it shows, and asks nobody for more.

What stands in its tables is in `tables`; how names become harmless is in `text`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from svdcut.files.atomic_write import write_whole
from svdcut.page import tables
from svdcut.page.text import grouped, markup, script_json
from svdcut.pictures.page import Picture
from svdcut.spectra import files
from svdcut.spectra.column import known_columns
from svdcut.spectra.columns import JOINED
from svdcut.spectra.facts import Spectra

_HERE = Path(__file__).parent
_THEMES = ("light", "dark")
_MAX_LEFT_OUT = 1000
_EARLY = 'document.documentElement.className = "loading"'
"""Runs before the tables are read, so that the far rows are never laid out."""


def save_page(spectra: Spectra, panels: Mapping[str, Sequence[Picture]], path: Path) -> None:
    """Write the spectra of a checkpoint as a page.

    Parameters
    ----------
    spectra : Spectra
        What the tables show.
    panels : mapping of str to sequence of Picture
        The same pictures for ``light`` and for ``dark``. Without any there are tables alone.
    path : Path
        The file. What was there is replaced, once the page is complete.

    Raises
    ------
    OutputError
        If it cannot be written.

    Notes
    -----
    The same spectra and pictures make the same bytes. A row of a table takes 0.8 KB; there are
    at most `svdcut.page.tables.MAX_ROWS`. The CSV, compressed, takes 0.2 KB for every matrix.
    """
    data = render(spectra, panels).encode()
    write_whole(path, lambda place: place.write_bytes(data))


def render(spectra: Spectra, panels: Mapping[str, Sequence[Picture]]) -> str:
    """Return the page.

    Parameters
    ----------
    spectra, panels
        As for `save_page`.
    """
    of_what = spectra.subject.value
    every = tables.tensor_rows(spectra)
    rows = tables.limited(every)
    columns = known_columns(JOINED, [matrix for _, matrix in spectra.matrices])
    script = _part("page.js")
    return Template(_part("template.html")).substitute(
        policy=_policy(_EARLY, script),
        title=f"Spectrum of the {of_what} · {markup(spectra.checkpoint)}",
        style=_part("page.css"),
        heading=f"Spectrum of the {of_what}",
        sides=_sides(spectra),
        totals=tables.totals_list(spectra),
        made=_made(spectra),
        pictures=_pictures(panels),
        kind_heads=tables.kind_heads(columns),
        kind_rows=tables.kind_rows(spectra, columns),
        lead=tables.lead(every, rows),
        heads=tables.heads(columns),
        rows=tables.body(rows, columns),
        meanings=tables.meanings(rows, columns),
        left_out=_left_out(spectra.left_out),
        data=script_json({"rows": tables.data(rows, columns), "csv": _packed_csv(spectra)}),
        early=_EARLY,
        script=script,
    )


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _packed_csv(spectra: Spectra) -> str:
    """Return what ``--csv`` prints, by gzip and base64."""
    text = io.StringIO()
    files.write_csv(text, files.HEAD, files.rows(spectra))
    return base64.b64encode(gzip.compress(text.getvalue().encode(), mtime=0)).decode()


def _policy(*scripts: str) -> str:
    """Return the content security policy: these scripts, styles, pictures; no network."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    rules = (
        "default-src 'none'",
        f"script-src {hashes}",
        # Not by hash: it holds for the pictures too, which have styles of their own.
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _sides(spectra: Spectra) -> str:
    sides = [("Fine-tuned" if spectra.base is not None else "Checkpoint", spectra.checkpoint)]
    if spectra.base is not None:
        sides.append(("Base", spectra.base))
    return "".join(f"<dt>{side}<dd><bdi>{markup(name)}</bdi>" for side, name in sides)


def _made(spectra: Spectra) -> str:
    bounds = [matrix.value_bound for _, matrix in spectra.matrices]
    values = "all singular values"
    if spectra.top is not None:
        values = f"the {grouped(spectra.top)} leading singular values"
    facts = [f"Measured on {markup(spectra.device)}", values]
    if (bound := max(bounds, default=0.0)) > 0 and bound < 1:
        facts.append(f"relative error of a value at most {bound:.0e}")
    facts += [f"svdcut {markup(spectra.svdcut_version)}", f"torch {markup(spectra.torch_version)}"]
    return " · ".join(facts)


def _pictures(panels: Mapping[str, Sequence[Picture]]) -> str:
    """Return the figures: as images, in which no script runs and no name meets another's."""
    light = panels.get("light", ())
    dark = panels.get("dark", light)
    figures = [
        f"<figure><figcaption><b>{markup(day.title)}</b>{markup(day.caption)}</figcaption>"
        + "".join(
            f'<img class="{theme}" alt="{markup(day.title)}" src="data:image/svg+xml;base64,'
            f'{base64.b64encode(panel.svg.encode()).decode()}">'
            for theme, panel in zip(_THEMES, (day, night), strict=True)
        )
        + "</figure>"
        for day, night in zip(light, dark, strict=True)
    ]
    if not figures:
        return ""
    return (
        '<section aria-labelledby="pictures"><h2 id="pictures" class="unseen">Pictures</h2>'
        f'<div class="pictures">{"".join(figures)}</div></section>'
    )


def _left_out(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = names[:_MAX_LEFT_OUT]
    items = [f"<li><bdi>{markup(name)}</bdi>" for name in shown]
    if len(names) > len(shown):
        items.append(f"<li>and {grouped(len(names) - len(shown))} more")
    return (
        f"<details><summary>{grouped(len(names))} tensors without a spectrum: vectors, or what "
        f'base lacks</summary><ul class="names">{"".join(items)}</ul></details>'
    )
