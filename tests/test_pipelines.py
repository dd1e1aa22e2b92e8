"""The pipelines of docs/pipelines.md: their commands and their scripts are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.pages import PAGES, fenced, run_clair
from tests.test_readme import round_folder

__all__ = ["round_folder"]  # a fixture
PAGE = PAGES["docs/pipelines.md"]
GITHUB, GITLAB = fenced(PAGE, "yaml")
(SHELL,) = fenced(PAGE, "bash")


def command_of(block: str) -> list[str]:
    """The words of the one folded command in a YAML block."""
    (found,) = re.findall(r"^ *- (?:run: )?>\n((?: {4,}.*\n)+?)(?= *- |  \w)", block, re.MULTILINE)
    return shlex.split(found)


@pytest.mark.parametrize("limit", ["30%", "20%"])
@pytest.mark.parametrize("block", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_the_command_of_a_job_stops_at_its_share(
    block: str, limit: str, round_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 of the 12 clients are contaminated: 25 %."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    words = command_of(block)
    assert words[0] == "clair" and words.count("30%") == 1
    words[words.index("30%")] = limit
    result = run_clair(*words[1:])
    assert result.exit_code == (0 if limit == "30%" else 3)
    assert Path("merged.safetensors").exists() == (limit == "30%")
    named = set(re.findall(r"[\w.-]+\.(?:json|sarif|xml)\b", block))
    assert named and all(Path(path).exists() for path in named)
    assert ("::" in result.stdout) == Path("summary.md").exists() == ("--github" in words)


@pytest.mark.skipif(os.name != "posix", reason="a bash script")
@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "verify"), (2, ""), (3, "too many"), (4, "no verdict"), (5, "no verdict")],
)
def test_the_script_acts_on_the_exit_code(tmp_path: Path, code: int, words: str) -> None:
    program = tmp_path / "clair"
    program.write_text(
        f"#!/bin/sh\n[ $1 = verify ] && echo verify\nexit {code}\n", encoding="utf-8"
    )
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", SHELL], env=env, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout and bool(words) == bool(done.stdout)


def test_the_commands_of_the_script(round_folder: Path) -> None:
    merge, verify = (shlex.split(found) for found in re.findall(r"(clair [^|;\n]*)", SHELL))
    assert run_clair(*merge[1:]).exit_code == 0
    assert run_clair(*verify[1:]).exit_code == 0
    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["exit_code"] == 0
    assert Path("summary.md").read_text(encoding="utf-8").startswith("## clair merge: 3 of 12")
