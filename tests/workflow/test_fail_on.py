"""`--fail-on`: what each level trips on, with a case just above it and one just below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import UsageError
from clair_cli.pipeline_options import at_least
from clair_cli.settings import make_settings
from tests import cohorts
from tests.cohorts import clair
from tests.workflow.test_exits import CLEAN, MIXED, NAN, SUSPECT
from tests.workflow.test_minority import clients as with_minority

COHORTS: dict[str, Any] = {
    "clean": CLEAN, "suspicious": SUSPECT, "contaminated": MIXED, "rejected": NAN,
}  # fmt: skip
TWO_BAD = {**MIXED, "broken": cohorts.with_nan(cohorts.unrelated())}  # of 6
TRIPS = {
    "never": set(),
    "warning": {"suspicious", "minority", "contaminated", "rejected"},
    "suspicious": {"suspicious", "minority", "contaminated", "rejected"},
    "minority": {"minority", "contaminated", "rejected"},
    "contaminated": {"contaminated", "rejected"},
    "rejected": {"rejected"},
}


def code(clients: Any, fail_on: Any, command: str = "inspect") -> int:
    function: Any = getattr(clair_cli, command)
    return int(function(clients, fail_on=fail_on).report.exit_code)


@pytest.mark.parametrize("level", TRIPS)
def test_each_level_trips_on_what_it_names_and_worse(level: str, tmp_path: Path) -> None:
    made = {**COHORTS, "minority": with_minority()}
    for found, clients in made.items():
        if found != "minority":
            clients = tmp_path / found
            cohorts.save(clients, made[found])
        assert code(clients, level) == (3 if found in TRIPS[level] else 0), found


@pytest.fixture(scope="module")
def two_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clients: one is contaminated, one rejected."""
    folder = tmp_path_factory.mktemp("two_bad") / "clients"
    cohorts.save(folder, TWO_BAD)
    return folder


@pytest.mark.parametrize(
    ("level", "trips"),
    [
        (2, True), ("2", True), (3, False), ("33%", True), ("33.3%", True), ("33.4%", False),
        ("34%", False), ("100%", False), (["3", "33%"], True), (["never", 3], False),
        (["never", "rejected"], True), (("100%", "3"), False),
    ],
)  # fmt: skip
def test_a_number_and_a_share_count_the_contaminated_and_the_rejected(
    two_bad: Path, level: Any, trips: bool
) -> None:
    assert code(two_bad, level) == (3 if trips else 0)


def test_a_share_is_exact() -> None:
    assert at_least("33.333333333%", 1, 3) and not at_least("33.333333334%", 1, 3)
    assert at_least("50%", 500_000_000, 1_000_000_000)
    assert not at_least("50%", 499_999_999, 1_000_000_000)
    assert not at_least("0.000000001%", 0, 0)


@pytest.mark.parametrize(
    "level",
    [0, -1, "0", "0%", "0.0%", "100.000000001%", "1000%", "1.5", "5 %", "\u0663", "1e2", True, 0.5,
     "Contaminated", ["never", "x"], [None], "10000000000"],
)  # fmt: skip
def test_what_is_no_level_is_a_usage_error(level: Any) -> None:
    with pytest.raises(UsageError, match=r"fail_on is .*expected one of 'never'"):
        make_settings("merge", "clients", None, {"fail_on": level})


def test_defaults_and_what_the_report_says() -> None:
    for command, level in (("merge", "never"), ("refine", "never"), ("inspect", "contaminated")):
        for given in ({}, {"fail_on": None}, {"fail_on": level}):
            settings = make_settings(command, "clients", None, given)
            assert settings.fail_on == (level,)
            assert settings.shown()["fail_on"] == level
    several = make_settings("merge", "clients", None, {"fail_on": ["3", "10%", 3]})
    assert several.shown()["fail_on"] == ["10%", "3"]


def test_several_on_the_command_line_and_again_in_verify(
    two_bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    merge = ("merge", two_bad, "-o", "m.safetensors")
    result = clair(*merge, "--fail-on", "3", "--fail-on", "20%")
    assert result.exit_code == 3 and not Path("m.safetensors").exists()
    assert "nothing merged (--fail-on 20%, 3)" in result.stderr
    assert clair(*merge, "--fail-on", "3", "--fail-on", "34%").exit_code == 0
    told = clair(*merge, "--fail-on", "many").stderr
    assert "'many' is not one of 'never', 'warning'" in told
    assert clair("verify", "m.safetensors", two_bad).exit_code == 0
