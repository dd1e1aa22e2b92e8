"""`--verdicts`: merge exactly what was reviewed, and nobody is judged again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli import UsageError
from tests import cohorts
from tests.cohorts import clair
from tests.workflow.test_minority import clients as with_minority

CLIENTS = Path("clients")
MIXED = {**cohorts.honest(4), "odd": cohorts.unrelated(), "odder": cohorts.unrelated(5)}


@pytest.fixture
def reviewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A round, and the report of `clair inspect` on it."""
    monkeypatch.chdir(tmp_path)
    cohorts.save(CLIENTS, MIXED)
    assert clair("inspect", CLIENTS, "-o", "r.json").exit_code == 3
    return Path("r.json")


def merge(*args: object, code: int = 0) -> dict[str, Any]:
    done = clair("merge", CLIENTS, "-o", "m.safetensors", "--verdicts", "r.json", "-f", *args)
    assert done.exit_code == code, done.stderr
    report = cohorts.read_report(Path("m.report.json"))
    assert report["exit_code"] == code
    return report


def edit(change: Callable[[dict[str, dict[str, Any]]], object]) -> None:
    """Change the clients of the report, by name."""
    data = json.loads(Path("r.json").read_text())
    change({client["name"]: client for client in data["clients"]})
    Path("r.json").write_text(json.dumps(data))


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (c for c in report["clients"] if c["name"] == name)
    return dict(found)


def test_as_it_was_reviewed_it_is_the_same_merge(reviewed: Path) -> None:
    assert clair("merge", CLIENTS, "-o", "plain.safetensors").exit_code == 0
    report, plain = merge(), cohorts.read_report(Path("plain.report.json"))
    assert Path("m.safetensors").read_bytes() == Path("plain.safetensors").read_bytes()
    assert report["clients"] == plain["clients"]
    assert report["options"]["verdicts"] == "r.json"
    assert report["inputs"].keys() == {"verdicts"}
    assert clair("verify", "m.safetensors", CLIENTS, "--verdicts", "r.json").exit_code == 0
    assert clair("verify", "m.safetensors", CLIENTS).exit_code == 2
    edit(lambda clients: clients["c0"].update(verdict="contaminated"))
    done = clair("verify", "m.safetensors", CLIENTS, "--verdicts", "r.json")
    assert done.exit_code == 3 and "--verdicts has sha256" in done.stdout


