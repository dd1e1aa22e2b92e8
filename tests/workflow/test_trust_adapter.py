"""`--trust-adapter`: the operator's own adapter is compared with the clients, and not merged."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from clair_cli import UsageError
from tests import cohorts
from tests.cohorts import clair, codes, verdicts
from tests.workflow.test_changes import at, flip_a_bit
from tests.workflow.test_trust import inspected, merged_names, outnumbered, row, save

HONEST = cohorts.honest(5)
OWN = HONEST["c4"]  # the first three of `HONEST` are those of `outnumbered`
FULL = ("--rank", "full", "--dtype", "float32")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save_peft(Path("own"), OWN)
    return tmp_path


def in_memory(client: cohorts.Client) -> tuple[dict[str, Any], dict[str, Any]]:
    state = {cohorts.peft_names("A", m): a for m, a in client.A.items()}
    state |= {cohorts.peft_names("B", m): b for m, b in client.B.items()}
    return {name: array.astype(np.float32) for name, array in state.items()}, client.fields


def test_its_group_is_the_cohort_and_it_is_no_client(work: Path) -> None:
    save(outnumbered())
    code, report = inspected("--trust-adapter", "own")
    assert (code, report["cohort"]["outcome"]) == (3, "judged")
    assert merged_names(report) == {"c0", "c1", "c2"}
    assert set(verdicts(report)) == set(outnumbered())
    assert report["cohort"]["n_clients"] == report["cohort"]["n_comparable"] == 8
    assert len(report["cohort"]["names"]) == len(report["cohort"]["similarity"]) == 8
    named = {name for group in report["cohort"]["groups"] for name in group["members"]}
    assert named == set(outnumbered())
    assert not any(c["trusted"] for c in report["clients"])
    data = Path("own/adapter_model.safetensors").read_bytes()
    assert report["inputs"] == {"trust_adapter": hashlib.sha256(data).hexdigest()}
    assert report["options"]["trust_adapter"] == "own"


def test_it_is_not_merged(work: Path) -> None:
    save(outnumbered())
    result = clair("merge", "clients", "-o", "m.safetensors", "--trust-adapter", "own", *FULL)
    assert result.exit_code == 0, result.stderr
    report = cohorts.read_report(Path("m.report.json"))
    weights = [row(report, n)["weight"] for n in ("c0", "c1", "c2")]
    assert sum(weights) == pytest.approx(1.0)
    exact = cohorts.mean([HONEST[n].deltas() for n in ("c0", "c1", "c2")], weights)
    assert cohorts.relative(cohorts.read_dense(Path("m.safetensors")), exact) <= 1e-5
    plain = cohorts.mean([c.deltas() for c in outnumbered().values()])
    moved = cohorts.relative(exact, plain)
    assert report["merged"]["plain_mean_distance"] == pytest.approx(moved, rel=1e-4)


def test_an_adapter_in_memory_is_the_same(work: Path) -> None:
    save(outnumbered())
    pairs = {name: in_memory(client) for name, client in outnumbered().items()}
    found = clair_cli.merge(pairs, trust_adapter=in_memory(OWN), rank="full", dtype="float32")
    assert {c.name for c in found.report.clients if c.weight > 0} == {"c0", "c1", "c2"}
    assert found.report.options["trust_adapter"] == "(in memory)"
    assert len(found.report.inputs["trust_adapter"]) == 64
    file = clair_cli.inspect("clients", trust_adapter="own").report
    scores = {c.name: c.scores.loading for c in file.clients}
    assert scores == pytest.approx({c.name: c.scores.loading for c in found.report.clients})


def test_refinement_takes_it_too(work: Path) -> None:
    save(outnumbered())
    assert clair("refine", "clients", "-o", "out", "--trust-adapter", "own").exit_code == 0
    assert {p.name for p in Path("out").iterdir() if p.is_dir()} == {"c0", "c1", "c2"}
    again = ("verify", "out", "clients", "--trust-adapter", "own")
    assert clair(*again).exit_code == 0


def test_the_previous_adapter_is_subtracted_from_it(work: Path) -> None:
    """All are on top of an adapter far larger than what they learnt."""
    before = cohorts.factored(
        cohorts.random_deltas(np.random.default_rng(3), rank=3, norm=20.0), 3, seed=3
    )

    def on_top(client: cohorts.Client) -> cohorts.Client:
        return cohorts.factored(cohorts.plus(client.deltas(), before.deltas()), 9, seed=8)

    cohorts.save_peft(Path("before"), before)
    cohorts.save_peft(Path("later"), on_top(OWN))
    save({name: on_top(client) for name, client in outnumbered().items()})
    code, report = inspected("--trust-adapter", "later", "--previous", "before")
    assert code == 3 and merged_names(report) == {"c0", "c1", "c2"}
    out = ("merge", "clients", "-o", "m.safetensors", "--previous", "before", *FULL)
    assert clair(*out, "--trust-adapter", "later").exit_code == 0
    assert clair("verify", "m.safetensors", "clients", "--previous", "before",
                 "--trust-adapter", "later").exit_code == 0  # fmt: skip
    # one that is not on top of it is unlike everybody
    assert inspected("--trust-adapter", "own", "--previous", "before")[0] == 5


def test_a_trusted_client_that_contradicts_it(work: Path) -> None:
    save(outnumbered())
    code, report = inspected("--trust-adapter", "own", "--trust", "bad2")
    assert code == 5 and codes(report, "c0") == {"trusted_disagree"}
    text = report["cohort"]["outcome_text"]
    assert "the trust adapter" in text and "bad2" in text
    assert inspected("--trust-adapter", "own", "--trust", "c2")[0] == 3


def test_a_client_that_copies_it_is_a_duplicate(work: Path) -> None:
    save({**outnumbered(), "copy": cohorts.regauged(OWN)})
    _, report = inspected("--trust-adapter", "own")
    assert verdicts(report)["copy"] == "duplicate" and row(report, "copy")["weight"] == 0
    assert "the trust adapter" in cohorts.reasons(report, "copy")


def test_it_counts_as_one_of_two_clients(work: Path) -> None:
    save({"c0": HONEST["c0"], "bad": cohorts.with_nan(HONEST["c1"])})
    assert inspected()[0] == 4
    code, report = inspected("--trust-adapter", "own")
    assert code == 3 and report["options"]["min_clients"] == 2  # the other one is rejected
    assert merged_names(report) == {"c0"}
    assert inspected("--trust-adapter", "own", "--min-clients", 3)[0] == 4


def test_one_client_and_it_are_a_group(work: Path) -> None:
    clients = outnumbered()
    save({n: c for n, c in clients.items() if n not in ("c1", "c2")})
    code, report = inspected("--trust-adapter", "own")
    assert code == 3 and merged_names(report) == {"c0"}


@pytest.mark.parametrize(("asked", "code"), [(2, 0), (3, 4)])
def test_more_clients_than_these_two_may_be_asked_for(work: Path, asked: int, code: int) -> None:
    save({"c0": HONEST["c0"]})
    assert inspected("--trust-adapter", "own", "--min-clients", asked)[0] == code


# What does not fit


def bad_config(**fields: Any) -> cohorts.Client:
    return replace(OWN, config={**OWN.config, **fields})


FIRST, *REST = cohorts.MODULES


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (bad_config(base_model_name_or_path="org/other"), "base_model_name_or_path is 'org/other'"),
        (bad_config(init_lora_weights="pissa"), "init_lora_weights"),
        (bad_config(fan_in_fan_out=True), "fan_in_fan_out"),
        (cohorts.without(OWN, [FIRST]), "it lacks 1 module that most clients have"),
        (cohorts.wider(OWN), "has shape"),
        (cohorts.with_nan(OWN), "nan"),
    ],
    ids=["base", "init", "fan in", "module", "shape", "nan"],
)
def test_another_base_or_other_modules_are_a_usage_error(
    work: Path, adapter: cohorts.Client, words: str
) -> None:
    save(outnumbered())
    cohorts.save_peft(Path("odd"), adapter)
    result = clair("inspect", "clients", "--trust-adapter", "odd")
    assert result.exit_code == 2, result.stderr
    assert "--trust-adapter: " in result.stderr and words.lower() in result.stderr.lower()


def test_components_that_cancel_are_a_usage_error(work: Path) -> None:
    save(outnumbered())
    A = {m: np.vstack([a, a, 1e-8 * a]) for m, a in OWN.A.items()}
    B = {m: np.hstack([b, -b, b]) for m, b in OWN.B.items()}
    cohorts.save_peft(
        Path("odd"), replace(OWN, A=A, B=B, config={"r": 18, "lora_alpha": 36}), "F64"
    )
    result = clair("inspect", "clients", "--trust-adapter", "odd")
    assert result.exit_code == 2, result.stdout
    assert "--trust-adapter: module" in result.stderr and "cancel" in result.stderr


@pytest.mark.parametrize("stage", ["comparing", "judging"])
def test_one_that_changes_during_the_run_is_a_usage_error(work: Path, stage: str) -> None:
    save(outnumbered())
    progress = at(stage, Path("own"), flip_a_bit)
    if stage == "judging":  # it was read for the last time
        found = clair_cli.inspect("clients", trust_adapter="own", progress=progress)
        assert found.report.cohort.outcome == "judged"
        return
    with pytest.raises(UsageError, match=r"--trust-adapter: .*changed while reading"):
        clair_cli.inspect("clients", trust_adapter="own", progress=progress)


def test_one_in_float64_changes_nothing_of_the_merge() -> None:
    """Its factors make the stacks balanced in which the clients' Grams are kept for the merge, and
    the layers are wide enough to merge from these."""
    rng = np.random.default_rng(2)
    common = rng.standard_normal((2, 4, 80)), rng.standard_normal((2, 90, 4))

    def adapter(dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        state = {}
        for m, (A, B) in enumerate(zip(*common, strict=True)):
            for side, factor, size in (("A", A, 30.0), ("B", B, 0.1)):
                own = size * (factor + 0.5 * rng.standard_normal(factor.shape))
                state[f"layers.{m}.q.lora_{side}.weight"] = own.astype(dtype)
        return state, {"r": 4, "lora_alpha": 4}

    clients = {f"c{k}": adapter(np.float32) for k in range(4)}
    exact = cohorts.mean([cohorts.dense(*client) for client in clients.values()])
    for dtype in (np.float32, np.float64):
        own = adapter(dtype)
        found = clair_cli.merge(clients, trust_adapter=own, rank="full", dtype="float32")
        assert found.tensors is not None and found.config is not None
        merged = cohorts.dense(found.tensors, found.config)
        assert cohorts.relative(merged, exact) <= 1e-5


def test_modules_that_no_client_has_are_not_compared(work: Path) -> None:
    clients = {n: cohorts.without(c, [FIRST]) for n, c in outnumbered().items()}
    save(clients)
    code, report = inspected("--trust-adapter", "own")
    assert code == 3 and merged_names(report) == {"c0", "c1", "c2"}
    assert {m["name"] for m in report["modules"]} == set(REST)


def test_one_client_with_a_module_of_its_own_stops_nothing(work: Path) -> None:
    """Neither a module that the adapter lacks, nor one that it has in another shape."""
    clients = {n: cohorts.without(c, [FIRST]) for n, c in outnumbered().items()}
    wide = cohorts.wider(outnumbered()["bad0"])
    assert next(iter(wide.A)) == FIRST
    clients["bad0"] = wide
    save(clients)
    assert inspected("--trust-adapter", "own", "--modules", "union")[0] == 3
    cohorts.save_peft(Path("small"), cohorts.without(OWN, [FIRST]))
    assert inspected("--trust-adapter", "small", "--modules", "union")[0] == 3


def test_a_path_that_is_not_there(work: Path) -> None:
    save(outnumbered())
    result = clair("merge", "clients", "-o", "m", "--trust-adapter", "onw")
    assert result.exit_code == 2 and "--trust-adapter 'onw' does not exist" in result.stderr
    assert "did you mean 'own'" in result.stderr
    result = clair("merge", "clients", "-o", "own", "-f", "--trust-adapter", "own")
    assert result.exit_code == 2, "the output is an input"
    with pytest.raises(UsageError, match="trust_adapter is an empty path"):
        clair_cli.inspect("clients", trust_adapter="")


# Done again


def test_verify_needs_it_again_and_sees_another(work: Path) -> None:
    save(outnumbered())
    made = ("merge", "clients", "-o", "m.safetensors", "--trust-adapter", "own")
    assert clair(*made).exit_code == 0
    assert clair("verify", "m.safetensors").exit_code == 0
    result = clair("verify", "m.safetensors", "clients")
    assert result.exit_code == 2
    assert "the report was made with --trust-adapter 'own'" in result.stderr
    again = ("verify", "m.safetensors", "clients", "--trust-adapter")
    assert clair(*again, "own").exit_code == 0
    cohorts.save_peft(Path("other"), HONEST["c3"])
    result = clair(*again, "other")
    assert result.exit_code == 3
    assert "differs: --trust-adapter has sha256" in result.stdout
    result = clair("verify", "m.safetensors", "--trust-adapter", "own")
    assert result.exit_code == 2 and "give CLIENTS too" in result.stderr
    assert clair("merge", "clients", "-o", "n.safetensors").exit_code in (0, 5)


def test_verify_refuses_one_that_the_report_does_not_record(work: Path) -> None:
    save(cohorts.honest(4))
    assert clair("merge", "clients", "-o", "m.safetensors").exit_code == 0
    result = clair("verify", "m.safetensors", "clients", "--trust-adapter", "own")
    assert result.exit_code == 2
    assert "the report was made without --trust-adapter" in result.stderr
