"""The figures: drawn, the same bytes every time, and what they are told to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.copying.tables import summary, wilson

pytest.importorskip("matplotlib")

from benchmarks.figures import attacks as figures_attacks
from benchmarks.figures import calibration as figures_calibration
from benchmarks.figures import copying as figures_copying
from benchmarks.figures import figures
from benchmarks.figures import readme as figures_readme
from benchmarks.figures import theory as figures_theory
from benchmarks.figures.style import spread


def test_figures_are_drawn_and_the_same_every_time(
    cells: list[dict[str, Any]],
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module, name in ((figures_copying, "LINES"), (figures_readme, "MERGES")):
        some = {key: getattr(module, name)[key] for key in ("mean", "clair merge")}
        monkeypatch.setattr(module, name, some)  # fewer lines, less time
    (tmp_path / "results").mkdir()
    assert figures.draw_all(tmp_path / "results", tmp_path / "none") == []
    assert "copying_rounds.json: not there, skipped" in capsys.readouterr().out
    some_cells = [one for one in cells if one["init"] == "own" and one["kind"] != "wrong"]
    data = {"rounds": some_cells, "rows": summary(some_cells)}
    (tmp_path / "results" / "copying_rounds.json").write_text(json.dumps(data))
    drawn = figures.draw_all(tmp_path / "results", tmp_path / "a")
    assert [path.name for path in drawn] == [
        "does_it_work_merge.svg", "does_it_work_detect.svg", "copying_accuracy_own.svg",
        "copying_loss_own.svg", "copying_backdoor.svg", "copying_verdicts.svg",
    ]  # fmt: skip
    monkeypatch.setitem(figures.DRAWN, "copying_rounds", (figures_readme.does_it_work,))
    again = figures.draw_all(tmp_path / "results", tmp_path / "b")
    assert [path.name for path in again] == [path.name for path in drawn[:2]]
    for first, second in zip(drawn, again, strict=False):
        assert first.read_bytes() == second.read_bytes()
    for path in drawn:
        assert path.stat().st_size < 200_000
        assert b"<dc:date>" not in path.read_bytes()


def test_labels_keep_order_and_distance() -> None:
    assert spread([0.1, 0.9], 0.2, 0, 1) == [0.1, 0.9]
    assert spread([0.5, 0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.3, 0.5, 0.7])
    assert spread([1.0, 0.95, 0.2], 0.2, 0, 1) == pytest.approx([1.0, 0.8, 0.2])
    assert spread([0, 0, 0], 5, 0, 1) == pytest.approx([0, 0.5, 1])


def test_readme_figures_average_over_inits_and_count_all_rounds(
    cells: list[dict[str, Any]],
) -> None:
    rows = figures_readme.pooled(cells)
    assert [(row["kind"], row["share"]) for row in rows] == [
        ("clean", 0.0), ("wrong", 0.25), ("backdoor", 0.25), ("backdoor", 0.6),
    ]  # fmt: skip
    scores = [
        [c["scores"]["multi-krum"]["new_accuracy"] for c in cells
         if (c["kind"], c["share"], c["seed"]) == ("wrong", 0.25, seed)]
        for seed in (0, 1)
    ]  # fmt: skip
    assert [len(some) for some in scores] == [2, 2]
    a, b = (sum(some) / 2 for some in scores)
    mean, half = rows[1]["columns"]["multi-krum"]["new_accuracy"]
    assert (mean, half) == pytest.approx(((a + b) / 2, 1.96 * abs(a - b) / 2), rel=1e-12)
    assert (rows[1]["rounds"], rows[1]["verdicts"]["undetermined"]) == (4, 2)
    assert rows[1]["intervals"]["undetermined"] == wilson(2, 4)


def test_the_predicted_edge_lies_between_cells() -> None:
    one = {
        "rule": "path", "n_clients": 20, "subspace_dim": [4, 8], "fraction": [0.0, 0.4, 0.6, 0.8],
        "predicted_boundary": [1 - 4 / 20, 1 - 8 / 20],
    }  # fmt: skip
    assert figures_theory.predicted_edges(one) == [2.5, 1.5]  # 0.8 and 0.6 themselves are outside
    # sqrt(r / K_b) < 0.6 asks for more than 11.1 and 22.2 benign clients of 20
    assert figures_theory.predicted_edges({**one, "rule": "lam = 0.6"}) == [1.5, -0.5]


def test_attacks_are_sorted_by_what_they_do_to_clair() -> None:
    def row(attack: str, error: float | None, mean: float | None, undetermined: int) -> Any:
        cells = {"cells": 4, "undetermined": undetermined}
        return {"attack": attack, "error": error, "mean": mean, "best": 0.0, **cells}

    rows = [
        row("weak", 0.1, 9.0, 0), row("never-merged", 0.0, 9.0, 4), row("strong", 0.5, 0.1, 1),
        row("b-same", 0.1, 1.0, 0), row("infinite", 0.1, None, 0),
    ]  # fmt: skip
    shown = figures_attacks.worst(rows, 5)
    assert [one["attack"] for one in shown] == ["strong", "infinite", "weak", "b-same"]
    assert figures_attacks.described(shown[0]) == "strong (1/4 undetermined)"
    axes = figures_attacks.matrix_figure(rows).axes[0]
    dots = [tuple(map(float, one.get_xydata()[0])) for one in axes.lines]
    assert dots[:6] == [(0.1, 0), (0.01, 0), (0.5, 0), (10.0, 1), (0.01, 1), (0.1, 1)]


def test_the_figures_of_calibration_show_every_bin_and_row() -> None:
    power = {"round": [[300, 0.2, 0.1, 0.04], [300, 1.0, 0.99, 0.01]], "client": []}
    power["client"] = power["round"][:1]
    ((_, figure),) = figures_calibration.stated_power(power)
    seen = [container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers]
    assert seen == [[[0.2, 0.1], [1.0, 0.99]], [[0.2, 0.1]]]
    rates = [["seed 2", 400, 0.0, 0.0, 0.0]]
    line = {"levels": [0.05, 0.01, 0.002], "honest": rates, "planted": [["8", 400, 0.1, 0.03, 0.0]]}
    ((_, figure),) = figures_calibration.line_errors(line)
    drawn = [one.get_ydata() for one in figure.axes[0].lines]
    least = figures_calibration.LEAST_SHARE
    assert [list(one) for one in drawn[2:]] == [[0.1, 0.03, least], [least] * 3]
