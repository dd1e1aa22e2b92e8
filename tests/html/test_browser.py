"""The page in a browser: no errors, sorting and filtering, and pictures that tell the truth."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys

from clair_cli.html.page import html_page
from clair_cli.pictures.grids import share_grid, similarity_grid
from clair_cli.pictures.points import evidence, places
from clair_cli.report.model import ClientReport, ModuleScores, Report
from tests.fake_report import MODULES, all_benign, fake_report, undetermined
from tests.html.chromium import Page, start
from tests.html.hostile import HOSTILE, hostile

pytestmark = pytest.mark.browser
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    chrome = start()
    yield chrome
    chrome.quit()


Opener = Callable[..., Page]


@pytest.fixture
def opened(chromium: Chrome, tmp_path: Path) -> Opener:
    def open_(report: Report, *, width: int = 1100, theme: str = "light") -> Page:
        path = tmp_path / "r.html"
        path.write_text(html_page(report), encoding="utf-8")
        chromium.get_log("browser")
        return Page(chromium, path, width, theme)

    return open_


REPORTS = {
    "merge": fake_report(),
    "refine": fake_report(command="refine"),
    "undetermined": undetermined(),
    "nobody": replace(undetermined(), clients=()),
    "hostile": hostile(),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [1100, 390])
def test_nothing_goes_wrong_and_nothing_sticks_out(
    opened: Opener, name: str, theme: str, width: int
) -> None:
    page = opened(REPORTS[name], width=width, theme=theme)
    assert page.chrome.get_log("browser") == []
    assert page.js("performance.getEntriesByType('resource').length") == 0
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.one("h1").is_displayed()
    assert not page.all("img")
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")


def test_hostile_names_are_shown_as_words(opened: Opener) -> None:
    page = opened(hostile())
    assert HOSTILE[0] in page.names()
    assert HOSTILE[1] in page.names()
    assert r"a\u202eb\x1b[31m\u2028c\x00" in page.names()


def test_a_policy_stands_in_the_way_of_other_scripts(opened: Opener) -> None:
    page = opened(fake_report())
    page.js(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))"
    )
    assert page.js("typeof x") == "undefined"
    assert "Content Security Policy" in page.chrome.get_log("browser")[0]["message"]


def test_columns_sort_by_pointer_and_key(opened: Opener) -> None:
    page = opened(fake_report())
    by_name = sorted(client.name for client in fake_report().clients)
    assert page.names()[0] == "amber"
    client, _, sure, weight = page.all("#clients thead button")
    client.click()
    assert page.names() == by_name
    client.send_keys(Keys.ENTER)
    assert page.names() == by_name[::-1]
    assert page.one("#clients thead th").get_attribute("aria-sort") == "descending"
    weight.click()
    weight.click()
    shares = {c.name: c.weight for c in fake_report().clients}
    assert [shares[n] for n in page.names()] == sorted(shares.values(), reverse=True)
    assert page.one("#clients thead th").get_attribute("aria-sort") == "none"
    sure.click()
    order = {"clear": 0, "likely": 1, "open": 2, None: 3}
    found = {c.name: order[c.confidence] for c in fake_report().clients}
    assert [found[n] for n in page.names()] == sorted(found.values())


def test_words_and_verdicts_filter(opened: Opener) -> None:
    page = opened(fake_report())
    chips = {chip.get_attribute("data-verdict"): chip for chip in page.all(".chip")}
    chips["contaminated"].click()
    assert sorted(page.names()) == ["amber", "mallory", "zoe"]
    assert page.one("#shown").text == "3 of 12 shown"
    chips["rejected"].send_keys(Keys.SPACE)
    assert sorted(page.names()) == ["amber", "mallory", "rita", "zoe"]
    page.one("#find").send_keys("ZOE")
    assert page.names() == ["mallory", "zoe"]  # whose reason names it
    page.one("#find").send_keys(Keys.BACKSPACE * 3, "no such word")
    assert page.names() == []
    assert page.one("#shown").text == "0 of 12 shown"


def uneven() -> Report:
    """A report whose numbers differ by client and module."""
    report = fake_report()

    def changed(client: ClientReport, k: int) -> ClientReport:
        modules = {
            name: ModuleScores(1.0 + 0.1 * k, 0.31 - 0.02 * k - 0.05 * i, 0.04, 8, 2.0)
            for i, name in enumerate(MODULES)
        }
        scores = replace(client.scores, loading=1.1 - 0.11 * k, loading_se=0.02 + 0.004 * k)
        return replace(client, modules=modules, scores=scores)

    clients = tuple(
        c if c.verdict == "rejected" else changed(c, k) for k, c in enumerate(report.clients)
    )
    n = len(report.cohort.names)
    table = tuple(tuple(0.3 - 0.01 * (j + k) for k in range(n)) for j in range(n))
    points = tuple((0.6 - 0.07 * k, 0.3 - 0.05 * k) for k in range(n))
    cohort = replace(report.cohort, similarity=table, coordinates=points)
    return replace(report, clients=clients, cohort=cohort)


@pytest.mark.parametrize("name", ["similarity", "share"])
def test_keys_read_the_reports_numbers_off_a_heat_map(opened: Opener, name: str) -> None:
    report = uneven()
    grid = {"similarity": similarity_grid, "share": share_grid}[name](report)
    assert grid is not None
    page = opened(report)
    page.js(f"document.querySelector('#{name} canvas').focus()")
    page.press(Keys.ARROW_RIGHT)
    for i, row in enumerate(grid.values):
        for j, value in enumerate(row):
            said = page.said(name)
            assert said.startswith(grid.rows[i]), (i, j)
            assert f" {grid.columns[j]}: " in said
            if value is not None:
                assert abs(float(said.split(": ")[1].split()[name == "similarity"]) - value) < 1e-3
            page.press(Keys.ARROW_RIGHT)
        page.press(Keys.HOME, Keys.ARROW_DOWN)


@pytest.mark.parametrize("theme", THEMES)
def test_a_cell_has_the_colour_of_its_number(opened: Opener, theme: str) -> None:
    report = uneven()
    grid = share_grid(report)
    assert grid is not None
    page = opened(report, theme=theme)
    pointed = page.one("#share canvas")
    values = [row[1] for row in grid.values]
    height, width = pointed.size["height"], pointed.size["width"]
    ratio = page.js("arguments[0].height", pointed) / height
    top = _headed(page)
    step = (height - top) / len(grid.rows)
    colours = [
        page.js(
            "[...arguments[0].getContext('2d')"
            ".getImageData(arguments[1], arguments[2], 1, 1).data]",
            pointed,
            round((width - 6) * ratio),
            round((top + (i + 0.5) * step) * ratio),
        )
        for i in range(len(grid.rows))
    ]
    warm = [red - blue for red, _, blue, _ in colours]
    falling = sorted(zip(values, warm, strict=True), key=lambda pair: -(pair[0] or 0.0))
    assert [redder for _, redder in falling] == sorted(warm)
    assert max(warm) - min(warm) > 30


def _headed(page: Page) -> float:
    """Height of the columns' names: found by the pointer, which reads nothing above the cells."""
    script = """((canvas, box, readout) => {
      for (let y = 0; y < box.height; y++) {
        const at = {clientX: box.right - 6, clientY: box.top + y + 0.5};
        canvas.dispatchEvent(new PointerEvent("pointermove", at));
        if (!readout.textContent) continue;
        canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
        return y;
      }
    })(arguments[0], arguments[0].getBoundingClientRect(), arguments[1])"""
    return float(page.js(script, page.one("#share canvas"), page.one("#share .readout")))


