"""`--trust`: a client that is known to be good decides which group is the cohort."""

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
from tests.workflow import test_minority
from tests.workflow.test_minority import APART, NAMES
from tests.workflow.test_minority import clients as with_minority


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(clients: cohorts.Clients) -> None:
    cohorts.save(Path("clients"), clients)


def outnumbered() -> cohorts.Clients:
    """Three honest clients, and five that agree on something else."""
    bad = {f"bad{k}": client for k, client in enumerate(cohorts.colluders(5))}
    return {**cohorts.honest(3), **bad}


def inspected(*args: object) -> tuple[int, dict[str, Any]]:
    result = clair("inspect", "clients", "-o", "r.json", "-f", *args)
    assert result.exit_code in (0, 3, 4, 5), result.stderr
    return result.exit_code, cohorts.read_report(Path("r.json"))


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (c for c in report["clients"] if c["name"] == name)
    return dict(found)


def merged_names(report: dict[str, Any]) -> set[str]:
    return {c["name"] for c in report["clients"] if c["weight"] > 0}


def test_the_group_of_a_trusted_client_is_the_cohort_whatever_its_size(work: Path) -> None:
    save(outnumbered())
    _, without = inspected()
    assert merged_names(without) != {"c0", "c1", "c2"}
    code, report = inspected("--trust", "c1")
    assert (code, report["cohort"]["outcome"]) == (3, "judged")
    assert merged_names(report) == {"c0", "c1", "c2"}
    assert cohorts.left_out(report) == {f"bad{k}" for k in range(5)}
    assert [c["name"] for c in report["clients"] if c["trusted"]] == ["c1"]
    assert report["options"]["trust"] == ["c1"]
    _, other = inspected("--trust", "bad1")  # the trust alone decides
    assert merged_names(other) == {f"bad{k}" for k in range(5)}


def test_a_group_of_two_is_enough(work: Path) -> None:
    clients = outnumbered()
    clients.pop("c2")
    save(clients)
    code, report = inspected("--trust", "c1")
    assert (code, report["cohort"]["outcome"]) == (3, "judged")
    assert merged_names(report) == {"c0", "c1"}


def nearly(client: cohorts.Client, seed: int) -> cohorts.Client:
    """The same update but for a few hundredths of its size."""
    rng = np.random.default_rng(seed)
    noisy = {
        m: b + 0.05 * np.abs(b).mean() * rng.standard_normal(b.shape) for m, b in client.B.items()
    }
    return replace(client, B=noisy)


@pytest.mark.parametrize("trusted", ["c0", "same0", "same1"])
def test_a_trusted_client_among_near_copies_speaks_for_them(work: Path, trusted: str) -> None:
    """Whichever of them comes first in the order of content."""
    honest, bad = cohorts.honest(5), cohorts.colluders(7)
    same = {f"same{k}": nearly(honest["c0"], k) for k in range(2)}
    save({**honest, **same, **{f"bad{k}": client for k, client in enumerate(bad)}})
    code, report = inspected("--trust", trusted)
    assert code == 3 and merged_names(report) == {*honest, *same}
    assert "near_copy" in codes(report, trusted)


def test_a_large_minority_is_no_rival_of_a_trusted_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_minority, "APART", NAMES[5:])
    found = clair_cli.inspect(with_minority()).report
    assert found.cohort.outcome == "undetermined"
    found = clair_cli.inspect(with_minority(), trust=NAMES[:1]).report
    assert {c.name for c in found.with_verdict("minority")} == set(NAMES[5:])
    assert {c.name for c in found.clients if c.weight > 0} == set(NAMES[:5])
    found = clair_cli.inspect(with_minority(), trust=NAMES[5:6]).report  # its half is the cohort
    assert {c.name for c in found.with_verdict("minority")} == set(NAMES[:5])
    assert {c.name for c in found.with_verdict("benign")} == set(NAMES[5:])


