"""Remarks on a round as a whole, and what their class does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.workflow import plan
from tests import cohorts
from tests.cohorts import clair


def found(folder: Path, n_clients: int, weights: dict[str, float]) -> dict[str, str]:
    """Code to class of the remarks on weights."""
    clients = cohorts.save(folder, cohorts.honest(n_clients))
    given = {f"c{k}": 1.0 for k in range(n_clients)} | weights
    remarks = clair_cli.inspect(clients, weights=given).report.warnings
    return {r.code: r.class_ for r in remarks if r.code.startswith("weight")}


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        (1.0, {}),
        (3.8, {}),  # 2.97 x an equal share of ten
        (3.9, {"weight_large": "note"}),  # 3.02 x
        (8.9, {"weight_large": "note"}),  # 0.497 of the sum
        (9.1, {"weight_majority": "warning"}),  # 0.503
    ],
)
def test_a_large_weight_is_told(tmp_path: Path, weight: float, wanted: dict[str, str]) -> None:
    assert found(tmp_path, 10, {"c3": weight}) == wanted


def test_of_two_clients_one_has_half_in_any_case(tmp_path: Path) -> None:
    assert found(tmp_path / "two", 2, {"c1": 5.0}) == {}
    assert found(tmp_path / "three", 3, {"c1": 5.0}) == {"weight_majority": "warning"}


@pytest.mark.parametrize("n_clients", [2, 3, 5])
def test_a_first_round_is_told_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_clients: int
) -> None:
    """Of three clients or more, judged or not; in one line."""
    monkeypatch.chdir(tmp_path)
    for name, clients in (
        ("judged", cohorts.honest(n_clients)),
        ("undetermined", {f"c{k}": cohorts.unrelated(k) for k in range(n_clients)}),
    ):
        cohorts.save(Path(name), clients)
        report = clair_cli.inspect(name).report
        assert report.cohort.outcome == (name if n_clients > 2 else "undetermined")
        said = [remark for remark in report.warnings if remark.code == "first_round"]
        assert [remark.class_ for remark in said] == ["note"] * (n_clients > 2)
        lines = clair("inspect", name).stdout.splitlines()
        assert sum(line.startswith("note: a first round,") for line in lines) == len(said)


def test_a_round_with_a_previous_adapter_is_no_first_one(tmp_path: Path) -> None:
    before = cohorts.unrelated(3)
    cohorts.save(tmp_path / "clients", cohorts.on_top(cohorts.honest(5), before.deltas()))
    cohorts.save_peft(tmp_path / "before", before)
    report = clair_cli.inspect(tmp_path / "clients", previous=tmp_path / "before").report
    assert (report.cohort.outcome, report.warnings) == ("judged", ())


def test_where_the_previous_adapter_is_missing_it_is_no_first_round(tmp_path: Path) -> None:
    """Then what is told is to give it."""
    folder = cohorts.save(tmp_path, cohorts.honest(5, cosine=0.95))
    report = clair_cli.inspect(folder).report
    assert [remark.code for remark in report.warnings] == ["same_start"]
    report = clair_cli.inspect(folder, fresh=True).report
    assert [remark.code for remark in report.warnings] == ["first_round"]


def test_a_refused_round_is_not_told_to_be_a_first_one(tmp_path: Path) -> None:
    clients = {f"c{k}": cohorts.with_nan(cohorts.unrelated(k)) for k in range(4)}
    report = clair_cli.inspect(cohorts.save(tmp_path, clients)).report
    assert (report.cohort.outcome, report.warnings) == ("refused", ())


def test_a_warning_trips_and_a_note_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(10))
    merge = ("merge", "clients", "-o", "m.safetensors", "--force", "-q", "--weights", "w.csv")
    for weight, code in ((3.9, 0), (9.1, 3)):
        rows = [f"c{k},{weight if k == 3 else 1}\n" for k in range(10)]
        Path("w.csv").write_text("".join(rows))
        for level in ("never", "contaminated", "suspicious"):
            assert clair(*merge, "--fail-on", level).exit_code == 0
        Path("m.safetensors").unlink()
        result = clair(*merge, "--fail-on", "warning")
        assert (result.exit_code, Path("m.safetensors").exists()) == (code, code == 0)
        lines = result.stderr.splitlines()
        assert len(lines) == (2 if code else 1), "notes are not shown, warnings are"
        assert lines[0].startswith("warning: client 'c3' has 50% of all weight") == bool(code)
        assert ("nothing merged (--fail-on warning)" in lines[-1]) == bool(code)


@pytest.mark.parametrize("odd", [False, True])
def test_from_warning_on_verdicts_trip_too(tmp_path: Path, odd: bool) -> None:
    clients = cohorts.honest(7)
    if odd:
        clients["c6"] = cohorts.scaled(clients["c6"], 4.0)
    folder = cohorts.save(tmp_path, clients)
    report = clair_cli.inspect(folder, fail_on="warning").report
    assert {r.class_ for r in report.warnings} <= {"note"}
    assert report.exit_code == (3 if odd else 0)


def test_a_warning_that_comes_with_the_result_leaves_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the largest serving rank is known when the adapter is made."""
    monkeypatch.setattr(plan, "SERVING_RANKS", (1, 2))
    clients = cohorts.save(tmp_path / "clients", cohorts.honest(6))
    result = clair_cli.merge(clients, tmp_path / "m")
    assert result.report.exit_code == 0
    (capped,) = (r for r in result.report.warnings if r.code == "rank_capped")
    assert capped.class_ == "warning"
    result = clair_cli.merge(clients, tmp_path / "n", fail_on="warning")
    assert (result.report.exit_code, result.report.merged, result.tensors) == (3, None, None)
    assert capped in result.report.warnings
    assert {p.name for p in tmp_path.iterdir()} == {"clients", "m", "n.report.json"}


