"""Options from files and the environment: what counts first, what is refused, what isn't read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.cli.defaults import defaults_of
from clair_cli.errors import UsageError
from clair_cli.option import ADAPTER, PATH
from clair_cli.settings import OPTIONS, Settings, options_of
from tests import cohorts
from tests.cli.test_app import calls, clients, run

__all__ = ["calls", "clients"]  # fixtures


def found(text: str = "", command: str = "merge", **environment: str) -> dict[str, Any]:
    """The defaults with this clair.toml in the working folder."""
    Path("clair.toml").write_text(text)
    return dict(defaults_of(command, Path("clients"), None, environment).values)


# Which counts


def test_flag_over_environment_over_file_over_default(
    clients: Path, calls: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(*args: str) -> object:
        assert run("merge", clients, "-o", "out", *args).exit_code == 0
        return calls[-1].rank

    assert rank() == "auto"
    Path("pyproject.toml").write_text("[tool.clair]\nrank = 4\n")
    assert rank() == 4
    Path("clair.toml").write_text("rank = 8\n")
    assert rank() == 8
    Path("other.toml").write_text("rank = 12\n")
    assert rank("--config", "other.toml") == 12
    monkeypatch.setenv("CLAIR_RANK", "16")
    assert rank() == rank("--config", "other.toml") == 16
    assert rank("--rank", "32") == 32
    monkeypatch.setenv("CLAIR_RANK", "")
    assert rank() == 8
    assert options_of("merge")["rank"].value("rank", rank("--rank", "auto")) == "auto"


def test_each_command_takes_its_own_and_not_the_rest(clients: Path) -> None:
    text = 'noise = 0.1\nfail-on = "warning"\nkeep_alpha = true\nexclude = ["a", "b"]'
    assert found(text) == {"fail_on": ["warning"], "keep_alpha": True, "exclude": ["a", "b"]}
    assert found(text, "refine")["noise"] == 0.1
    assert found(text, "inspect") == {"fail_on": ["warning"], "exclude": ["a", "b"]}


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].kind.metavar])
def test_every_option_can_stand_in_a_file(clients: Path, name: str) -> None:
    """A new one needs nothing more: its check is its declaration's."""
    command = next(c for c in ("merge", "refine") if name in options_of(c))
    bad = "[[[1]]]" if OPTIONS[name].kind.repeatable else "[1]"
    with pytest.raises(UsageError, match=f"clair.toml: {name} is "):
        found(f"{name.replace('_', '-')} = {bad}", command)


