"""Where the results of ``svdcut spectrum`` go: stdout, and the files that were asked for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from svdcut.cli.comparison_screen import print_comparison
from svdcut.cli.guard import note
from svdcut.cli.screen import print_json
from svdcut.cli.spectra_screen import print_spectra
from svdcut.errors import UsageError
from svdcut.spectra import files
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra
from svdcut.spectra.plan import SpectraPlan
from svdcut.write.destination import check_target


class Form(Enum):
    """Form of the output on stdout."""

    TABLES = "tables"
    JSON = "json"
    CSV = "csv"
    NOTHING = "nothing"


def choose_form(*, json: bool, csv: bool, quiet: bool) -> Form:
    """Return what the switches of the command line mean."""
    if json and csv:
        raise UsageError("--json and --csv: choose one")
    if json or csv:
        return Form.JSON if json else Form.CSV
    return Form.NOTHING if quiet else Form.TABLES


@dataclass(frozen=True, slots=True)
class Targets:
    """The files that were asked for.

    What draws is imported where it is needed: it needs numpy, and help shall not wait for it.
    """

    plot: Path | None
    html: Path | None
    save: Path | None

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuse before the work what could not be written after it.

        Parameters
        ----------
        inputs : sequence of Path
            Folders and files of the checkpoints.
        """
        for option, path, suffix in (
            ("--html", self.html, ".html"),
            ("--save", self.save, ".safetensors"),
        ):
            if path is not None and path.suffix != suffix:
                raise UsageError(f"{option} {path}: expected a name that ends in {suffix}")
        if self.plot is not None or self.html is not None:
            from svdcut.pictures import check_figure

            # The page has pictures too.
            check_figure(self.plot or Path("page.svg"))
        for path in (self.plot, self.html, self.save):
            if path is not None:
                check_target(path, inputs)

    def check_comparison(self, inputs: Sequence[Path]) -> None:
        """Do the same for two updates, of which there is a picture alone."""
        for option, path in (("--html", self.html), ("--save", self.save)):
            if path is not None:
                raise UsageError(f"{option} is of one update", hint="Leave out --compare.")
        self.check(inputs)

    def write(self, spectra: Spectra) -> None:
        """Write what was asked for."""
        if self.save is not None:
            files.save_values(spectra, self.save)
        if self.plot is not None:
            from svdcut.pictures import save_figure

            save_figure(spectra, self.plot)
        if self.html is not None:
            from svdcut.page import save_page
            from svdcut.pictures import DARK, LIGHT, panels_as_svg

            themes = {"light": LIGHT, "dark": DARK}
            panels = {name: panels_as_svg(spectra, theme) for name, theme in themes.items()}
            save_page(spectra, panels, self.html)

    def write_comparison(self, comparison: Comparison) -> None:
        """Write the picture of two updates, if it was asked for."""
        if self.plot is not None:
            from svdcut.pictures import save_comparison

            save_comparison(comparison, self.plot)


def show_spectra(spectra: Spectra, plan: SpectraPlan, form: Form, *, by_tensor: bool) -> None:
    """Print spectra, and how to see the update where it could be seen."""
    if form is Form.JSON:
        print_json(spectra.to_json())
    elif form is Form.CSV:
        files.write_csv(sys.stdout, files.HEAD, files.rows(spectra))
    elif form is Form.TABLES:
        from svdcut.spectra.lineage import find_base

        print_spectra(spectra, plan.pairing, with_tensors=by_tensor)
        base = find_base(plan.checkpoint) if plan.base is None else None
        if base is not None:
            words = ["svdcut", "spectrum", base, plan.checkpoint.source]
            note("its base is here; to see the update: " + shlex.join(words))


def show_comparison(comparison: Comparison, form: Form) -> None:
    """Print what two updates have in common."""
    if form is Form.JSON:
        print_json(comparison.to_json())
    elif form is Form.CSV:
        lines = files.comparison_rows(comparison)
        files.write_csv(sys.stdout, files.COMPARISON_HEAD, lines)
    elif form is Form.TABLES:
        print_comparison(comparison)