def test_nobody_is_judged_again(reviewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of another mind changes nothing."""
    from clair_cli.maths.judge.verdicts import Verdict
    from clair_cli.workflow import judge as workflow

    before = merge()
    judge = workflow.judge

    def other(*args: Any, **more: Any) -> Any:
        found = judge(*args, **more)
        bad = tuple(Verdict("contaminated", (), 0.0) for _ in found.verdicts)
        return workflow.replace(found, verdicts=bad, outcome="undetermined", code="too_few")

    monkeypatch.setattr(workflow, "judge", other)
    assert clair("merge", CLIENTS, "-o", "x.safetensors").exit_code == 5
    again = merge()
    assert again["clients"] == before["clients"] and again["merged"] == before["merged"]


def test_edited_verdicts_are_recorded_as_such(reviewed: Path) -> None:
    def change(clients: dict[str, dict[str, Any]]) -> None:
        clients["odd"]["verdict"] = "benign"
        clients["c0"] |= {
            "verdict": "contaminated",
            "review": {"reason": "their disk was stolen", "by": "ann", "until": ""},
        }

    edit(change)
    report = merge()
    odd, c0 = row(report, "odd"), row(report, "c0")
    assert (odd["verdict"], odd["judged"], odd["review"]) == ("benign", "contaminated", None)
    assert odd["reasons"][-1] == {
        "code": "reviewed", "text": "edited by a person, else contaminated",
    }  # fmt: skip
    assert (c0["verdict"], c0["judged"], c0["weight"]) == ("contaminated", "benign", 0.0)
    assert c0["review"]["by"] == "ann"
    assert c0["reasons"][-1]["text"].endswith("else benign: their disk was stolen (ann)")
    assert 0 < odd["weight"] <= row(report, "c1")["weight"]  # as a suspicious one at most
    assert row(report, "odder")["weight"] == 0.0
    # what was merged so is reviewed itself, and may be merged again
    shutil.copy("m.report.json", "r.json")
    again = merge()
    assert again["clients"] == report["clients"]
    done = clair("merge", CLIENTS, "-o", "y.safetensors", "--verdicts", "r.json",
                 "--fail-on", "contaminated")  # fmt: skip
    assert done.exit_code == 3 and not Path("y.safetensors").exists()


def test_an_edited_client_counts_as_no_larger_than_the_round_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    honest = cohorts.honest(6)
    cohorts.save(CLIENTS, {**honest, "c5": cohorts.scaled(honest["c5"], 50.0)})
    assert clair("inspect", CLIENTS, "-o", "r.json").exit_code == 3
    edit(lambda clients: clients["c5"].update(verdict="benign"))
    report = merge()
    assert 0 < row(report, "c5")["weight"] < 0.1 * row(report, "c4")["weight"]


# Not what was reviewed: exit code 4, naming the client


def test_a_suspicious_client_that_a_person_cleared_counts_as_a_benign_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times as large as the others: 1.5 times what is counted of a suspicious one."""
    monkeypatch.chdir(tmp_path)
    large = cohorts.scaled(cohorts.honest(6)["c5"], 4.0)
    cohorts.save(CLIENTS, {**cohorts.honest(6), "c5": large})
    assert clair("inspect", CLIENTS, "-o", "r.json").exit_code == 0
    as_found = merge()
    assert row(as_found, "c5")["verdict"] == "suspicious"
    edit(lambda clients: clients["c5"].update(verdict="benign"))
    cleared = merge()
    of, others = (row(cleared, name)["weight"] for name in ("c5", "c0"))
    before, then = (row(as_found, name)["weight"] for name in ("c5", "c0"))
    assert of / others == pytest.approx(1.5 * before / then)


def test_another_file(reviewed: Path) -> None:
    cohorts.save_peft(CLIENTS / "c3", cohorts.unrelated(9))
    report = merge(code=4)
    assert "client 'c3' has sha256" in report["cohort"]["outcome_text"]
    assert "clair inspect" in report["cohort"]["remedy"]
    assert not Path("m.safetensors").exists()


def test_a_new_client_and_one_that_went(reviewed: Path) -> None:
    cohorts.save_peft(CLIENTS / "new", cohorts.unrelated(9))
    assert "client 'new' is new" in merge(code=4)["cohort"]["outcome_text"]
    shutil.rmtree(CLIENTS / "new")
    shutil.rmtree(CLIENTS / "odd")
    assert (
        "client 'odd' is in the report 'r.json' and not here"
        in (merge(code=4)["cohort"]["outcome_text"])
    )


def test_another_scale_with_the_same_weights_file(reviewed: Path) -> None:
    """The hash is of the weights file; alpha stands in the config."""
    path = CLIENTS / "c2" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_alpha"] *= 3
    path.write_text(json.dumps(config))
    text = merge(code=4)["cohort"]["outcome_text"]
    assert "client 'c2', module" in text and "scaled by" in text


def test_rejected_then_and_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(CLIENTS, MIXED)
    bad = CLIENTS / "bad.safetensors"
    bad.write_bytes(b"x")
    clair("inspect", CLIENTS, "-o", "r.json")
    assert cohorts.verdicts(merge())["bad"] == "rejected"
    edit(lambda clients: clients["bad"].update(verdict="benign"))
    assert "so it can't be benign" in merge(code=4)["cohort"]["outcome_text"]
    edit(lambda clients: clients["bad"].update(verdict="benign", judged="benign"))
    assert "'bad' was not rejected in the report" in merge(code=4)["cohort"]["outcome_text"]
    edit(lambda clients: clients["bad"].update(verdict="rejected", judged="rejected"))
    edit(lambda clients: clients["c1"].update(verdict="rejected", judged="rejected"))
    assert "'c1' was rejected in the report" in merge(code=4)["cohort"]["outcome_text"]


def test_nobody_to_merge(reviewed: Path) -> None:
    edit(lambda clients: [c.update(verdict="contaminated") for c in clients.values()])
    assert "no client that is to be merged" in merge(code=4)["cohort"]["outcome_text"]


def test_a_round_without_a_verdict_can_be_decided_by_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(CLIENTS, dict(list(MIXED.items())[2:]))
    assert clair("inspect", CLIENTS, "-o", "r.json").exit_code == 5
    assert "no client that is to be merged" in merge(code=4)["cohort"]["outcome_text"]
    edit(lambda clients: [clients[name].update(verdict="benign") for name in ("c2", "c3")])
    report = merge()
    assert {c["name"] for c in report["clients"] if c["weight"] > 0} == {"c2", "c3"}
    assert row(report, "c2")["judged"] == "undetermined"
    assert report["cohort"]["outcome"] == "judged"


def test_minorities_are_merged_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = with_minority()
    for minority in ("shared", "exclude", "merge"):
        seen = clair_cli.inspect(clients, minority=minority).report  # type: ignore[arg-type]
        assert seen.with_verdict("minority")
        monkeypatch.chdir(tmp_path)
        from clair_cli.report.encode import report_json

        Path("r.json").write_text(report_json(seen))
        plain = clair_cli.merge(clients, minority=minority)  # type: ignore[arg-type]
        found = clair_cli.merge(clients, verdicts="r.json")
        assert found.report.options["minority"] == minority
        assert found.report.merged == plain.report.merged
        Path("r.json").write_text(report_json(plain.report))
        again = clair_cli.merge(clients, verdicts="r.json")
        assert again.report.merged == plain.report.merged


# Wrong calls


@pytest.mark.parametrize(
    "args",
    ["--trust c0", "--trust-adapter clients/c0", "--exclude c0", "--minority shared",
     "--minority merge", "--fresh"],
)  # fmt: skip
def test_what_the_report_decides_is_no_option(reviewed: Path, args: str) -> None:
    done = clair("merge", CLIENTS, "-o", "m", "--verdicts", "r.json", *args.split())
    assert done.exit_code == 2 and "beside verdicts" in done.stderr
    assert not Path("m").exists()


def test_a_file_of_options_may_have_been_for_the_review(reviewed: Path) -> None:
    Path("clair.toml").write_text('exclude = ["odd"]\nminority = "exclude"\nmodules = "union"\n')
    assert clair("inspect", CLIENTS, "-o", "r.json", "-f").exit_code == 3
    report = merge()
    assert (report["options"]["exclude"], report["options"]["minority"]) == (["odd"], "exclude")
    assert "odd" not in cohorts.verdicts(report)
    with pytest.raises(UsageError, match="exclude beside verdicts"):
        clair_cli.merge(CLIENTS, verdicts="r.json", exclude=["odd"])


def test_other_options_and_inputs_than_when_it_was_reviewed(reviewed: Path) -> None:
    def error(*args: object) -> str:
        done = clair("merge", CLIENTS, "-o", "out", "--verdicts", "r.json", *args)
        assert done.exit_code == 2, done.stderr
        return str(done.stderr)

    assert "made with --modules 'common', and this run has 'union'" in error("--modules", "union")
    assert "was made without --previous" in error("--previous", CLIENTS / "c0")
    Path("w.json").write_text(json.dumps({name: 2 + len(name) for name in MIXED}))
    assert "was made without --weights" in error("--weights", "w.json")
    clair("inspect", CLIENTS, "-o", "r.json", "-f", "--weights", "w.json")
    assert "made with --weights of sha256" in error()
    report = merge("--weights", "w.json")
    assert row(report, "c0")["weight"] == pytest.approx(0.25)
    assert clair("merge", CLIENTS, "-o", "m", "--verdicts", "s.json").exit_code == 2
    Path("r.json").write_text("{}")
    assert "no report of clair" in error()


def test_damaged_reports_are_wrong_calls(reviewed: Path) -> None:
    data = json.loads(reviewed.read_text())
    for change in (
        lambda d: d["options"].update(modules="all"),
        lambda d: d["options"].update(exclude=3),
        lambda d: d["clients"].append(d["clients"][0]),
        lambda d: d["clients"][0].update(verdict="fine"),
        lambda d: d["clients"][0].update(judged="fine"),
        lambda d: d["clients"][0].update(name_bytes="%%%"),
    ):
        wrong = json.loads(json.dumps(data))
        change(wrong)
        reviewed.write_text(json.dumps(wrong))
        done = clair("merge", CLIENTS, "-o", "m", "--verdicts", "r.json")
        assert done.exit_code == 2 and "is damaged" in done.stderr, done.stderr


def test_a_report_of_an_earlier_version_has_no_judged(reviewed: Path) -> None:
    edit(lambda clients: [(c.pop("judged"), c.pop("review")) for c in clients.values()])
    report = merge()
    assert {c["judged"] for c in report["clients"]} == {"benign", "contaminated"}


def test_the_report_is_not_overwritten(reviewed: Path) -> None:
    shutil.copy("r.json", "m.report.json")
    done = clair("merge", CLIENTS, "-o", "m.safetensors", "--verdicts", "m.report.json", "-f")
    assert done.exit_code == 2 and "is the input" in done.stderr
