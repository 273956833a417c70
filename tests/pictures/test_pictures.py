"""Pictures of spectra: they draw whatever is measured, always alike, and leave no half file."""

import dataclasses
import math
import os
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from svdcut.errors import OutputError, UsageError
from svdcut.pictures import DARK, LIGHT, panels_as_svg, save_figure
from svdcut.pictures import kinds as pictured
from svdcut.pictures.kinds import group_kinds, kept_energy, log_curves, short_labels
from svdcut.pictures.style import PANEL, decade_ticks, readable
from svdcut.pictures.tables import measure_of, scale_of, tabulate
from svdcut.spectra.columns import RELATIVE_NORM, describe
from svdcut.spectra.facts import Spectra, Subject, TensorSpectra
from svdcut.spectra.matrix import Spectrum

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}
SVG = "{http://www.w3.org/2000/svg}"


def spectrum(values, *, base=10.0, edge=1e-3, top=None, full=None):
    raw = Spectrum(
        singular_values=values[:top],
        full_rank=full or len(values),
        size=len(values) ** 2,
        norm=math.hypot(*values),
        base_norm=base,
        noise_edge=edge,
        zero_fraction=0.0,
        method="gram",
        value_bound=1e-6,
    )
    return describe(raw)


def falling(num=24, scale=1.0, decay=0.1):
    return [scale * math.exp(-decay * i) for i in range(num)]


def tensor(*matrices):
    n = matrices[0].full_rank
    stacked = len(matrices) > 1
    shape = (len(matrices), n, n) if stacked else (n, n)
    return TensorSpectra(shape, "F32", stacked, matrices)


def spectra(tensors, subject=Subject.UPDATE, **changes):
    base = "org/base" if subject is Subject.UPDATE else None
    made = Spectra("0.1.0", "2.13", "cpu", subject, base, "org/ft", None, tensors, (), 1.0)
    return dataclasses.replace(made, **changes)


def layers(num, kinds, make=lambda layer, kind: spectrum(falling(scale=1 + layer))):
    return {f"m.layers.{i}.{k}.weight": tensor(make(i, k)) for i in range(num) for k in kinds}


def find_kinds(made):
    return pictured.find_kinds({name: found.matrices for name, found in made.tensors.items()})


def relative_norms(made):
    """The norms over base's, by kind and layer, and their scale."""
    measure = measure_of(RELATIVE_NORM, RELATIVE_NORM.drawing)
    table = tabulate(find_kinds(made), measure)
    return table, scale_of(table, logarithmic=True)


STRANGE = (
    "a$b$",
    "x" * 300,
    "模型.层",
    "evil\x1b[31m\u202e\n\x00.w",
    "<script>&amp;\"'",
    ' id="a" url(#b) href="#c" d="1.2345"',
    "$\\frac{1",
    "",
    "\ud800x",
    ".",
)

