"""Calibration: pools as tables, bins and rows, planted clients at the line, changed thresholds."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import clair_cli
from benchmarks.calibration import line, power, thresholds
from benchmarks.calibration.pools import Pool, cut, width_pool
from benchmarks.calibration.thresholds import Cohort, changed, evaluate, remembering, threshold
from benchmarks.width import cohorts, simulate
from benchmarks.width.simulate import Setting
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.judge import factor, groups, verdicts
from clair_cli.maths.judge import judge as judging
from clair_cli.maths.judge import thresholds as values
from clair_cli.maths.judge.judge import judge

pytestmark = pytest.mark.usefixtures("one_thread")

SETTING = Setting(16, 6, 0.5, "own", 2e-3, 14, 6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("width")
    simulate.make_pool(SETTING, folder)
    return folder


@pytest.fixture(scope="module")
def pool(cache: Path) -> Pool:
    made = width_pool(SETTING, cache)
    assert made is not None
    return made


def test_a_pool_without_all_its_modules_is_none(tmp_path: Path) -> None:
    assert width_pool(SETTING, tmp_path) is None


def test_a_cohort_cut_from_the_tables_is_judged_as_its_files_are(pool: Pool, cache: Path) -> None:
    files = cohorts.load_pool(SETTING, cache)
    assert files is not None
    members = [0, 3, 4, 7, 8, 9, 15]
    report = clair_cli.merge(
        {f"{i:02d}": files.client(k) for i, k in enumerate(members)}, fresh=True, rank="full"
    ).report
    found = pool.judge(members)
    assert report.cohort.outcome == found.outcome
    assert [one.verdict for one in report.clients] == [one.verdict for one in found.verdicts]
    torch.testing.assert_close(pool.gram, files.gram, rtol=1e-4, atol=1e-9)


def test_a_module_that_nobody_has_is_cut_off(pool: Pool) -> None:
    whole = cut(pool.evidence, [2, 1])
    assert whole.norms.tolist() == pool.evidence.norms[:, [2, 1]].tolist()
    pool.evidence.norms[0, 1:3] = 0.0
    try:
        assert len(cut(pool.evidence, [2, 1]).norms) == SETTING.modules - 1
    finally:
        pool.evidence.norms[0, 1:3] = whole.norms[0, [1, 0]]


@pytest.mark.parametrize(("count", "expected"), [(599, 1), (600, 2), (5000, 10)])
def test_bins_hold_no_fewer_than_told_and_are_ten_at_most(count: int, expected: int) -> None:
    chance = random.Random(0)
    made = power.bins([(chance.random(), True) for _ in range(count)])
    assert len(made) == expected and sum(map(len, made)) == count
    assert all(max(a) <= min(b) for a, b in pairwise(made))


@pytest.mark.parametrize(("hits", "off"), [(190, False), (180, True)])
def test_a_bin_is_off_beyond_a_twentieth_where_errors_are_less(hits: int, off: bool) -> None:
    assert power.row("", [(0.99, k < hits) for k in range(200)]).endswith("off") == off


def test_a_trial_puts_an_unrelated_client_in_the_place_of_an_honest_one(pool: Pool) -> None:
    trials = [power.trial(SETTING, pool, random.Random(n)) for n in range(12)]
    stated = [one for one in trials if one is not None]
    assert stated
    sure = [one for one in stated if one.round_power > 0.99 and one.client_power > 0.99]
    assert sure and all(one.found and one.sure for one in sure)


def test_a_trial_changes_one_client_of_the_cohort(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def noted(evidence: Evidence, clients: list[int]) -> Evidence:
        asked.append(list(clients))
        return cut(evidence, clients)

    monkeypatch.setattr(power, "cut", noted)
    for number in range(4):
        power.trial(SETTING, pool, random.Random(number))
    assert len(asked) == 8
    for before, after in zip(asked[::2], asked[1::2], strict=True):
        ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert (pool.kinds[old], pool.kinds[new]) == ("honest", "lone") and new not in before


def test_each_unrelated_client_is_tried_until_one_is_not_found(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are in the cohort already can't be put there once more."""
    tried: list[int] = []
    missed: list[int] = []

    def found(_: Pool, cohort: list[int], place: int, lone: int) -> bool:
        assert lone not in cohort and pool.kinds[cohort[place]] == "honest"
        tried.append(lone)
        return lone not in missed

    monkeypatch.setattr(power, "is_found", found)
    for number in range(6):
        tried.clear()
        one = power.trial(SETTING, pool, random.Random(number), every=True)
        assert one is not None and one.all_found is True
        assert len(set(tried)) == len(tried) and set(tried) <= set(pool.of("lone"))
    missed.append(tried[-1])
    one = power.trial(SETTING, pool, random.Random(5), every=True)
    assert one is not None and one.all_found is False
    one = power.trial(SETTING, pool, random.Random(5))
    assert one is not None and one.all_found is None