def test_the_effective_values_are_in_the_report(
    clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts.save(clients, cohorts.honest(4))
    Path("clair.toml").write_text('exclude = "c1"\nlimit = ["clients=20"]\n')
    monkeypatch.setenv("CLAIR_RANK", "5")
    done = run("merge", clients, "-o", "m.safetensors")
    assert done.exit_code == 0
    assert done.stderr.count("note: clair.toml sets exclude, limit\n") == 1
    options = json.loads(Path("m.report.json").read_text())["options"]
    assert (options["rank"], options["exclude"]) == (5, ["c1"])
    assert options["limit"] == {"clients": 20}
    # neither is what Python functions read
    assert clair_cli.merge(clients).report.options["rank"] == "auto"
    assert clair_cli.merge(clients).report.options["exclude"] == []
    # nor other commands
    Path("clair.toml").write_text("nonsense")
    assert run("verify", "m.safetensors").exit_code == 0
    assert run("inspect", clients, "--help").exit_code == 0


def test_paths_are_as_seen_from_the_file(clients: Path) -> None:
    Path("conf").mkdir()
    Path("conf/c.toml").write_text('weights = "w.json"\nprevious = "/p"\n')
    values = defaults_of("merge", clients, Path("conf/c.toml"), {}).values
    assert values == {"weights": "conf/w.json", "previous": "/p"}
    assert found('weights = "w.json"') == {"weights": "w.json"}
    Path("conf/c.toml").write_text('report = ["r.json", "junit=out/j.xml", "markdown=-"]\n')
    values = defaults_of("inspect", clients, Path("conf/c.toml"), {}).values
    assert values == {"report": ["conf/r.json", "junit=conf/out/j.xml", "markdown=-"]}


# What is refused


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("rnk = 8", "unknown key 'rnk'", "did you mean rank?"),
        ("fail_one = 'never'", "unknown key 'fail_one'", "did you mean fail-on?"),
        ("zzz = 1", "unknown key 'zzz'", "see clair merge --help"),
        ("[merge]\nrank = 8", "unknown key 'merge'", ""),
        ("output = 'm'", "output is given on the command line only", ""),
        ("rank = true", "rank is True, expected auto, same", ""),
        ("rank = 0", "clair.toml: rank is 0, expected", ""),
        ("rank = 1979-05-27", "rank is ", ""),
        ("strict = 1", "strict is 1, expected True or False", ""),
        ("exclude = [1]", "exclude is ", ""),
        ("weights = {a = 1}", "weights is ", ""),
        ("limit = ['clints=3']", "clair.toml: ", ""),
        ("same-base = true\nsame_base = true", "has same-base twice", ""),
        ("rank = ", "'clair.toml' is no TOML file", ""),
        ("rank = 8\nrank = 9", "'clair.toml' is no TOML file", ""),
        ("a = " + 5000 * "[" + 5000 * "]", "'clair.toml' is no TOML file", ""),
        (" " * (2**20 + 1), "above the limit", ""),
    ],
)
def test_wrong_files(clients: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        found(text)
    assert message in caught.value.message and hint in caught.value.hint
    done = run("merge", clients, "-o", "out")
    assert done.exit_code == 2 and done.stderr.startswith("clair: ")


def test_files_that_are_none(clients: Path) -> None:
    with pytest.raises(UsageError, match="unreadable"):
        defaults_of("merge", clients, Path("absent.toml"), {})
    os.mkfifo("clair.toml")
    with pytest.raises(UsageError, match="FIFO"):
        defaults_of("merge", clients, None, {})


def test_a_pyproject_of_somebody_else(clients: Path) -> None:
    for text in ("not toml at all", "[tool.other]\nclair = 1\n", "[project]\nname = 'clair'\n"):
        Path("pyproject.toml").write_text(text)
        assert defaults_of("merge", clients, None, {}).values == {}
    Path("pyproject.toml").write_text("tool.clair = 3")
    with pytest.raises(UsageError, match="expected a table"):
        defaults_of("merge", clients, None, {})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CLAIR_FORCE", "1", "force is never taken from the environment"),
        ("CLAIR_OUTPUT", "m", "output is never taken from the environment"),
        ("CLAIR_REPORT", "m", "report is never taken from the environment"),
        ("CLAIR_ALLOW_UNDETERMINED", "1", "allow-undetermined is never taken"),
        ("CLAIR_TRUST", "mallory", "trust is never taken from the environment"),
        ("CLAIR_TRUST_ADAPTER", "mallory", "trust-adapter is never taken"),
        ("CLAIR_RNK", "8", "CLAIR_RNK is no option"),
        ("CLAIR_RANK", "x", "CLAIR_RANK: rank is 'x', expected"),
        ("CLAIR_STRICT", "perhaps", "CLAIR_STRICT: strict is 'perhaps'"),
    ],
)
def test_wrong_variables(
    clients: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        found(**{variable: value})
    monkeypatch.setenv(variable, value)
    assert run("inspect", clients).exit_code == 2
    assert run("convert", "nowhere", "-o", "x", "--tensor-names", "peft").exit_code == 2


def test_variables(clients: Path) -> None:
    assert found(CLAIR_STRICT="yes", CLAIR_SAME_BASE="0") == {"strict": True, "same_base": False}
    assert found(CLAIR_EXCLUDE="a b\nc,d\n") == {"exclude": ["a b", "c,d"]}
    assert found(CLAIR_DEBUG="1", CLAIR_BENCH_CACHE="x", CLAIRVOYANT="1", CLAIR_RANK="") == {}


def test_no_variable_says_where_results_go_or_who_is_believed() -> None:
    for name, option in OPTIONS.items():
        deciding = ("trust", "allow", "force", "report", "verdicts", "earlier", "engine")
        decides = name.startswith(deciding)
        where = option.panel == "Output" and option.kind in (PATH, ADAPTER)
        assert option.in_environment != (decides or where), name


# What strangers send is no configuration


def test_the_working_folder_is_theirs(
    clients: Path, calls: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clients / "hospital").mkdir()
    for folder in (clients, clients / "hospital"):
        (folder / "clair.toml").write_text('exclude = ["c0"]')
    top = clients.resolve()
    for folder in (top, top / "hospital"):
        monkeypatch.chdir(folder)
        done = run("inspect", top)
        assert calls[-1].exclude == ()
        assert done.stderr.count("no configuration is read in the working folder") == 1
        assert run("inspect", top, "-q").stderr == ""
    monkeypatch.chdir(top.parent)
    assert run("inspect", clients).stderr == ""


def test_a_file_inside_clients(clients: Path) -> None:
    (clients / "c.toml").write_text("rank = 8")
    Path("link.toml").symlink_to(clients / "c.toml")
    os.link(clients / "c.toml", "hard.toml")
    for given in (clients / "c.toml", Path("link.toml"), Path("hard.toml")):
        with pytest.raises(UsageError, match="lies in CLIENTS"):
            defaults_of("merge", clients, given, {})
    done = run("merge", clients, "-o", "out", "--config", clients / "c.toml")
    assert done.exit_code == 2
    Path("clair.toml").symlink_to(clients / "c.toml")
    with pytest.raises(UsageError, match="lies in CLIENTS"):
        defaults_of("merge", clients, None, {})
    Path("clair.toml").unlink()
    Path("mine.toml").write_text("rank = 8")
    Path("clair.toml").symlink_to("mine.toml")
    assert defaults_of("merge", clients, None, {}).values == {"rank": 8}
