"""`--initial`: what the clients added to an init that changed the base, for the original base."""

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
from tests.cohorts import clair, texts
from tests.workflow.test_changes import at, flip_a_bit
from tests.workflow.test_trust_adapter import in_memory

FULL = ("--rank", "full", "--dtype", "float32")
PRINCIPAL = cohorts.random_deltas(np.random.default_rng(9), rank=3, norm=20.0)
ADDED = cohorts.honest(5)


def trained(added: cohorts.Client, init: str = "pissa") -> cohorts.Client:
    """The principal part of the base, which all start from, and what a client added."""
    whole = cohorts.plus(added.deltas(), PRINCIPAL)
    return cohorts.factored(whole, 9, {"init_lora_weights": init}, seed=4)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # saved as PEFT's documentation has it: with the init set back
    cohorts.save_peft(Path("start"), cohorts.factored(PRINCIPAL, 3, {"init_lora_weights": True}))
    cohorts.save(Path("clients"), {n: trained(c) for n, c in ADDED.items()})
    return tmp_path


def test_the_merge_is_the_mean_of_what_was_added(work: Path) -> None:
    result = clair("merge", "clients", "-o", "m", "--initial", "start", *FULL)
    assert result.exit_code == 0, result.stderr
    exact = cohorts.mean([c.deltas() for c in ADDED.values()])
    assert cohorts.relative(cohorts.read_dense(Path("m")), exact) <= 1e-5
    assert cohorts.read_config(Path("m"))["init_lora_weights"] is True
    report = cohorts.read_report(Path("m/report.json"))
    data = Path("start/adapter_model.safetensors").read_bytes()
    assert report["inputs"] == {"initial": hashlib.sha256(data).hexdigest()}
    assert report["options"]["initial"] == "start"
    assert not any("init" in text for text in texts(report["warnings"]))


@pytest.mark.parametrize("command", ["merge", "refine"])
def test_it_is_judged_as_the_same_updates_without_it(work: Path, command: str) -> None:
    """A saboteur is not hidden by the principal part that all share."""
    bad = {**ADDED, "bad": cohorts.unrelated(3)}
    cohorts.save(Path("clients"), {n: trained(c) for n, c in bad.items()})
    cohorts.save(Path("plain"), bad)
    found = clair_cli.inspect("clients", initial="start").report
    plain = clair_cli.inspect("plain").report
    assert [c.verdict for c in found.clients] == [c.verdict for c in plain.clients]
    assert [c.name for c in found.clients if c.verdict == "contaminated"] == ["bad"]
    for one, other in zip(found.clients, plain.clients, strict=True):
        assert one.scores.loading == pytest.approx(other.scores.loading, abs=1e-4)
    assert clair(command, "clients", "-o", "m", "--initial", "start", *FULL).exit_code == 0
    assert clair(command, "plain", "-o", "p", *FULL).exit_code == 0
    for folder in ("",) if command == "merge" else ADDED:
        one, other = (cohorts.read_dense(Path(top) / folder) for top in ("m", "p"))
        assert cohorts.relative(one, other) <= 1e-4


def test_a_module_that_few_have_and_one_that_nobody_changed(work: Path) -> None:
    """A client that lacks a module added nothing to it; modules of the start alone are not
    written."""
    first, second, *_ = cohorts.MODULES
    clients = {n: trained(c) for n, c in ADDED.items()}
    clients["c0"] = cohorts.without(clients["c0"], [first])
    clients = {n: cohorts.without(c, [second]) for n, c in clients.items()}
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", "m", "--initial", "start", *FULL)
    assert result.exit_code == 0, result.stderr
    added = {n: cohorts.without(c, [second]) for n, c in ADDED.items()}
    added["c0"] = cohorts.without(added["c0"], [first])
    exact = cohorts.mean([c.deltas() for c in added.values()])
    merged = cohorts.read_dense(Path("m"))
    assert set(merged) == set(exact) and second not in merged
    assert cohorts.relative(merged, exact) <= 1e-5