def test_two_groups_of_one_size_are_told_apart(work: Path) -> None:
    bad = {f"bad{k}": client for k, client in enumerate(cohorts.colluders(4))}
    save({**cohorts.honest(4), **bad})
    assert inspected()[0] == 5
    code, report = inspected("--trust", "c2")
    assert code == 3 and merged_names(report) == {"c0", "c1", "c2", "c3"}


def test_a_trusted_client_is_merged_with_caps_and_what_was_found_is_told(work: Path) -> None:
    large = {**cohorts.honest(7), "c3": cohorts.scaled(cohorts.honest(7)["c3"], 20.0)}
    save(large)
    _, report = inspected()
    assert verdicts(report)["c3"] == "contaminated"
    _, report = inspected("--trust", "c3")
    assert verdicts(report)["c3"] == "suspicious"
    assert codes(report, "c3") >= {"norm", "trusted"}
    # its weight times its norm is at most a typical client's
    assert 0 < row(report, "c3")["weight"] * 20 <= 1.1 * row(report, "c0")["weight"]


def test_who_is_like_a_trusted_client_is_no_minority(work: Path) -> None:
    assert {c.name for c in clair_cli.inspect(with_minority()).report.with_verdict("minority")} == (
        set(APART)
    )
    report = clair_cli.inspect(with_minority(), trust=APART[0]).report
    assert {c.verdict for c in report.clients} == {"benign"}
    assert len({c.weight for c in report.clients}) == 1


@pytest.mark.parametrize("command", ["merge", "inspect", "refine"])
def test_trusted_clients_that_contradict_each_other(work: Path, command: str) -> None:
    save(outnumbered())
    output = ("-o", "r.json") if command == "inspect" else ("-o", "out", "--report", "r.json")
    result = clair(command, "clients", *output, "--trust", "c0", "--trust", "bad0")
    assert result.exit_code == 5, result.stderr
    report = cohorts.read_report(Path("r.json"))
    assert report["cohort"]["outcome"] == "undetermined"
    text = report["cohort"]["outcome_text"]
    assert "contradict" in text and "c0" in text and "bad0" in text and report["cohort"]["remedy"]
    assert all(codes(report, name) == {"trusted_disagree"} for name in verdicts(report))
    assert not Path("out").exists()


def test_a_trusted_client_that_nobody_is_like(work: Path) -> None:
    save({**cohorts.honest(4), "odd": cohorts.unrelated()})
    code, report = inspected("--trust", "odd")
    assert code == 5 and codes(report, "odd") == {"trusted_alone"}
    assert "nobody is like odd" in report["cohort"]["outcome_text"]
    code, report = inspected("--trust", "odd", "--trust", "c0")
    assert code == 5 and codes(report, "odd") == {"trusted_disagree"}


def test_who_trusts_a_client_is_not_told_to_trust_one(work: Path) -> None:
    save({f"c{k}": cohorts.unrelated(k) for k in range(4)})
    for trust in ((), ("--trust", "c1")):
        code, report = inspected(*trust)
        assert code == 5 and "too little in common" in report["cohort"]["outcome_text"]
        assert ("--trust" in report["cohort"]["remedy"]) == (not trust)


def test_unknown_and_excluded_names_are_usage_errors(work: Path) -> None:
    save(cohorts.honest(5))
    result = clair("merge", "clients", "-o", "m", "--trust", "c7")
    assert result.exit_code == 2
    assert "no client is called 'c7', so it can't be trusted" in result.stderr
    result = clair("merge", "clients", "-o", "m", "--trust", "c1", "--exclude", "c1")
    assert result.exit_code == 2
    assert "client 'c1' is in --trust and in --exclude" in result.stderr
    pairs = {n: with_minority()[n] for n in NAMES[:4]}
    for given in ({"trust": ["c9"]}, {"trust": ["c1"], "exclude": ["c1"]}):
        with pytest.raises(UsageError, match="trust"):
            clair_cli.inspect(pairs, **given)  # type: ignore[arg-type]


