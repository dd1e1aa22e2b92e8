"""Figures: the same bytes, well formed, closed to strangers' words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from clair_cli.plot import figures
from tests.fake_report import all_benign, fake_report, undetermined
from tests.html.hostile import HOSTILE, hostile

ALL = {"evidence", "similarity", "share", "size", "map", "spectrum", "losses"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return figures.render(fake_report())


@pytest.fixture
def only_svg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG takes four times as long."""
    monkeypatch.setattr(figures, "FORMATS", ("svg",))


def texts(svg: bytes) -> list[str]:
    """Words of a figure; it must be well formed."""
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def test_each_picture_is_there_as_svg_and_png(drawn: dict[str, bytes]) -> None:
    assert drawn.keys() == {f"{name}.{format_}" for name in ALL for format_ in ("svg", "png")}
    for name, data in drawn.items():
        assert data.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG"), name


def test_the_same_report_gives_the_same_bytes_whatever_the_users_settings(
    drawn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All as SVG, and one as PNG, which takes four times as long."""
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9}):
        monkeypatch.setattr(figures, "FORMATS", ("svg",))
        again = figures.render(fake_report())
        monkeypatch.setattr(figures, "FORMATS", ("png",))
        monkeypatch.setattr(figures, "_FIGURES", {"evidence": figures._FIGURES["evidence"]})
        again |= figures.render(fake_report())
        assert mpl.rcParams["font.size"] == 30
    assert len(again) == len(ALL) + 1
    assert again == {name: data for name, data in drawn.items() if name in again}
    assert not any(re.search(rb"20\d\d-\d\d-\d\d|dc:date", data) for data in drawn.values())


@pytest.mark.usefixtures("only_svg")
def test_a_report_with_less_gives_fewer() -> None:
    assert figures.render(undetermined()).keys() <= {
        "evidence.svg", "similarity.svg", "size.svg", "map.svg", "spectrum.svg",
    }  # fmt: skip
    assert "losses.svg" not in figures.render(fake_report(command="inspect"))
    cohort = replace(
        fake_report().cohort, names=(), similarity=(), coordinates=(), spectrum=(), line=None
    )
    nobody = replace(fake_report(command="inspect"), cohort=cohort, clients=(), modules=())
    assert figures.render(nobody) == {}


def test_hostile_names_are_words() -> None:
    found = figures.render(hostile())
    for name, data in found.items():
        if name.endswith("svg"):
            root = ElementTree.fromstring(data)
            tags = {element.tag.rpartition("}")[2] for element in root.iter()}
            assert tags.isdisjoint({"script", "img", "image", "foreignObject"} - {"image"}), name
            assert not any(
                "href" in key and not value.startswith("#") and "data:" not in value
                for element in root.iter()
                for key, value in element.items()
            ), name
            assert not {"\u202e", "\x1b", "\u2028"} & set(data.decode()), name
    said = texts(found["evidence.svg"])
    assert "{{ 7 * 7 }}{% raw %}" in said
    assert HOSTILE[0][:31] + "\u2026" in said


@pytest.mark.usefixtures("only_svg")
def test_a_dollar_is_no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_FIGURES", {"evidence": figures._evidence})
    report = all_benign(4, prefix="$x^2$ ")
    assert "$x^2$ 00" in texts(figures.render(report)["evidence.svg"])


@pytest.mark.parametrize(("many", "named"), [(60, True), (61, False)])
def test_names_of_very_many_are_left_out(many: int, named: bool) -> None:
    made: list[Any] = []
    figures._names(lambda *given: made.append(given), ("x",) * many)
    assert (len(made[0]) == 2) is named
    assert len(made[0][0]) == (many if named else 0)


def test_marks_stand_where_the_report_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(figures, "FORMATS", ("svg",))
    monkeypatch.setattr(figures, "_saved", lambda figure, format_: made.append(figure) or b"")
    report = fake_report()
    figures.render(report)
    axes = {name: figure.axes[0] for name, figure in zip(figures._FIGURES, made, strict=True)}
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes["map"].lines
        if len(line.get_xdata()) == 1
    }
    assert points == {*report.cohort.coordinates, (0.0, 0.0)}
    shown = axes["similarity"].images[0].get_array()
    assert shown[0, 1] == pytest.approx(0.3)
    assert shown.mask[0, 0]
    assert [bar.get_height() for bar in axes["spectrum"].patches] == list(report.cohort.spectrum)
    curve = next(line for line in axes["losses"].lines if line.get_label() == "the whole merge")
    assert list(curve.get_ydata()) == pytest.approx([20.0, 7.0, 0.0])
    bars = [line.get_xdata() for line in axes["evidence"].lines if len(line.get_xdata()) == 2]
    assert [pytest.approx([0.03 - 0.12, 0.03 + 0.12])] * 3 == [list(bar) for bar in bars[:3]]


def test_no_figure_outlives_its_making() -> None:
    assert "pyplot" not in Path(figures.__file__).read_text()