@pytest.mark.parametrize(("holders", "code"), [(2, 0), (3, 2)])
def test_a_module_that_the_start_lacks(work: Path, holders: int, code: int) -> None:
    """Its principal part would be merged as if the clients had learnt it."""
    first = next(iter(cohorts.MODULES))
    start = cohorts.factored(PRINCIPAL, 3, {"init_lora_weights": True})
    cohorts.save_peft(Path("start"), cohorts.without(start, [first]))
    clients = {f"c{k}": trained(c) for k, c in enumerate(cohorts.honest(5).values())}
    for k in range(holders, 5):
        clients[f"c{k}"] = cohorts.without(clients[f"c{k}"], [first])
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", "m", "--initial", "start", "--modules", "union")
    assert result.exit_code == code, result.stderr
    if code:
        assert f"--initial: it lacks module {first!r}, which 3 of 5 clients" in result.stderr
        return
    verdicts = {
        c["name"]: c["verdict"] for c in cohorts.read_report(Path("m/report.json"))["clients"]
    }
    assert [name for name, verdict in verdicts.items() if verdict == "rejected"] == ["c0", "c1"]
    assert first not in cohorts.read_dense(Path("m"))


def test_shared_parts_of_a_minority_and_weights(work: Path) -> None:
    own = cohorts.colluders(2)
    cohorts.save(Path("clients"), {n: trained(c) for n, c in ADDED.items()} | {
        f"x{k}": trained(c) for k, c in enumerate(own)})  # fmt: skip
    cohorts.save(Path("plain"), ADDED | {f"x{k}": c for k, c in enumerate(own)})
    weights = {n: 1.0 + k for k, n in enumerate([*ADDED, "x0", "x1"])}
    options: dict[str, Any] = {"weights": weights, "rank": "full", "dtype": "float32"}
    one = clair_cli.merge("clients", initial="start", **options)
    other = clair_cli.merge("plain", **options)
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]
    assert one.tensors is not None and one.config is not None
    assert other.tensors is not None and other.config is not None
    dense = (cohorts.dense(r.tensors, r.config) for r in (one, other))  # type: ignore[arg-type]
    assert cohorts.relative(*dense) <= 1e-4


def test_adapters_in_memory(work: Path) -> None:
    pairs = {name: in_memory(trained(client)) for name, client in ADDED.items()}
    start = in_memory(cohorts.factored(PRINCIPAL, 3))
    found = clair_cli.merge(pairs, initial=start, rank="full", dtype="float32")
    assert found.tensors is not None and found.config is not None
    exact = cohorts.mean([c.deltas() for c in ADDED.values()])
    assert cohorts.relative(cohorts.dense(found.tensors, found.config), exact) <= 1e-5
    assert found.report.options["initial"] == "(in memory)"


@pytest.mark.parametrize(
    "init", ["pissa", "PiSSA_niter_4", "olora", "loftq", "corda", "lora_ga", "new"]
)
def test_without_it_such_clients_are_rejected_by_name(work: Path, init: str) -> None:
    cohorts.save(Path("clients"), ADDED | {"odd": trained(ADDED["c1"], init)})
    report = clair_cli.inspect("clients", fail_on="never").report
    (odd,) = (c for c in report.clients if c.verdict == "rejected")
    assert odd.name == "odd"
    (reason,) = odd.reasons
    assert init.lower() in reason.text and "--initial" in reason.text
    assert sum(c.verdict == "benign" for c in report.clients) == 5


@pytest.mark.parametrize("init", ["eva", "gaussian", "orthogonal", True, False])
def test_inits_that_leave_the_base_are_merged_as_they_are(work: Path, init: object) -> None:
    same = {n: replace(c, config={**c.config, "init_lora_weights": init}) for n, c in ADDED.items()}
    cohorts.save(Path("clients"), same)
    result = clair_cli.merge("clients")
    assert {c.verdict for c in result.report.clients} == {"benign"}
    said = any(
        "starts the factors from the client's own data" in t for t in texts(result.report.warnings)
    )
    assert said == (init == "eva")


def test_where_all_are_rejected_the_round_says_what_to_do(work: Path) -> None:
    result = clair("merge", "clients", "-o", "m")
    assert result.exit_code == 4 and not Path("m").exists()
    assert "--initial" in result.stdout + result.stderr


