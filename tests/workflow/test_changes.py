"""A client's file that changes between the passes: that client goes, the round goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import clair_cli
from clair_cli import UsageError
from clair_cli.report.encode import report_json
from tests import cohorts

NAME = "c2"


def rewrite(folder: Path) -> None:
    """Other values in a file of the same size."""
    cohorts.save_peft(folder, cohorts.unrelated(12))


def flip_a_bit(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def delete(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def remove_all(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


CHANGES = [rewrite, flip_a_bit, truncate, delete, remove_all]


def at(stage: str, folder: Path, change: Callable[[Path], None]) -> Callable[[str, int, int], None]:
    """A progress callback that makes the change once, at a stage's first word."""
    done = False

    def progress(now: str, count: int, total: int) -> None:
        nonlocal done
        if now == stage and not done:
            done = True
            change(folder)

    return progress


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["comparing", "merging"])
def test_the_round_goes_on_without_it(
    tmp_path: Path, stage: str, change: Callable[[Path], None]
) -> None:
    clients = {**cohorts.honest(4), "odd": cohorts.unrelated()}
    folder = cohorts.save(tmp_path / "clients", clients)
    out = tmp_path / "m.safetensors"
    result = clair_cli.merge(
        folder, out, rank="full", dtype="float32", progress=at(stage, folder / NAME, change)
    )
    report = cohorts.read_report(tmp_path / "m.report.json")
    assert (result.report.exit_code, cohorts.verdicts(report)[NAME]) == (0, "rejected")
    assert len(report["clients"]) == report["cohort"]["n_clients"] == len(clients)
    assert "changed while reading" in cohorts.reasons(report, NAME)
    honest = [c.deltas() for n, c in clients.items() if n not in (NAME, "odd")]
    assert cohorts.relative(cohorts.read_dense(out), cohorts.mean(honest)) <= 1e-5
    weights = {c["name"]: c["weight"] for c in report["clients"]}
    assert (weights[NAME], weights["c0"]) == (0.0, pytest.approx(1 / 3))


def test_strict_and_min_clients_count_it(tmp_path: Path) -> None:
    folder = cohorts.save(tmp_path / "clients", cohorts.honest(3))
    for options in ({"strict": True}, {"allow_undetermined": True}):
        cohorts.save(folder, cohorts.honest(3))
        progress = at("merging", folder / NAME, flip_a_bit)
        result = clair_cli.merge(folder, tmp_path / "m", progress=progress, **options)
        assert (result.report.exit_code, result.tensors) == (4, None)
        assert not (tmp_path / "m").exists()
        (tmp_path / "m.report.json").unlink()


def test_weights_of_a_lost_client_stay_valid(tmp_path: Path) -> None:
    clients = cohorts.honest(5)
    folder = cohorts.save(tmp_path / "clients", clients)
    weights = {name: float(k + 1) for k, name in enumerate(clients)}
    progress = at("merging", folder / NAME, rewrite)
    result = clair_cli.merge(
        folder, weights=weights, rank="full", dtype="float32", progress=progress
    )
    rest = [n for n in clients if n != NAME]
    wanted = cohorts.mean([clients[n].deltas() for n in rest], [weights[n] for n in rest])
    assert result.tensors is not None and result.config is not None
    assert cohorts.relative(cohorts.dense(result.tensors, result.config), wanted) <= 1e-5


def test_a_state_dict_that_changes_is_seen_too() -> None:
    import torch

    clients = {}
    for name, client in cohorts.honest(5).items():
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        clients[name] = (state, client.fields)

    def spoil(_: Path) -> None:
        next(iter(clients[NAME][0].values()))[0, 0] += 1.0

    result = clair_cli.merge(clients, progress=at("merging", Path(), spoil))
    verdicts = cohorts.verdicts(cohorts.check_report(report_json(result.report)))
    assert (verdicts[NAME], result.report.exit_code) == ("rejected", 0)
    assert sorted(verdicts) == sorted(clients)


def test_a_previous_adapter_that_changes_ends_the_run(tmp_path: Path) -> None:
    clients = cohorts.on_top(cohorts.honest(4), cohorts.unrelated().deltas())
    folder = cohorts.save(tmp_path / "clients", clients)
    before = cohorts.save_peft(tmp_path / "before", cohorts.unrelated())
    wanted = clair_cli.merge(folder, tmp_path / "wanted", previous=before)
    weights = "adapter_model.safetensors"
    for stage in ("comparing", "merging"):
        progress = at(stage, before, flip_a_bit)
        if stage == "comparing":
            with pytest.raises(UsageError, match=r"--previous.*changed while reading"):
                clair_cli.merge(folder, tmp_path / "m", previous=before, progress=progress)
            assert not (tmp_path / "m").exists() and not (tmp_path / "m.report.json").exists()
        else:  # it is in the clients, and is not looked at again
            found = clair_cli.merge(folder, tmp_path / "m", previous=before, progress=progress)
            assert found.report.merged == replace(
                wanted.report.merged, path=found.report.merged.path
            )
            files = [(tmp_path / name / weights).read_bytes() for name in ("m", "wanted")]
            assert files[0] == files[1]
        before = cohorts.save_peft(tmp_path / "again", cohorts.unrelated())
