"""What the README says about the program is what the program says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from clair_cli.cli.app import app
from clair_cli.cli.exits import EXIT_CODES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    """The text between the two comments of that name."""
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", README, re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_help_of_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = typer.testing.CliRunner().invoke(
        app, ["merge", "--help"], catch_exceptions=False, prog_name="clair"
    )
    assert result.exit_code == 0
    assert between("help") == f"```text\n{result.stdout}```\n"


def test_the_exit_codes() -> None:
    rows = "".join(f"| {code} | {name} | {text} |\n" for code, name, text in EXIT_CODES)
    assert between("exit codes") == f"| code | name | meaning |\n| --- | --- | --- |\n{rows}"


def test_the_set_up_commands_come_first() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert blocks[:2] == [
        "pip install -c constraints.txt . "
        "&& clair merge sample_adapters/clients -o merged.safetensors\n",
        "pip install -c constraints.txt '.[test]' && pytest -n 2 --dist worksteal\n",
    ]
    before = README.split("```sh", 1)[0]
    assert "```" not in before
    assert "\n## " not in before


def test_every_option_it_names_exists() -> None:
    """An option in the text is one of some command's options."""
    helps = [
        typer.testing.CliRunner().invoke(app, [*command, "--help"], catch_exceptions=False).stdout
        for command in ([], ["merge"], ["inspect"], ["refine"], ["verify"])
    ]
    text = README.replace(between("help"), "").replace("pytest -n 2 --dist worksteal", "")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named >= {"--force", "--allow-undetermined", "--previous"}
    assert {option for option in named if not any(option in text for text in helps)} == set()


@pytest.mark.skipif(os.name != "posix", reason="a bash script")
def test_ci_runs_the_commands_of_the_readme() -> None:
    """.ci/run takes them from the README itself."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"^readme_block\(\) \{\n.*?^\}$", script, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert "clair merge" not in script
    for number, start in ((1, "pip install -c constraints.txt . &&"), (2, "pip install -c")):
        done = subprocess.run(
            ["bash", "-c", f"{found[0]}\nreadme_block {number}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(start)
        assert len(done.stdout.splitlines()) == 1


def test_the_sample_output_is_what_the_program_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = ROOT / "sample_adapters" / "clients"
    monkeypatch.chdir(tmp_path)
    result = typer.testing.CliRunner().invoke(
        app, ["merge", str(clients), "-o", "merged.safetensors"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert between("sample") == f"```text\n{result.stderr.strip()}\n```\n"
    assert (tmp_path / "merged.report.json").exists()


def test_the_table_of_results_is_what_the_benchmark_wrote() -> None:
    program = ROOT / "benchmarks" / "figures" / "readme_table.py"
    printed = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True
    ).stdout
    assert between("results") == f"{printed.strip()}\n"
