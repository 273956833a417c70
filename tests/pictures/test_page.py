"""The page of a checkpoint's spectra: what it holds, and what it does in a browser."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import stat
from dataclasses import replace
from fnmatch import fnmatchcase
from html.parser import HTMLParser

import pytest

from svdcut.cli.spectrum_output import Form, show_spectra
from svdcut.errors import OutputError
from svdcut.page import save_page
from svdcut.page.page import render
from svdcut.page.sparkline import curve, svg
from svdcut.page.tables import MAX_ROWS
from svdcut.page.text import MAX_NAME, visible
from svdcut.pictures import LIGHT, Picture, panels_as_svg
from svdcut.shown import percent, size_text
from svdcut.spectra.columns import JOINED, describe
from svdcut.spectra.facts import Spectra, Subject, TensorSpectra
from svdcut.spectra.matrix import Intruders, Spectrum

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '</script><img src=x onerror="window.broken=1">\u202e.\x07&\u2028`${1}'
NUM_BIG = 5000


def panel(color):
    return Picture(
        "Decay <of> values",
        "One line a matrix.",
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><style>rect{stroke:red}'
        f'</style><rect width="40" height="20" fill="{color}"/>'
        "<script>parent.broken=1</script></svg>",
    )


PANELS = {"light": (panel("white"),), "dark": (panel("black"),)}


def matrix(first=1.0, **changes):
    values = [first / (index + 1) for index in range(100)]
    facts = {
        "singular_values": values,
        "full_rank": 100,
        "size": 20_000,
        "norm": math.hypot(*values),
        "base_norm": 40.0,
        "noise_edge": first / 49.5,
        "zero_fraction": 0.125,
        "method": "gram",
        "value_bound": 1e-9,
    }
    return describe(Spectrum(**(facts | changes)))


ZEROS = matrix(
    singular_values=[0.0] * 100, norm=0.0, zero_fraction=1.0, method="none", value_bound=0.0
)


def tensor(*matrices, shape=(100, 200)):
    return TensorSpectra(shape, "BF16", len(matrices) > 1, matrices)


def spectra(tensors, **changes):
    facts = {
        "svdcut_version": "1.2.3",
        "torch_version": "2.99",
        "device": "cpu",
        "subject": Subject.UPDATE,
        "base": "org/base",
        "checkpoint": "org/finetuned",
        "top": None,
        "tensors": tensors,
        "left_out": ("model.norm.weight",),
        "seconds": 1.5,
    }
    return Spectra(**(facts | changes))


USUAL = spectra(
    {
        "embed.weight": tensor(matrix(2.0)),
        "layers.2.q.weight": tensor(matrix(10.0)),
        "layers.10.q.weight": tensor(ZEROS),
        "layers.10.k.weight": tensor(matrix(0.5), shape=(100, 300)),
        "layers.10.experts.up": tensor(*map(matrix, (3.0, 5.0, 4.0)), shape=(3, 100, 200)),
        "layers.11.mlp.experts.0.up.weight": tensor(matrix(7.0)),
        "layers.11.mlp.experts.1.up.weight": tensor(matrix(9.0)),
    }
)
ORDER = [
    "embed.weight",
    "layers.2.q.weight",
    "layers.10.q.weight",
    "layers.10.k.weight",
    "layers.10.experts.up",
    "layers.11.mlp.experts.*.up.weight",
]


class Reader(HTMLParser):
    """Collect the texts, the elements and the attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def data(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]
    )


def columns(page):
    titles = re.findall(r'<button type="button" title="[^"]*">([^<]*)</button>', page)
    return [html.unescape(title) for title in titles]


def row_of(page, name):
    return next(row for row in data(page)["rows"] if row[1] == name)


# What it holds


