"""A missing or wrong previous adapter: cohorts above and below each limit; what is said then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import MODULES, Client, clair, factored, texts

N_DIRECTIONS = 6


def client(amounts: Sequence[float]) -> Client:
    """A delta weight of so much of each of six orthonormal directions, in every module."""
    deltas = {}
    for module, shape in MODULES.items():
        rng = np.random.default_rng(0)
        left, right = (cohorts.orthonormal(n, N_DIRECTIONS, rng) for n in shape)
        deltas[module] = left * np.asarray(amounts) @ right.T
    return factored(deltas, N_DIRECTIONS)


def warnings(folder: Path, clients: np.ndarray, previous: np.ndarray | None = None) -> str:
    """What `inspect` remarks on clients of so much of each direction, (n_clients, at most 6)."""
    made = {
        f"c{k}": client([*row, *[0.0] * (N_DIRECTIONS - len(row))]) for k, row in enumerate(clients)
    }
    before = None
    cohorts.save(folder / "clients", made, dtype="F64")
    if previous is not None:
        before = folder / "before"
        cohorts.save_peft(before, client(list(previous)))
    report = clair_cli.inspect(folder / "clients", previous=before).report
    blocking = [remark for remark in report.warnings if remark.class_ == "blocking"]
    for remark in blocking:
        assert report.exit_code == 5
        assert (report.cohort.outcome, report.cohort.outcome_text) == ("undetermined", remark.text)
        assert {reason.code for c in report.clients for reason in c.reasons} == {remark.code}
        assert "--previous" in report.cohort.remedy
    return " ".join(texts(blocking))


def with_cosine(n_clients: int, cosine: float) -> np.ndarray:
    """Vectors of norm one of which each two have this cosine, (n_clients, n_clients)."""
    gram = np.full((n_clients, n_clients), cosine)
    np.fill_diagonal(gram, 1.0)
    return np.linalg.cholesky(gram)


@pytest.mark.parametrize(("cosine", "said"), [(0.74, False), (0.76, True)])
def test_clients_that_are_nearly_the_same(tmp_path: Path, cosine: float, said: bool) -> None:
    assert ("nearly the same" in warnings(tmp_path, with_cosine(5, cosine))) is said


@pytest.mark.parametrize(("total", "said"), [(-0.48, False), (-0.52, True)])
def test_updates_that_cancel_out(tmp_path: Path, total: float, said: bool) -> None:
    """Sum of each client's cosines to the three others."""
    previous = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    clients = np.zeros((4, N_DIRECTIONS))
    clients[:, :4] = with_cosine(4, total / 3)
    assert ("cancels out" in warnings(tmp_path, clients + previous, previous)) is said


@pytest.mark.parametrize(("share", "said"), [(0.52, False), (0.48, True)])
def test_clients_with_little_of_the_previous_adapter(
    tmp_path: Path, share: float, said: bool
) -> None:
    previous = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    clients = np.zeros((4, N_DIRECTIONS))
    clients[:, :4] = with_cosine(4, 0.3)
    clients += share * previous
    assert ("have little of" in warnings(tmp_path, clients, previous)) is said


@pytest.mark.parametrize("n", [3, 4, 5])
def test_one_client_between_all_others_blocks_no_round(tmp_path: Path, n: int) -> None:
    """It is nearly the same as each of them."""
    others = with_cosine(n - 1, 0.5)
    middle = others.mean(0) / np.linalg.norm(others.mean(0))
    assert (others @ middle > 0.77).all()
    assert "nearly the same" not in warnings(tmp_path, np.vstack([others, middle]))


# What is said and done


def test_bad_clients_of_a_later_round_do_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of ten, on top of a common adapter three times as large: without it, all are alike."""
    monkeypatch.chdir(tmp_path)
    before = cohorts.scaled(cohorts.unrelated(3), 3.0)
    added = {**cohorts.honest(7), **{f"bad{k}": cohorts.unrelated(50 + k) for k in range(3)}}
    cohorts.save(Path("clients"), cohorts.on_top(added, before.deltas()))
    cohorts.save_peft(Path("before"), before)
    for command in ("merge", "refine"):
        result = clair(command, "clients", "-o", "out", "-q")
        assert result.exit_code == 5 and "--previous" in result.stderr, "also where it is quiet"
        assert "undetermined: the clients are nearly the same" in result.stderr
        assert not list(Path("out").rglob("*.safetensors"))
    assert clair("inspect", "clients").exit_code == 5
    right = cohorts.check_report(
        clair("inspect", "clients", "--previous", "before", "--json").stdout
    )
    assert cohorts.left_out(right) == {"bad0", "bad1", "bad2"}
    assert clair("merge", "clients", "-o", "all", "--allow-undetermined", "-q").exit_code == 0
    report = cohorts.read_report(Path("all/report.json"))
    assert [client["weight"] for client in report["clients"]] == pytest.approx([0.1] * 10)
    classes = {remark["code"]: remark["class"] for remark in report["warnings"]}
    assert classes["same_start"] == "blocking" and classes["without_verdict"] == "warning"


def test_honest_clients_that_agree_are_told_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(8, cosine=0.93))
    found = clair("merge", "clients", "-o", "m.safetensors")
    (line,) = (x for x in found.stderr.splitlines() if "What to do: " in x)
    assert found.exit_code == 5 and "--previous" in line and "--fresh" in line
    fresh = clair("merge", "clients", "-o", "m.safetensors", "--fresh")
    report = cohorts.read_report(Path("m.report.json"))
    assert (fresh.exit_code, set(cohorts.verdicts(report).values())) == (0, {"benign"})
    assert report["options"]["fresh"] is True
    assert clair("verify", "m.safetensors", "clients").exit_code == 0


def test_fresh_lifts_nothing_else(tmp_path: Path) -> None:
    two = cohorts.save(tmp_path / "clients", cohorts.honest(2))
    assert clair_cli.inspect(two, fresh=True).report.exit_code == 5


def test_checkpoints_of_one_run_are_told_to_be_that(tmp_path: Path) -> None:
    (one,) = cohorts.honest(1).values()
    steps = {f"step{k}": cohorts.scaled(cohorts.regauged(one, k), 1 + k / 10) for k in range(10)}
    folder = cohorts.save(tmp_path / "clients", steps)
    for options in ({}, {"fresh": True}):
        report = clair_cli.inspect(folder, **options).report  # type: ignore[arg-type]
        assert report.exit_code == 5
        assert "all 10 clients are the same update" in report.cohort.outcome_text
        assert "checkpoints" in report.cohort.outcome_text and report.cohort.remedy
        assert {r.code for c in report.clients for r in c.reasons} == {"same_update"}
