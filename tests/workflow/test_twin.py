"""The Python functions: adapters in memory, nothing printed, nothing written unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli import OutputError, UsageError
from clair_cli.report.encode import report_json
from tests import cohorts


def in_memory(clients: cohorts.Clients, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = {}
    for name, client in clients.items():
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        made[name] = ({key: value.to(dtype) for key, value in state.items()}, client.fields)
    return made


COHORT = {
    **cohorts.honest(6),
    "odd": cohorts.unrelated(),
    "broken": cohorts.with_nan(cohorts.unrelated(4)),
}


def test_memory_and_files_give_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cohorts.save(tmp_path / "clients", COHORT, "mixed")
    options: dict[str, Any] = {"rank": "full", "dtype": "float32"}
    memory = clair_cli.merge(in_memory(COHORT), **options)
    files = clair_cli.merge(folder, tmp_path / "merged", **options)
    assert capsys.readouterr() == ("", "")
    assert memory.tensors is not None and files.tensors is not None
    assert memory.config == files.config and memory.tensors.keys() == files.tensors.keys()
    for key, tensor in memory.tensors.items():
        torch.testing.assert_close(tensor, files.tensors[key], rtol=1e-4, atol=1e-5)
    found = cohorts.dense(memory.tensors, memory.config or {})
    assert cohorts.relative(found, cohorts.read_dense(tmp_path / "merged")) <= 1e-6
    reports = [cohorts.check_report(report_json(r.report)) for r in (memory, files)]
    assert cohorts.verdicts(reports[0]) == cohorts.verdicts(reports[1])
    assert memory.report_path is None
    assert files.report_path == (tmp_path / "merged/report.json").as_posix()


def test_nothing_is_written_without_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), COHORT)
    before = cohorts.snapshot(tmp_path)
    merged, inspected = clair_cli.merge("clients"), clair_cli.inspect("clients")
    refined = clair_cli.refine("clients")
    assert merged.tensors and refined.adapters.keys() == {f"c{k}" for k in range(6)}
    assert {r.report_path for r in (merged, inspected, refined)} == {None}
    assert cohorts.snapshot(tmp_path) == before
    for result in (merged, inspected, refined):
        cohorts.check_report(report_json(result.report))
    assert capsys.readouterr() == ("", "")


def test_only_the_report_is_written_when_only_it_is_asked_for(tmp_path: Path) -> None:
    folder = cohorts.save(tmp_path / "clients", COHORT)
    result = clair_cli.merge(folder, report=tmp_path / "r.json")
    assert cohorts.read_report(tmp_path / "r.json")["merged"]["rank"] == result.report.merged.rank  # type: ignore[union-attr]
    assert {p.name for p in tmp_path.iterdir()} == {"clients", "r.json"}


def test_codes_are_returned_and_never_exited_with() -> None:
    few = in_memory(cohorts.honest(2))
    assert clair_cli.merge(few).report.exit_code == 5
    assert clair_cli.merge(in_memory(COHORT), strict=True).report.exit_code == 4
    failed = clair_cli.merge(in_memory(COHORT), fail_on="contaminated")
    assert (failed.report.exit_code, failed.tensors, failed.config) == (3, None, None)
    assert clair_cli.inspect(in_memory(COHORT)).report.exit_code == 3
    assert clair_cli.merge({}).report.exit_code == 4


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": "most"},
        {"rank": True},
        {"rank": 2.5},
        {"error_target": 0.0},
        {"error_target": float("nan")},
        {"min_clients": 0},
        {"dtype": "int8"},
        {"device": "tpu"},
        {"fail_on": "benign"},
        {"modules": "some"},
        {"exclude": ["nobody"]},
        {"weights": {"c0": 1.0}},
    ],
    ids=str,
)
def test_wrong_options_raise(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        clair_cli.merge(in_memory(cohorts.honest(3)), **options)


def test_outputs_that_cant_be_written_raise(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError):
        clair_cli.merge(in_memory(cohorts.honest(3)), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"


def test_exclude_and_weights_in_memory() -> None:
    clients = cohorts.honest(5)
    weights = {"c0": 1.0, "c1": 2.0, "c2": 3.0, "c3": 4.0}
    options: dict[str, Any] = {"rank": "full", "dtype": "float32", "exclude": ["c4"]}
    result = clair_cli.merge(in_memory(clients, torch.float64), weights=weights, **options)
    wanted = cohorts.mean([clients[n].deltas() for n in weights], list(weights.values()))
    assert cohorts.relative(cohorts.dense(result.tensors or {}, result.config or {}), wanted) < 1e-6


def test_the_callers_tensors_are_left_alone() -> None:
    clients = in_memory(cohorts.honest(4))
    before = {n: {k: t.clone() for k, t in state.items()} for n, (state, _) in clients.items()}
    clair_cli.merge(clients)
    clair_cli.refine(clients)
    for name, (state, _) in clients.items():
        assert all(torch.equal(t, before[name][k]) for k, t in state.items())


def test_numpy_arrays_are_tensors() -> None:
    clients = in_memory(cohorts.honest(4))
    arrays: dict[str, Any] = {}
    for k, (name, (state, config)) in enumerate(clients.items()):
        own = {key: np.array(tensor.numpy()) for key, tensor in state.items()}
        for array in own.values():
            array.flags.writeable = k != 1
        if k == 2:
            own = {key: np.asfortranarray(array)[::-1][::-1] for key, array in own.items()}
        if k == 3:
            own = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in own.items()}
        arrays[name] = (own, config)
    found, wanted = clair_cli.merge(arrays), clair_cli.merge(clients)
    assert found.tensors is not None and wanted.tensors is not None
    assert all(torch.equal(found.tensors[key], wanted.tensors[key]) for key in wanted.tensors)
    assert report_json(found.report) == report_json(wanted.report)


@pytest.mark.parametrize("dtype", ["U1", "O", "c8", "V4"])
def test_arrays_of_other_things_are_one_clients_rejection(dtype: str) -> None:
    clients: dict[str, Any] = dict(in_memory(cohorts.honest(4)))
    state, config = clients["c0"]
    clients["c0"] = ({key: np.zeros(t.shape, dtype) for key, t in state.items()}, config)
    report = clair_cli.inspect(clients).report
    assert [c.name for c in report.with_verdict("rejected")] == ["c0"]


@pytest.mark.parametrize("function", [clair_cli.merge, clair_cli.inspect, clair_cli.refine])
def test_a_callers_mistake_is_no_clients(function: Any) -> None:
    clients = in_memory(cohorts.honest(4))
    states = {name: state for name, (state, _) in clients.items()}
    with pytest.raises(UsageError, match="client 'c0' is a dict, expected a pair") as caught:
        function(states)
    assert caught.value.hint == "give {name: (state_dict, config)}"
    with pytest.raises(UsageError, match="every client's config is empty"):
        function({name: (state, {}) for name, state in states.items()})
    one = {name: (states[name], {} if name == "c0" else clients[name][1]) for name in clients}
    assert [c.name for c in function(one).report.with_verdict("rejected")] == ["c0"]


def test_results_are_named_and_short(tmp_path: Path) -> None:
    """At a prompt nobody wants all tensors; what they are is exported."""
    clients = {**cohorts.honest(5), "bad": cohorts.scaled(cohorts.honest(6)["c5"], -1.0)}
    folder = cohorts.save(tmp_path / "clients", clients)
    merged, seen, refined = (
        function(folder) for function in (clair_cli.merge, clair_cli.inspect, clair_cli.refine)
    )
    assert isinstance(merged, clair_cli.MergeResult)
    assert repr(merged) == "MergeResult(exit_code=0, 5 benign, 1 contaminated, 12 tensors)"
    assert isinstance(seen, clair_cli.InspectResult)
    assert repr(seen) == "InspectResult(exit_code=3, 5 benign, 1 contaminated)"
    assert isinstance(refined, clair_cli.RefineResult)
    assert repr(refined) == "RefineResult(exit_code=0, 5 benign, 1 contaminated, 5 adapters)"
    nothing = clair_cli.merge(folder, fail_on="contaminated")
    assert repr(nothing) == "MergeResult(exit_code=3, 5 benign, 1 contaminated, no adapter)"