def test_every_number_is_on_the_page_for_people_and_for_the_script():
    found = matrix(2.0, intruders=Intruders((0.1, 0.9), 0.5))
    page = render(spectra({"embed.weight": tensor(found)}), {})
    cells = re.findall(r"<td[^>]*>([^<]*)", page[page.index('id="table"') :])
    assert {"100×200", "BF16", "2", "0.02", "12%", "1.6", "49", "0.0404"} <= set(cells)
    row = dict(zip(columns(page), row_of(page, "embed.weight")[1:], strict=True))
    assert row == {
        "tensor": "embed.weight",
        "shape": [100, 200],
        "dtype": "BF16",
        **{
            column.title.replace(" %", "\xa0%"): pytest.approx(column.joined([found]))
            for column in JOINED
        },
    }
    assert {column.text([found]) for column in JOINED} <= set(cells)


def test_the_header_says_what_it_is_and_how_much():
    text = " ".join(Reader(render(USUAL, {})).text)
    norm = math.hypot(*(found.norm for _, found in USUAL.matrices))
    for part in (
        "Spectrum of the update",
        "org/base",
        "org/finetuned",
        "cpu",
        "svdcut 1.2.3",
        "torch 2.99",
        size_text(norm),
        percent(norm / (40 * math.sqrt(9))),
        "392",  # 8 of the 9 matrices have 49 values above the edge
        "of 900 singular values",
        "model.norm.weight",
    ):
        assert part in text, part


def test_weights_have_no_base_and_no_column_that_would_be_empty():
    weights = replace(
        USUAL,
        subject=Subject.WEIGHTS,
        base=None,
        tensors={"embed.weight": tensor(matrix(base_norm=None, noise_edge=None))},
    )
    page = render(weights, {})
    assert "Spectrum of the weights" in page
    assert "relative norm" not in page.lower()
    assert not {"relative norm", "noise edge", "intruders"} & set(columns(page))


def test_experts_are_one_row_and_a_row_each_below_it():
    page = render(USUAL, {})
    places = {title: place for place, title in enumerate(columns(page), start=1)}
    rows = data(page)["rows"]
    assert [row[1] for row in rows if row[0] < 0] == ORDER
    for name, values in (
        ("layers.10.experts.up", [3.0, 5.0, 4.0]),
        ("layers.11.mlp.experts.*.up.weight", [7.0, 9.0]),
    ):
        row = row_of(page, name)
        assert row[places["first"]] == max(values)
        assert row[places["norm"]] == pytest.approx(math.hypot(*(matrix(v).norm for v in values)))
        assert row[places["zeros"]] == 0.125
        experts = [each for each in rows if each[0] == rows.index(row)]
        assert [each[places["first"]] for each in experts] == values


def test_kinds_gather_what_differs_in_numbers_alone():
    page = render(USUAL, {})
    kinds = page[page.index('class="kinds"') : page.index('id="tensors"')]
    assert kinds.count("<tr><th scope=row>") == 5
    assert "layers.<wbr>*.<wbr>q.<wbr>weight</bdi><td>2<td>" in kinds


def test_names_of_a_stranger_stay_text():
    hostile = spectra(
        {HOSTILE: tensor(matrix(), ZEROS), f"{HOSTILE}.experts.1.x": tensor(matrix())},
        base=HOSTILE,
        checkpoint=HOSTILE,
        device=HOSTILE,
        svdcut_version=HOSTILE,
        torch_version=HOSTILE,
        left_out=(HOSTILE,),
    )
    dtype = replace(hostile.tensors[HOSTILE], dtype=HOSTILE)
    hostile = replace(hostile, tensors={**hostile.tensors, HOSTILE: dtype})
    page = render(hostile, {"light": (Picture(HOSTILE, HOSTILE, "<svg/>"),)})
    reader = Reader(page)
    assert reader.tags.count("script") == 3
    assert {dict(reader.attributes).get("onerror")} == {None}
    assert {tag for tag in reader.tags if tag == "img"} == {"img"}
    assert reader.tags.count("img") == 2  # the panel, light and dark
    assert not set("\u202e\x07\u2028") & set(page)
    shown = visible(HOSTILE)
    assert "\\u202e" in shown
    assert "\\x07" in shown
    assert shown in {row[1] for row in data(page)["rows"]} | {row[3] for row in data(page)["rows"]}
    assert shown in "".join(reader.text)