def sentences(report: clair_cli.Report) -> list[str]:
    reasons = [reason.text for client in report.clients for reason in client.reasons]
    remarks = [remark.text for remark in report.warnings]
    return [*reasons, *remarks, report.cohort.outcome_text, report.cohort.remedy]


def same_start(width: int = 64) -> dict[str, Any]:
    """Clients that start from one lora_A and learn unrelated lora_B."""
    g = torch.Generator().manual_seed(1)
    modules = "abcdef"
    lora_A = {m: torch.randn(8, width, generator=g) / width**0.5 for m in modules}
    return {
        f"c{k}": (
            {
                f"{m}.lora_{side}.weight": lora_A[m]
                if side == "A"
                else torch.randn(width, 8, generator=g)
                for m in modules
                for side in "AB"
            },
            {"r": 8, "lora_alpha": 8},
        )
        for k in range(6)
    }


def test_a_common_start_alone_is_no_agreement() -> None:
    """It is there from the start. No sentence has a number that is none."""
    report = clair_cli.inspect(same_start()).report
    assert (report.cohort.outcome, report.cohort.stacking) == ("undetermined", None)
    assert {reason.code for c in report.clients for reason in c.reasons} == {"one_side"}
    assert no_number(report) == []


def test_who_started_elsewhere_is_told_with_care() -> None:
    """It is the contrast by which the others' common input counts: a warning says what it is."""
    clients = same_start()
    for k, (name, seed) in enumerate((("odd", 5), ("other", 6))):
        g = torch.Generator().manual_seed(seed)
        state = {n: torch.randn(t.shape, generator=g) for n, t in clients[f"c{k}"][0].items()}
        clients[name] = (state, clients[f"c{k}"][1])
    report = clair_cli.inspect(clients).report
    assert (report.cohort.outcome, report.cohort.stacking) == ("judged", "input")
    assert {c.name for c in report.clients if c.verdict == "contaminated"} == {"odd", "other"}
    assert [r.class_ for r in report.warnings if r.code == "input_only"] == ["warning"]
    assert no_number(report) == []


def of_classes(shares: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Clients who learnt what all learn, and of each class of data as much as they have of it."""
    g = torch.Generator().manual_seed(0)
    width, modules = 32, [f"layers.{i}.q_proj" for i in range(12)]
    parts = torch.randn(len(modules), 1 + len(shares[0]), width, width, generator=g)
    clients = {}
    for k, share in enumerate(shares):
        own = torch.randn(len(modules), width, width, generator=g)
        each = torch.einsum("c,mcij->mij", torch.tensor([1.0, *share]), parts) + own
        u, s, v = torch.linalg.svd(each)
        state = {}
        for m, name in enumerate(modules):
            state[f"{name}.lora_A.weight"] = v[m, :8]
            state[f"{name}.lora_B.weight"] = u[m, :, :8] * s[m, :8]
        clients[f"c{k}"] = (state, {"r": 8, "lora_alpha": 8})
    return clients


@pytest.mark.parametrize(("mine", "told"), [(0.35, []), (0.7, ["uneven"])])
def test_clients_of_unlike_data_are_told_to_hide_bad_ones(mine: float, told: list[str]) -> None:
    """In a ring, each with three classes of data, the nearest clients with two of the same."""
    n = 16
    shares = [[mine * ((c - k) % n <= 2) for c in range(n)] for k in range(n)]
    report = clair_cli.inspect(of_classes(shares)).report
    assert report.cohort.outcome == "judged"
    found = [r for r in report.warnings if r.class_ == "warning"]
    assert [r.code for r in found] == told
    for remark in found:
        times = re.search(r"only if it is (\d+\.\d) times as like", remark.text)
        assert times is not None
        assert float(times[1]) > 2.0


def test_a_client_of_whom_nothing_is_known_has_no_number_that_is_none(
    tmp_path: Path,
) -> None:
    """Its norm can't be compared, and it has too few modules to be held against anybody."""
    clients = cohorts.honest(7)
    clients["c6"] = cohorts.without(clients["c6"], sorted(cohorts.MODULES)[1:])
    report = clair_cli.inspect(cohorts.save(tmp_path, clients), modules="union").report
    assert report.clients[6].scores.loading is None
    assert no_number(report) == []


def no_number(report: clair_cli.Report) -> list[str]:
    """The sentences with a number that is none."""
    return [text for text in sentences(report) if {"nan", "inf"} & set(re.findall(r"\w+", text))]