def test_the_tables_of_power_are_printed(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = "--widths 16 --modules 6 --powers 0.5 --inits own --rates 2e-3 --counts 14 6 --draws 2"
    out = tmp_path / "power.json"
    places = ["--cache", str(cache), "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["power", *told.split(), *places])
    power.main()
    made = json.loads(out.read_text())
    assert set(made) == {"round", "client"}
    assert all(len(one) == 4 for bins in made.values() for one in bins)
    printed = capsys.readouterr().out.splitlines()
    titles = ["round", "client", "rounds with power", "round, d16 m6", "each unrelated client"]
    assert all(any(text.startswith(title) for text in printed) for title in titles)


def test_planted_clients_have_the_cosines_they_are_told() -> None:
    shares = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    evidence = line.planted(shares, 200, 0.3, torch.Generator().manual_seed(0))
    found = evidence.matrix.value.mean(0)
    wanted = 0.3 * shares[:, None] * shares
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(found[off], wanted[off], rtol=0, atol=0.02)


@pytest.mark.parametrize(("factor_", "below"), [(0.0, True), (2.0, False)])
def test_a_planted_client_off_the_line_is_told(
    factor_: float, below: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LINE", factor_ * line.LINE)
    p = list(line.at_the_line(8, 28, 0.4, 0.0, 3))
    assert len(p) == 3 and all((one < 1e-3) == below for one in p)


def test_the_typical_share_is_a_median_by_squares() -> None:
    shares = torch.tensor([3.0, 0.1, 0.1, 0.1, 2.0], dtype=torch.float64)
    assert line.typical(shares).tolist() == [3.0]


def test_rates_too_large_are_marked() -> None:
    assert "*" not in line.row("", [0.004] * 15 + [0.5] * 985)
    assert line.row("", [0.004] * 40 + [0.5] * 960).count("*") == 1


def test_pretrained_cohorts_have_the_kinds_they_name(pool: Pool) -> None:
    named = Pool(pool.name, pool.names, tuple(k if k == "honest" else "label" for k in pool.kinds),
                 pool.evidence)  # fmt: skip
    drawn = list(line.cohorts(named, 3))
    assert {kind for kind, _ in drawn} == {"clean", "label"}
    for kind, members in drawn:
        bad = sum(named.kinds[k] == "label" for k in members)
        assert bad <= 0.4 * len(members) and (bad > 0) == (kind == "label")
    assert len(list(line.pretrained(named, 1))) >= 5


def test_a_threshold_is_changed_where_it_is_used_and_then_as_before() -> None:
    with threshold("LINE", 0.2):
        assert {values.LINE, factor.LINE, verdicts.LINE} == {0.2}
    assert {values.LINE, factor.LINE, verdicts.LINE} == {0.45}
    assert changed("LINE", 0.7) == pytest.approx(0.315)
    assert changed("DUPLICATE_COSINE", 0.7) == pytest.approx(0.9993)
    assert set(thresholds.NAMES) == {name for name in dir(values) if name.isupper()}


def test_what_is_remembered_is_what_would_be_computed(pool: Pool) -> None:
    cohort = Cohort(pool, (0, 1, 2, 3, 4, 5, 14, 15, 26, 27))
    for name in ("LINE", "OWN_SHARE", "LEFT_P", "ERROR_RATE"):
        for factor_ in (0.7, 1.3):
            with threshold(name, changed(name, factor_)):
                plain = evaluate(cohort)
                with remembering():
                    assert evaluate(cohort) == evaluate(cohort) == plain
    with remembering():
        before = evaluate(cohort)
        with threshold("POWER", 2.0):
            assert not evaluate(cohort).judged
        assert before.judged and evaluate(cohort) == before


def test_what_a_threshold_has_a_part_in_is_computed_anew(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def counted(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(groups, "find_minority")
    for name in ("find_structure", "collaborate"):
        counted(judging, name)
    cohort = Cohort(pool, (0, 1, 2, 3, 4, 5, 6, 7))
    after_groups = {"SPREAD_RATIO", "MODULE_NORM_CAP", "SECOND_GROUP_SHARE"}
    of_minorities = {"MINORITY_P", "OWN_SHARE", "LEFT_P", "ERROR_RATE"}
    with remembering():
        evaluate(cohort)
        for name in thresholds.NAMES:
            called.clear()
            with threshold(name, changed(name, 1.001)):
                evaluate(cohort)
            assert ("find_structure" in called) == (name not in after_groups), name
            assert ("find_minority" in called) == (name in of_minorities), name
            assert ("collaborate" in called) == (name == "LINE"), name


def test_the_error_is_that_of_the_merge(pool: Pool, cache: Path) -> None:
    files = cohorts.load_pool(SETTING, cache)
    assert files is not None
    members = (0, 1, 2, 3, 4, 5, 14, 15)
    found, merged = evaluate(Cohort(pool, members)), cohorts.judge(files, members)
    assert found.judged == merged.judged and found.error == pytest.approx(merged.error, abs=1e-3)


def test_the_table_of_thresholds_has_a_line_for_each_value(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "--widths 16 --modules 6 --powers 0.5 --inits own --rates 2e-3 --counts 14 6 --sizes 5"
    monkeypatch.setattr(
        "sys.argv", ["x", *told.split(), "--only", "simulated", "--cache", str(cache)]
    )
    assert len(thresholds.NAMES) == 12
    monkeypatch.setattr(thresholds, "NAMES", ["LINE", "NORM_CAP"])  # each takes as long
    thresholds.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 + 2 * 2
    assert printed[0] == "simulated" and printed[2].startswith("as it is")


def test_judging_needs_no_names_of_modules(pool: Pool) -> None:
    members = list(range(6))
    found = judge(cut(pool.evidence, members), pool.names[:6], list("abcdef"))
    assert found.verdicts == pool.judge(members).verdicts


def test_the_numbers_of_the_line_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "line.json"
    monkeypatch.setattr(line, "PLANTED", ((5, 6, 0.4),))
    monkeypatch.setattr("sys.argv", ["line", "--seeds", "--planted", "3", "--json", str(out)])
    line.main()
    made = json.loads(out.read_text())
    assert made["levels"] == list(line.LEVELS) and made["honest"] == []
    assert [(title, len(shares)) for title, _, *shares in made["planted"]] == [
        ("5 and one, m6, c 0.4, +-0", 3), ("5 and one, m6, c 0.4, +-0.2", 3),
    ]  # fmt: skip
    assert made["planted"][0][0] in capsys.readouterr().out