def middle(page: Page, selector: str) -> list[tuple[float, float]]:
    """Centres of elements."""
    script = (
        "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
        ".map(b => [b.left + b.width / 2, b.top + b.height / 2])"
    )
    return [tuple(pair) for pair in page.js(script, selector)]


def test_marks_of_the_evidence_stand_where_the_numbers_say(opened: Opener) -> None:
    report = uneven()
    found = evidence(report)
    assert found is not None
    page = opened(report)
    marks = [x for x, _ in middle(page, "#evidence .at use")]
    (line, *_) = [x for x, _ in middle(page, "#evidence tbody .limit")]
    first, last = found.marks[0], found.marks[-1]
    unit = (marks[-1] - marks[0]) / (last.loading - first.loading)
    for mark, x in zip(found.marks, marks, strict=True):
        assert abs(x - marks[0] - unit * (mark.loading - first.loading)) < 0.7, mark.name
    assert abs(line - marks[0] - unit * (found.line - first.loading)) < 0.7
    bars = page.js(
        "[...document.querySelectorAll('#evidence .bar')].map(e => e.getBoundingClientRect())"
        ".map(b => [b.left, b.right])"
    )
    for mark, ends in zip(found.marks, bars, strict=True):
        for value, x in zip((mark.low, mark.high), ends, strict=True):
            assert abs(x - marks[0] - unit * (value - first.loading)) < 1.0, mark.name