@pytest.mark.parametrize(("changed", "kept"), [(3, ["o"]), (2, ["bare", "o"])])
def test_a_client_without_config_goes_with_the_majority(
    work: Path, changed: int, kept: list[str]
) -> None:
    """Three of five clients say that their init changed the base, or two of four: few of them must
    not reject those that say nothing."""
    clients = {f"p{k}": trained(ADDED[f"c{k}"]) for k in range(changed)}
    cohorts.save(Path("few"), clients | {"o": ADDED["c0"]})
    Path("few/bare.safetensors").write_bytes(cohorts.client_bytes(ADDED["c3"]))
    report = clair_cli.inspect("few", assume_alpha=12, min_clients=1).report
    assert [c.name for c in report.clients if c.verdict != "rejected"] == kept


# What does not go together


def test_usage_errors(work: Path) -> None:
    both = ("inspect", "clients", "--initial", "start", "--previous", "start")
    result = clair(*both)
    assert result.exit_code == 2
    assert "initial and previous each name" in result.stderr
    result = clair("inspect", "clients", "--initial", "strat")
    assert result.exit_code == 2 and "did you mean 'start'" in result.stderr
    cohorts.save_peft(Path("odd"), cohorts.wider(cohorts.factored(PRINCIPAL, 3)))
    result = clair("inspect", "clients", "--initial", "odd")
    assert result.exit_code == 2 and "--initial: module" in result.stderr
    cohorts.save_peft(Path("pissa"), trained(ADDED["c0"]))
    cohorts.save(Path("clients"), ADDED)
    result = clair("inspect", "clients", "--previous", "pissa")
    assert result.exit_code == 2
    assert "--previous: its init_lora_weights 'pissa'" in result.stderr
    assert "--initial" in result.stderr


def test_another_start_leaves_no_verdict(work: Path) -> None:
    other = cohorts.factored(cohorts.random_deltas(np.random.default_rng(1), 3, norm=20.0), 3)
    cohorts.save_peft(Path("other"), other)
    result = clair("merge", "clients", "-o", "m", "--initial", "other")
    assert result.exit_code == 5
    assert "little of the --initial adapter" in result.stdout + result.stderr


def test_one_that_changes_during_the_run_is_a_usage_error(work: Path) -> None:
    progress = at("comparing", Path("start"), flip_a_bit)
    with pytest.raises(UsageError, match=r"--initial: .*changed while reading"):
        clair_cli.inspect("clients", initial="start", progress=progress)


# Done again


def test_verify_names_what_is_missing_and_what_is_another(work: Path) -> None:
    assert clair("merge", "clients", "-o", "m.safetensors", "--initial", "start").exit_code == 0
    assert clair("verify", "m.safetensors").exit_code == 0
    result = clair("verify", "m.safetensors", "clients")
    assert result.exit_code == 2
    assert "the report was made with --initial 'start'" in result.stderr
    again = ("verify", "m.safetensors", "clients", "--initial")
    assert clair(*again, "start").exit_code == 0
    moved = cohorts.plus(PRINCIPAL, cohorts.random_deltas(np.random.default_rng(2), norm=0.01))
    cohorts.save_peft(Path("other"), cohorts.factored(moved, 6))
    result = clair(*again, "other")
    assert result.exit_code == 3
    assert "differs: --initial has sha256" in result.stdout
    assert clair("merge", "clients", "-o", "n.safetensors", "--initial", "start").exit_code == 0
    result = clair("verify", "n.safetensors", "clients", "--previous", "start")
    assert result.exit_code == 2 and "without --previous" in result.stderr


def test_the_trust_adapter_started_from_it_too(work: Path) -> None:
    cohorts.save_peft(Path("own"), trained(ADDED["c4"]))
    options: dict[str, Any] = {"initial": "start", "exclude": ["c4"]}
    found = clair_cli.inspect("clients", trust_adapter="own", **options).report
    assert {c.verdict for c in found.clients} == {"benign"}
    assert found.inputs.keys() == {"initial", "trust_adapter"}
    result = clair("inspect", "clients", "--initial", "start", "--trust-adapter", "start")
    assert result.exit_code == 2, "another init than the clients'"