@pytest.mark.parametrize("character", ["\ud800", "\u2066", "\x00", "\x9b", "\u00ad", "\u200f"])
def test_what_would_hide_is_spelled_out(character):
    page = render(spectra({f"a{character}b": tensor(matrix())}), {})
    assert character not in page
    escape = character.encode("unicode_escape", "surrogatepass").decode()
    assert f"a{escape}b" in page
    page.encode()


def test_what_is_not_finite_is_missing():
    broken = dict.fromkeys(("norm", "noise_edge", "zero_fraction"), math.nan)
    found = matrix(**broken, base_norm=0.0, value_bound=math.inf)
    infinite = matrix(
        singular_values=[math.inf, math.nan], **broken | {"norm": math.inf}, base_norm=1e-320
    )
    page = render(spectra({"a": tensor(found), "b": tensor(infinite), "c": tensor(matrix())}), {})
    body = page[: page.index("<script type")]
    assert not re.search(
        r"\b(nan|inf|infinity)\b",
        re.sub(r"<style>.*</style>", "", body, flags=re.DOTALL),
        re.IGNORECASE,
    )
    assert "<td>-" in body
    assert row_of(page, "b").count(None) >= 5
    assert render(spectra({}), {})  # nothing to show is no error


def test_it_is_the_same_every_time(tmp_path):
    for name in ("one.html", "two.html"):
        save_page(USUAL, PANELS, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert one == two
    assert one == render(replace(USUAL, seconds=9.0), PANELS).encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_it_asks_nobody_for_anything():
    page = render(USUAL, PANELS)
    assert not re.findall(r"(?:https?:)?//[a-z]", page.replace("image/svg", ""))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    for name, value in Reader(page).attributes:
        if name in ("src", "href", "action", "srcset"):
            assert value.startswith(("data:image/svg+xml;base64,", "#")), (name, value[:50])
        assert not name.startswith("on")


def test_pictures_of_both_themes_must_match():
    with pytest.raises(ValueError, match="shorter"):
        render(USUAL, {"light": PANELS["light"], "dark": ()})
    alone = render(USUAL, {"light": PANELS["light"]})
    assert Reader(alone).tags.count("img") == 2


def big(count):
    tensors = {
        f"model.layers.{index}.self_attn.q_proj.weight": tensor(matrix(1 + index % 97))
        for index in range(count)
    }
    return spectra(tensors)


def test_its_size_is_bounded():
    assert len(render(big(NUM_BIG), {})) < 5e6
    page = render(big(MAX_ROWS + 200), {})
    rows = data(page)["rows"]
    assert len(rows) == MAX_ROWS
    assert "of largest norm" in page
    assert min(row[4] for row in rows) > matrix(1.0).norm  # the smallest are left out
    stacks = {f"layers.{i}.experts.up": tensor(*[matrix()] * 400) for i in range(20)}
    page = render(spectra(stacks), {})
    assert len(data(page)["rows"]) <= MAX_ROWS
    assert "too many experts" in page
    assert len(render(spectra({"a" * 10**6: tensor(matrix())}), {})) < 1e5
    assert len(visible("a" * 10**6)) == MAX_NAME + 1


def test_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.html", tmp_path / "file" / "a.html", tmp_path / "folder"):
        with pytest.raises(OutputError, match=re.escape(str(path))):
            save_page(USUAL, {}, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_it_replaces_what_was_there_with_usual_permissions(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    save_page(USUAL, {}, path)
    (tmp_path / "usual").touch()
    assert path.read_text(encoding="utf-8") == render(USUAL, {})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("page.html", "usual")}
    assert len(modes) == 1


def test_a_sparkline_shows_the_noise_edge_where_its_values_are():
    found = curve([matrix(noise_edge=1e-2)])
    assert found.edge == pytest.approx(found.depths[-1], abs=1e-12) == 2
    assert f'<path class=e d="M0 {svg_height(found, 4)}h' in svg(found, 4)


def svg_height(found, decades):
    """Where the line of the values ends, of which the last is as high as the edge."""
    steps = re.findall(r"l-?\d+ (-?\d+)", svg(found, decades))
    start = int(re.findall(r'<path d="M0 (\d+)', svg(found, decades))[0])
    return start + sum(map(int, steps))


# What it does in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that asks for nothing of its own."""
    needed = "SVDCUT_NEED_CHROMIUM" in os.environ
    if CHROMIUM is None:
        assert not needed, "no chromium on the PATH"
        pytest.skip("no chromium on the PATH")
    if not needed:
        pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    options = (
        "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync"
    )
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{option}" for option in options.split()]
        )
        yield running
        running.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open the page of some spectra; at the end nothing must have gone wrong in it."""
    contexts, faults = [], []

    def opened(shown, panels=PANELS, **options):
        path = tmp_path / f"page{len(contexts)}.html"
        save_page(shown, panels, path)
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked(request.url, path.as_uri()))
        page.goto(path.as_uri())
        return page

    def asked(url, own):
        if url != own and not url.startswith(("data:image/svg+xml;base64,", "blob:")):
            faults.append(url)

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def names(page):
    return page.locator("#table tbody tr:visible th bdi").all_text_contents()


def head(page, title):
    return page.locator("#table thead th").filter(has_text=re.compile(rf"^{title}$"))


def test_it_starts_in_the_order_of_the_model(visit):
    page = visit(USUAL)
    assert page.title() == "Spectrum of the update · org/finetuned"
    assert names(page) == ORDER
    assert page.locator("#shown").text_content() == "6 of 6"
    assert page.evaluate("window.broken") is None
    pictures = page.locator("figure img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert all(width > 0 for width in pictures)


def test_a_click_sorts_and_another_reverses(visit):
    page = visit(USUAL)
    button = head(page, "first").get_by_role("button")
    by_value = [ORDER[i] for i in (1, 5, 4, 0, 3, 2)]
    button.click()
    assert names(page) == by_value
    assert head(page, "first").get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert names(page) == by_value[::-1]
    assert head(page, "first").get_attribute("aria-sort") == "ascending"
    head(page, "tensor").get_by_role("button").press("Space")
    assert names(page) == [ORDER[i] for i in (0, 1, 4, 3, 2, 5)]  # layer 2 before layer 10
    assert head(page, "first").get_attribute("aria-sort") == "none"
    head(page, "shape").get_by_role("button").click()
    assert names(page)[:2] == ["layers.10.experts.up", "layers.10.k.weight"]
    page.get_by_role("button", name="Order of the model").click()
    assert names(page) == ORDER


def test_what_is_missing_is_last_both_ways(visit):
    page = visit(USUAL)
    for _ in range(2):
        head(page, "stable rank").get_by_role("button").click()
        assert names(page)[-1] == "layers.10.q.weight"
        assert (
            page.locator("#table tbody tr:last-child td", has_text=re.compile("^-$")).count() == 2
        )


def test_every_column_of_facts_sorts(visit):
    page = visit(USUAL)
    buttons = page.locator("#table thead button")
    assert buttons.count() == page.locator("#table thead th").count() - 1  # the drawing
    for place in range(buttons.count()):
        buttons.nth(place).click()
        assert page.locator("#table th[aria-sort$=cending]").count() == 1
        assert sorted(names(page)) == sorted(ORDER)


def test_the_filter_hides_rows(visit):
    page = visit(USUAL)
    field = page.get_by_label("Filter names")
    field.fill("Layers.10 WEIGHT")
    assert names(page) == ["layers.10.q.weight", "layers.10.k.weight"]
    assert page.locator("#shown").text_content() == "2 of 6"
    field.fill("experts.1.up")  # the name of one expert finds its row
    assert names(page) == ["layers.11.mlp.experts.*.up.weight"]
    field.fill("nothing")
    assert names(page) == []
    field.press("Escape")
    assert names(page) == ORDER


GLOBS = (
    "layers.*", "*.weight", "*", "**", "layers.?.q.weight", "*.q.*", "*layers.1[01].*", "*[!t]",
    "[]", "[!]", "[]x]", "[!]x]", "[a-e]mbed*", "[z-a]*", "[^e]*", "[[]*", "*[*]*", "a+b", "a.b",
    "(*", "Layers.*", "*WEIGHT", "layers.10.*.weight*", "*\\*", "?", "[.-]", "|*", "*[a-",
    "*1*0*w*", "*.weight*t",
)  # fmt: skip


def test_the_filter_takes_the_globs_of_the_command_line(visit):
    found = [n for n in ORDER if "*" not in n]
    found += ["a+b", "aab", "[x]", "a*b", "😀", "]", "x", "^e", "a\\b", "(ab", "|", "-", "\\"]
    page = visit(spectra({name: tensor(matrix()) for name in found}), {})
    for pattern in GLOBS:
        page.get_by_label("Filter names").fill(pattern)
        part = pattern.lower()
        expected = [n for n in found if fnmatchcase(n, pattern) or part in n.lower()]
        assert names(page) == expected, pattern


def test_a_glob_of_many_stars_ends(visit):
    page = visit(spectra({"a" * 200: tensor(matrix()), "ab": tensor(matrix())}), {})
    page.get_by_label("Filter names").fill("*a" * 40 + "*b")
    assert names(page) == []


def test_experts_unfold_and_are_sorted_below_their_own(visit):
    page = visit(USUAL)
    page.get_by_role("button", name="Experts of layers.10.experts.up").click()
    assert names(page)[5:8] == [f"layers.10.experts.up[{i}]" for i in range(3)]
    head(page, "first").get_by_role("button").click()
    assert names(page)[2:6] == ["layers.10.experts.up"] + [
        f"layers.10.experts.up[{i}]" for i in (1, 2, 0)
    ]
    page.get_by_role("button", name="Hide experts").click()
    assert len(names(page)) == len(ORDER)
    page.get_by_role("button", name="Show experts").click()
    assert len(names(page)) == len(ORDER) + 5


def look(page):
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", color)[:3])) < 384
    shown = page.locator("figure img:visible").evaluate_all("all => all.map(i => i.className)")
    assert shown == ["dark" if dark else "light"]
    return dark


def test_the_theme_follows_the_system_and_the_button(visit):
    for scheme in ("light", "dark"):
        page = visit(USUAL, color_scheme=scheme)
        assert look(page) == (scheme == "dark")
        page.locator("#theme").click()
        assert look(page) == (scheme == "light")
        page.locator("#theme").click()
        assert look(page) == (scheme == "dark")
        page.emulate_media(media="print")
        assert not look(page)


def contrast(page, selector):
    """Return the contrast of a text and what is behind it, as WCAG 2 has it."""
    colors = page.locator(selector).first.evaluate(
        """element => {
          const color = getComputedStyle(element).color;
          for (; element; element = element.parentElement) {
            const behind = getComputedStyle(element).backgroundColor;
            if (!behind.startsWith("rgba")) return [color, behind];
          }
        }"""
    )

    def luminance(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, colors))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(visit, scheme):
    page = visit(USUAL, color_scheme=scheme)
    for selector in (
        "h1", ".lead", ".made", ".totals dt", ".totals small", "figcaption", "thead th",
        "tbody th", "tbody td", "td.t", "summary", "#csv", ".fold", "#shown",
    ):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [400, 800, 1280, 1900])
def test_it_fits_every_width(visit, width):
    long = {"a_name_without_dots" * 9: tensor(matrix()), **USUAL.tensors, **big(60).tensors}
    checkpoint = "a/path/" * 40
    page = visit(spectra(long, checkpoint=checkpoint), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tall").evaluate("frame => frame.scrollTo(frame.scrollWidth, 1000)")
    frame = page.locator(".tall").bounding_box()
    for place in (".tall thead th:nth-child(5)", ".tall thead th:first-child"):
        assert page.locator(place).bounding_box()["y"] == pytest.approx(frame["y"], abs=2)
    name = page.locator(".tall tbody th").last.bounding_box()
    assert name["x"] == pytest.approx(frame["x"], abs=2)
    assert name["width"] < 0.6 * width


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1900])
def test_text_of_pictures_can_be_read_at_every_width(visit, width):
    tensors = {
        f"model.decoder.layers.{i}.attention_with_a_long_name.{kind}_projection.weight": tensor(
            matrix(1.0 + i)
        )
        for i in range(12)
        for kind in ("query", "key", "value", "output")
    }
    shown = spectra(tensors)
    panels = {"light": panels_as_svg(shown, LIGHT)}
    page = visit(shown, panels, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scales = page.locator("figure img:visible").evaluate_all(
        """all => all.map((image) => {
          const svg = atob(image.src.split(",")[1]);
          const drawn = Number(/viewBox="0 0 ([0-9.]+)/.exec(svg)[1]);
          const scale = image.getBoundingClientRect().width / drawn;
          return [...svg.matchAll(/font:? ?[^"']*?([0-9.]+)px/g)].map((m) => m[1] * scale);
        })"""
    )
    assert len(scales) == len(panels["light"])
    for sizes in scales:
        assert min(sizes) >= 11
        assert max(sizes) < 22


def test_names_of_a_stranger_run_nothing(visit):
    shown = spectra({HOSTILE: tensor(matrix(), ZEROS)}, checkpoint=HOSTILE, left_out=(HOSTILE,))
    page = visit(shown, {"light": (Picture(HOSTILE, HOSTILE, PANELS["light"][0].svg),)})
    page.get_by_label("Filter names").fill("img")
    page.locator(".fold").click()
    assert names(page)[0] == visible(HOSTILE)
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 2


def saved(page, tmp_path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "svdcut-spectrum.csv"
    download.value.save_as(tmp_path / "saved.csv")
    return (tmp_path / "saved.csv").read_bytes().decode()


def test_the_csv_is_that_of_the_command_line(visit, tmp_path, capsys):
    strange = {
        '=a,"b"': tensor(matrix()),
        "a\x1b[2J\r\nb\ud800": tensor(ZEROS),
        "-1": tensor(ZEROS),
    }
    shown = replace(USUAL, tensors={**USUAL.tensors, **strange})
    page = visit(shown)
    page.get_by_label("Filter names").fill("embed")
    head(page, "norm").get_by_role("button").click()
    found = saved(page, tmp_path)
    show_spectra(shown, None, Form.CSV, by_tensor=False)
    assert found == capsys.readouterr().out
    assert found.count("\n") == 1 + len(shown.matrices)


def test_thousands_of_rows_are_quick_and_all_there(visit, tmp_path):
    page = visit(big(NUM_BIG), {})
    assert page.locator("#shown").text_content() == f"{NUM_BIG} of {NUM_BIG}"
    assert page.locator("#table tbody tr").count() == 500
    head(page, "tensor").get_by_role("button").click()
    head(page, "tensor").get_by_role("button").click()
    assert names(page)[0] == f"model.layers.{NUM_BIG - 1}.self_attn.q_proj.weight"
    page.locator(".tall").evaluate("frame => { frame.scrollTop = frame.scrollHeight; }")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 1000")
    page.get_by_label("Filter names").fill("layers.77.")
    assert names(page) == ["model.layers.77.self_attn.q_proj.weight"]
    assert saved(page, tmp_path).count("\n") == 1 + NUM_BIG


def test_without_scripts_all_can_be_read(browser, tmp_path):
    save_page(big(600), {}, tmp_path / "page.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("#table tbody tr").last.is_visible()
    assert page.locator("#table tbody tr").count() == 600
    assert not page.locator("#csv").is_visible()
    context.close()