@pytest.mark.parametrize("width", [1100, 390])
def test_the_map_has_one_scale(opened: Opener, width: int) -> None:
    report = uneven()
    page = opened(report, width=width)
    found = places(report)
    where = middle(page, "#map .at use")
    (x0, y0), (x1, y1) = where[0], where[-1]
    unit = (x1 - x0) / (found[-1].x - found[0].x)
    for place, (x, y) in zip(found, where, strict=True):
        assert abs(x - x0 - unit * (place.x - found[0].x)) < 0.7
        assert abs(y - y0 + unit * (place.y - found[0].y)) < 0.7
    assert y1 != y0


def test_bars_of_the_spectrum_are_as_high_as_their_values(opened: Opener) -> None:
    report = uneven()
    cohort = replace(report.cohort, spectrum=(5.0, 2.0, 1.0, 0.5, 0.0))
    page = opened(replace(report, cohort=cohort))
    heights = page.js(
        "[...document.querySelectorAll('#spectrum .value')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    for value, height in zip(cohort.spectrum, heights, strict=True):
        assert abs(height - heights[0] * value / 5.0) < 1.0


def test_keys_walk_over_the_map(opened: Opener) -> None:
    page = opened(uneven())
    page.js("document.querySelector('#map svg').focus()")
    page.press(Keys.ARROW_RIGHT)
    first = places(uneven())[0]
    assert page.said("map") == f"{first.name} ({first.verdict}): x {first.x:.3f}, y {first.y:.3f}"


def test_the_button_changes_colours(opened: Opener) -> None:
    page = opened(fake_report())
    seen = []
    for _ in range(3):
        page.one("#theme").click()
        seen.append((page.one("#theme").text, page.js("getComputedStyle(document.body).color")))
    assert [text for text, _ in seen] == ["Theme: light", "Theme: dark", "Theme: system"]
    assert seen[0][1] == seen[2][1] != seen[1][1]


@pytest.mark.parametrize("width", [660, 720])
def test_on_paper_no_short_word_is_broken(opened: Opener, width: int) -> None:
    """A sheet of A4 has about 720 pixels, one with wide margins 660."""
    page = opened(fake_report(), width=width)
    lines = page.js(
        "[...document.querySelectorAll('#clients [data-label=Sure], #clients [data-label=Weight],"
        " #clients thead th, .evidence td.right')].map(cell => {"
        " const range = document.createRange();"
        " range.selectNodeContents(cell.querySelector('button, span') || cell);"
        " return new Set([...range.getClientRects()].map(box => box.top)).size; })"
    )
    assert len(lines) > 30 and set(lines) <= {0, 1}


def test_it_prints_with_its_tables_open(opened: Opener) -> None:
    page = opened(fake_report(), theme="dark")
    pdf = page.chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")
    assert page.js("document.querySelectorAll('details.rows[open]').length") == 0
    assert page.chrome.get_log("browser") == []


def test_two_hundred_clients_of_four_hundred_modules_open_at_once(opened: Opener) -> None:
    report = all_benign(200)
    modules = tuple(f"model.layers.{i // 7}.m{i % 7}" for i in range(400))
    scores = report.clients[0].modules[MODULES[0]]
    clients = tuple(replace(c, modules=dict.fromkeys(modules, scores)) for c in report.clients)
    merged = report.merged
    assert merged is not None
    errors = dict.fromkeys(modules, merged.error_by_rank)
    report = replace(
        report,
        clients=clients,
        modules=tuple(replace(report.modules[0], name=name) for name in modules),
        merged=replace(merged, module_error_by_rank=errors),
    )
    assert len(html_page(report).encode()) < 3_000_000
    page = opened(report)
    took = page.js("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took < 4000  # 500 on an idle machine; others may work on this one
    assert page.one("#shown").text == "200 of 200 shown"