CASES = {
    "update": lambda: spectra(layers(3, ("q_proj", "mlp.up")) | {"embed": tensor(spectrum([1.0]))}),
    "weights": lambda: spectra(
        layers(3, "ab", lambda i, k: spectrum(falling(), base=None)), Subject.WEIGHTS
    ),
    "one tensor": lambda: spectra({"weight": tensor(spectrum(falling()))}),
    "one layer": lambda: spectra(layers(1, "abc") | {"embed": tensor(spectrum([2.0, 1.0]))}),
    "no layers": lambda: spectra({n: tensor(spectrum(falling())) for n in ("a.b", "c.d")}),
    "ninety-six layers": lambda: spectra(layers(96, "a")),
    "many kinds": lambda: spectra(layers(2, "abcdefghi") | {"head": tensor(spectrum(falling()))}),
    "experts": lambda: spectra(
        {
            f"layers.{i}.experts.down_proj": tensor(
                *(spectrum(falling(8, 1 + e)) for e in range(4))
            )
            for i in range(2)
        }
    ),
    "some zeros": lambda: spectra(
        layers(2, "ab", lambda i, k: spectrum([0.0] * 4 if k == "a" else falling(4)))
    ),
    "zeros": lambda: spectra(layers(2, "a", lambda i, k: spectrum([0.0] * 4))),
    "top": lambda: spectra(
        layers(2, "ab", lambda i, k: spectrum(falling(64), top=8, full=512, edge=None)), top=8
    ),
    "top 1": lambda: spectra(
        layers(2, "a", lambda i, k: spectrum(falling(64), top=1, full=512, edge=None)), top=1
    ),
    "rank one": lambda: spectra({"a": tensor(spectrum([3.0], edge=None))}),
    "rank-deficient": lambda: spectra(
        layers(2, "a", lambda i, k: spectrum([1.0] * 4 + [1e-9] * 4 + [0.0]))
    ),
    "float64": lambda: spectra(
        {
            "big": tensor(spectrum(falling(scale=1e200))),
            "small": tensor(spectrum(falling(scale=1e-200), base=0.0)),
            "tiny": tensor(spectrum(falling(3, 1e-300), base=1e-320)),
        }
    ),
    "strange names": lambda: spectra(
        {name: tensor(spectrum(falling())) for name in STRANGE},
        base="$HOME/\x1b[2J" + "b" * 500,
        checkpoint="<ft>&$x_1$",
    ),
    "thousands": lambda: spectra(
        {
            f"layers.{i}.experts.{e}.w.weight": tensor(spectrum(falling(6, 1 + e % 7)))
            for i in range(60)
            for e in range(40)
        }
    ),
    "nothing": lambda: spectra({}),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_measured_is_drawn(case, tmp_path):
    made = CASES[case]()
    save_figure(made, tmp_path / "page.svg")
    assert (tmp_path / "page.svg").stat().st_size > 1000
    ET.parse(tmp_path / "page.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["page.svg"]


@pytest.mark.parametrize("case", ["update", "zeros", "top", "strange names", "nothing"])
def test_panels_stand_in_a_page_of_html(case):
    made = CASES[case]()
    panels = panels_as_svg(made, DARK)
    assert bool(panels) == bool(made.tensors)
    ids = [e.get("id") for p in panels for e in ET.fromstring(p.svg).iter() if e.get("id")]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        assert panel.title
        assert panel.caption.endswith(".")
        assert panel.svg.startswith("<svg ")
        without_namespace = panel.svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http" not in without_namespace
        assert "<style" not in panel.svg
        assert all(use in ids for use in re.findall(r'="(?:url\()?#([^")]*)', panel.svg))


@pytest.mark.parametrize("suffix", MAGIC)
def test_the_same_numbers_give_the_same_bytes(suffix, tmp_path):
    for name in ("a", "b"):
        save_figure(CASES["rank-deficient"](), tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(MAGIC[suffix])
    assert b"Matplotlib v" not in first
    assert b"Date" not in first


def test_panels_of_both_themes_share_a_page():
    made = CASES["update"]()
    pages = [panels_as_svg(made, theme) for theme in (LIGHT, DARK)]
    assert pages[0] == panels_as_svg(made, LIGHT)
    ids = [id_ for page in pages for panel in page for id_ in re.findall(r' id="(.*?)"', panel.svg)]
    assert ids
    assert len(set(ids)) == len(ids)


def test_a_panel_of_two_hundred_matrices_is_small():
    made = spectra(layers(25, "abcdefgh", lambda i, k: spectrum(falling(600, 1 + i, 0.01))))
    for panel in panels_as_svg(made, LIGHT):
        assert len(panel.svg.encode()) < 300_000


def texts(svg):
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("case", [*CASES, "one outlier"])
def test_text_of_panels_can_be_read_on_a_phone(case):
    made = outlier() if case == "one outlier" else CASES[case]()
    for panel in panels_as_svg(made, LIGHT):
        root = ET.fromstring(panel.svg)
        _, _, width, _ = map(float, root.get("viewBox").split())
        assert width == pytest.approx(300)
        styles = [element.get("style") for element in root.iter(f"{SVG}text")]
        sizes = [float(re.search(r"([\d.]+)px", style)[1]) for style in styles]
        assert min(sizes, default=11) >= 11


def test_numbers_below_a_panel_do_not_touch():
    made = spectra(layers(2, "ab", lambda i, k: spectrum(falling(64), top=8, full=2**20)))
    ranks = [text for text in texts(panels_as_svg(made, LIGHT)[2].svg) if text.isdigit()]
    assert 2 < len(ranks) < 7
    assert set(ranks) < {str(4**power) for power in range(11)}
    heat = panels_as_svg(spectra(layers(64, "ab")), LIGHT)[3].svg
    shown = [text for text in texts(heat) if text.isdigit()]
    assert shown == [str(layer) for layer in range(0, 64, int(shown[1]))]


def outlier():
    def make(layer, kind):
        scale = 1e4 if (layer, kind) == (5, "b") else 1 + layer / 10
        return spectrum(falling(scale=scale))

    return spectra(layers(12, "abc", make))


def test_an_outlier_leaves_the_colours_to_the_others():
    made = outlier()
    table, scale = relative_norms(made)
    usual = sorted(table.known)[:-1]
    assert (scale.low, scale.high) == pytest.approx((usual[0], usual[-1]))
    assert table.beyond(scale, above=True).sum() == 1
    assert table.beyond(scale, above=True)[1, 5]
    assert not table.beyond(scale, above=False).any()
    panel = panels_as_svg(made, LIGHT)[-1]
    assert "Cells beyond the colours: 1 above" in panel.caption
    assert any(text.startswith("≥ ") for text in texts(panel.svg))


def test_what_is_common_is_no_outlier():
    def scales(*values):
        tensors = layers(len(values), "a", lambda i, k: spectrum([values[i], values[i] / 2]))
        return relative_norms(spectra(tensors))

    for values in ((1, 2, 4, 8, 16, 32), (1,) * 9 + (100,) * 3, (1, 100), (3,)):
        table, scale = scales(*map(float, values))
        assert not table.beyond(scale, above=True).any()
        assert not table.beyond(scale, above=False).any()
    table, scale = scales(*[1.0] * 11, 1e-6)
    assert table.beyond(scale, above=False).sum() == 1


def test_names_stand_as_they_are_written():
    drawn = panels_as_svg(CASES["strange names"](), LIGHT)[2].svg
    for label in ("a$b$", "<script>&amp;\"'", "$\\frac{1", "\\u5c42"):
        assert readable(label, PANEL.label) in texts(drawn)


def test_a_strangers_text_is_one_short_line():
    assert readable("a\x00b\n\x1b[31m\u202ec", 40) == "ab [31mc"
    assert readable("模", 40) == "\\u6a21"
    assert readable("abcdefghij", 7) == "ab…ghij"
    assert readable("", 9) == readable("\x00", 9) == "(no name)"


def test_labels_tell_kinds_apart():
    bert = "bert.encoder.layer.*."
    assert short_labels(
        [
            f"{bert}attention.output.dense.weight",
            f"{bert}attention.self.query.weight",
            f"{bert}output.dense.weight",
            "bert.embeddings.word_embeddings.weight",
        ]
    ) == ["attention.output.dense", "query", "encoder.output.dense", "word_embeddings"]
    assert short_labels(
        ["m.layers.*.mlp.experts.*.up.weight", "m.layers.*.mlp.shared.up.weight"]
    ) == ["experts.up", "shared.up"]
    assert short_labels(
        ["encoder.block.*.layer.*.SelfAttention.q", "decoder.block.*.layer.*.SelfAttention.q"]
    ) == ["encoder.SelfAttention.q", "decoder.SelfAttention.q"]
    assert short_labels(["a.weight", "a"]) == ["a.weight", "a"]


def test_rarer_kinds_are_one_group():
    kinds = find_kinds(CASES["many kinds"]())
    groups = group_kinds(kinds)
    assert [group.label for group in groups] == [*"abcdefg", "3 others"]
    assert sum(len(g.matrices) for g in groups) == sum(len(k.matrices) for k in kinds)


def test_experts_are_one_line_and_one_cell():
    (kind,) = find_kinds(CASES["experts"]())
    curves = log_curves(kind)
    assert [curve.layer for curve in curves] == [0, 1]
    assert curves[0].num_matrices == 4
    assert 10 ** curves[0].value[0] == pytest.approx(2.5)
    table, _ = relative_norms(CASES["experts"]())
    assert table.values.shape == (1, 2)
    norms = [matrix.norm for matrix in kind.units[0].matrices]
    assert table.values[0, 0] == pytest.approx(math.hypot(*norms) / math.hypot(*[10.0] * 4))


def test_what_is_in_no_layer_stands_at_the_ends():
    made = spectra(
        {"embed": tensor(spectrum([1.0]))} | layers(2, "a") | {"z": tensor(spectrum([2.0]))}
    )
    table, _ = relative_norms(made)
    assert table.columns == ("", "0", "1", "")
    assert (table.values == table.values).tolist() == [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, False, True],
    ]


def test_energy_ends_where_the_values_do():
    whole = kept_energy([spectrum([2.0, 1.0]), spectrum([1.0] * 4)])
    assert whole.ranks.tolist() == [1, 2, 3, 4]
    assert whole.low.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert whole.high.tolist() == pytest.approx([0.8, 1, 1, 1])
    head = kept_energy([spectrum(falling(64), top=8, full=512)])
    assert head.ranks[-1] == 8
    assert head.high[-1] < 1


def test_ticks_have_numbers_that_people_read():
    assert decade_ticks(-3.2, 0.3)[1] == ["0.001", "0.01", "0.1", "1"]
    assert decade_ticks(-8.0, 0.0)[1] == ["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]
    assert decade_ticks(-0.1, 0.4)[1] == ["1", "2"]


@pytest.mark.parametrize("draw", [save_figure, panels_as_svg])
def test_without_matplotlib_it_says_what_to_install(draw, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    target = tmp_path / "a.png" if draw is save_figure else LIGHT
    with pytest.raises(UsageError, match="matplotlib") as caught:
        draw(CASES["update"](), target)
    assert caught.value.hint == "pip install matplotlib"


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.gz"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
        save_figure(CASES["nothing"](), tmp_path / name)


def test_a_capital_suffix_is_one(tmp_path):
    save_figure(CASES["nothing"](), tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(MAGIC["png"])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for target in (tmp_path / "absent" / "a.svg", tmp_path / "folder.svg"):
        (tmp_path / "folder.svg").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=re.escape(str(target))):
            save_figure(CASES["nothing"](), target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_what_was_there_stays_when_writing_fails(monkeypatch, tmp_path):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.svg").write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_figure(CASES["nothing"](), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