def test_a_hash_binds_to_a_file(work: Path) -> None:
    save(cohorts.honest(5))
    file = Path("clients/c1/adapter_model.safetensors")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    code, report = inspected("--trust", f"c1=sha256:{right.upper()}")
    assert code == 0 and row(report, "c1")["trusted"] and row(report, "c1")["sha256"] == right
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    result = clair("inspect", "clients", "--trust", f"c1=sha256:{wrong}")
    assert result.exit_code == 2
    assert f"has sha256 {right}, --trust says {wrong}" in result.stderr


@pytest.mark.parametrize("text", ["c1=sha256:", "c1=sha256:12ab", "c1=sha256:" + 64 * "g"])
def test_what_is_no_hash(work: Path, text: str) -> None:
    save(cohorts.honest(3))
    result = clair("inspect", "clients", "--trust", text)
    assert result.exit_code == 2 and "64 hexadecimal digits" in result.stderr


def test_two_hashes_for_one_name(work: Path) -> None:
    save(cohorts.honest(3))
    given = [f"c1=sha256:{64 * digit}" for digit in "ab"]
    with pytest.raises(UsageError, match="two hashes for 'c1'"):
        clair_cli.inspect("clients", trust=given)


def test_a_rejected_trusted_client_refuses_the_round(work: Path) -> None:
    save({**cohorts.honest(5), "c2": cohorts.with_nan(cohorts.honest(5)["c2"])})
    assert inspected()[0] in (0, 3)
    code, report = inspected("--trust", "c2", "--trust", "c1")
    assert (code, report["cohort"]["outcome"]) == (4, "refused")
    assert "trusted client 'c2'" in report["cohort"]["outcome_text"]
    assert row(report, "c2")["trusted"] and row(report, "c2")["verdict"] == "rejected"


def test_two_clients_are_enough_where_one_is_trusted(work: Path) -> None:
    """Refused (4) for want of clients before, and judged or undetermined now."""
    save({**cohorts.honest(2), "bad": cohorts.with_nan(cohorts.honest(3)["c2"])})
    assert inspected()[0] == 4
    code, report = inspected("--trust", "c0")
    assert code != 4 and report["options"]["min_clients"] == 2
    assert inspected("--trust", "c0", "--min-clients", 3)[0] == 4
    assert inspected("--min-clients", 2)[0] == 5
    assert inspected("--trust", "c0", "--exclude", "c1")[0] == 4  # itself alone


@pytest.mark.parametrize(("asked", "code"), [((), 0), ((2,), 0), ((3,), 4)])
def test_more_clients_may_be_asked_for(work: Path, asked: tuple[int, ...], code: int) -> None:
    """Also where nobody is rejected."""
    save(cohorts.honest(2))
    options = [x for n in asked for x in ("--min-clients", n)]
    assert inspected("--trust", "c0", *options)[0] == code
    assert inspected(*options)[0] == 5  # three are the least without trust: that is told


def test_a_copy_of_a_trusted_client_is_a_duplicate_and_not_trusted(work: Path) -> None:
    """Also one that comes first in the order of content, whichever of the two is trusted."""
    clients = cohorts.honest(5)
    save({**clients, "copy": cohorts.regauged(clients["c1"])})
    for trusted, copy in (("c1", "copy"), ("copy", "c1")):
        _, report = inspected("--trust", trusted)
        assert (verdicts(report)[trusted], verdicts(report)[copy]) == ("benign", "duplicate")
        assert row(report, trusted)["trusted"] and not row(report, copy)["trusted"]
        assert row(report, copy)["weight"] == 0 and row(report, trusted)["weight"] > 0


def test_verify_does_it_again_with_the_same_trust(work: Path) -> None:
    save(outnumbered())
    file = Path("clients/c1/adapter_model.safetensors")
    bound = f"c1=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert clair("merge", "clients", "-o", "m.safetensors", "--trust", bound).exit_code == 0
    assert clair("verify", "m.safetensors", "clients").exit_code == 0
    cohorts.save_peft(Path("clients/c1"), cohorts.honest(4)["c3"])  # another file is a difference
    result = clair("verify", "m.safetensors", "clients")
    assert result.exit_code == 3 and "client 'c1' has sha256" in result.stdout
