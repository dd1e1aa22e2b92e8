"""What pipelines use: the GitHub action, the hook, the image and the manual page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.man_page import PAGE, page, roff
from tests.pages import PAGES, ROOT, SAMPLES, fenced, run_clair

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
posix = pytest.mark.skipif(os.name != "posix", reason="a shell script")


# The action


def test_the_actions_inputs_and_outputs_are_used() -> None:
    assert ACTION["inputs"].keys() == {"clients", "output", "fail-on", "config"}
    assert ACTION["outputs"].keys() == {"verdict", "counts", "paths", "exit-code"}
    assert ACTION["runs"]["using"] == "composite"
    steps = ACTION["runs"]["steps"]
    assert all(step["shell"] == "bash" for step in steps)
    given = " ".join(steps[1]["env"].values())
    assert re.findall(r"inputs\.([\w-]+)", given) == list(ACTION["inputs"])
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.clair.outputs.{name} }}}}"
        assert re.search(rf'print\(f"{name}=', steps[1]["run"])


def test_no_input_becomes_a_part_of_the_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert not any(name.startswith("CLAIR_") for name in step.get("env", {}))


def run_action(work: Path, program: str = "", **given: str) -> tuple[int, dict[str, str], str]:
    """The action's second step, run as GitHub does: its exit code, its outputs and what it printed.

    Args:
        program: a shell script in clair's place; "" for clair itself.
    """
    step, out = ACTION["runs"]["steps"][1], work / "outputs"
    out.write_text("")
    names = [re.findall(r"inputs\.([\w-]+)", value)[0] for value in step["env"].values()]
    inputs = {
        v: given.get(n.replace("-", "_"), "") for v, n in zip(step["env"], names, strict=True)
    }
    (work / "bin").mkdir(exist_ok=True)
    clair = work / "bin" / "clair"
    program = program or f'exec "{sys.executable}" -m clair_cli "$@"'
    clair.write_text(f"#!/bin/sh\n{program}\n")
    clair.chmod(0o755)
    env = {
        **os.environ, **inputs, "RUNNER_TEMP": str(work), "GITHUB_OUTPUT": str(out),
        "GITHUB_STEP_SUMMARY": str(work / "summary.md"),
        "PATH": f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, check=False)
    lines = out.read_text().splitlines()
    return done.returncode, dict(line.split("=", 1) for line in lines), done.stdout


@posix
def test_the_action_on_the_sample_round(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "clients", tmp_path / "clients")
    code, found, shown = run_action(tmp_path, clients="clients", output="m.safetensors")
    assert (code, found["exit-code"], found["verdict"]) == (0, "0", "contaminated")
    counts = json.loads(found["counts"])
    assert counts["contaminated"] == 3 and sum(counts.values()) == 12
    paths = json.loads(found["paths"])
    assert paths["adapter"] == "m.safetensors" and (tmp_path / "m.safetensors").exists()
    assert json.loads(Path(paths["report"]).read_text())["command"] == "merge"
    annotations = shown.splitlines()
    assert 3 <= len(annotations) <= 10
    assert all(line.startswith(("::warning title=", "::notice title=")) for line in annotations)
    summary = (tmp_path / "summary.md").read_text()
    assert "3 of 12 clients" in summary and f"--report {paths['report']}" in summary


@posix
@pytest.mark.parametrize(
    ("given", "args", "code", "verdict"),
    [
        ({"output": "n", "fail_on": "contaminated"},
         ["merge", "-o", "n", "--report", "REPORT", "--github", "--fail-on", "contaminated"],
         3, "contaminated"),
        ({"config": "c.toml"},
         ["inspect", "-o", "REPORT", "--github", "--config", "c.toml"], 0, "contaminated"),
    ],
    ids=["merge", "inspect"],
)  # fmt: skip
def test_the_action_with_the_other_inputs(
    given: dict[str, str], args: list[str], code: int, verdict: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What clair does with these arguments is seen in this process; then the action gives it just
    these, and is told the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    shutil.copytree(SAMPLES / "clients", "clients")
    Path("c.toml").write_text('fail-on = "never"\n')
    place = str(tmp_path / "clair.report.json")
    words = [place if word == "REPORT" else word for word in [*args, "--", "clients"]]
    assert run_clair(*words).exit_code == code
    Path(place).rename("made.json")
    told = f'printf "%s\\n" "$@" > args; cp made.json "{place}"; exit {code}'
    result, found, _ = run_action(tmp_path, told, clients="clients", **given)
    assert Path("args").read_text().splitlines() == words
    assert (result, found["exit-code"], found["verdict"]) == (code, str(code), verdict)
    assert json.loads(found["paths"]) == {"report": place}


@posix
def test_the_action_with_hostile_inputs(tmp_path: Path) -> None:
    for clients in ("$(touch stolen)", "x\nverdict=benign", "--help", "; touch stolen"):
        code, found, _ = run_action(tmp_path, clients=clients)
        assert (code, found) == (2, {"exit-code": "2"})
    assert not (tmp_path / "stolen").exists()


# Other pipelines


def test_the_blocks_of_the_page_are_whole() -> None:
    github, gitlab, hook = map(yaml.safe_load, fenced(PAGES["docs/integrations.md"], "yaml"))
    (step,) = (s for s in github["steps"] if "with" in s)
    assert step["with"].keys() <= ACTION["inputs"].keys()
    shown = " ".join(github["steps"][-1]["env"].values())
    assert set(re.findall(r"outputs\.([\w-]+)", shown)) <= ACTION["outputs"].keys()
    commands = [line for job in gitlab.values() for line in job["script"]]
    assert any(line.startswith("clair merge ") for line in commands)
    (used,) = hook["repos"][0]["hooks"]
    (declared,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert used["id"] == declared["id"]


def test_the_hook_judges_the_sample_clients() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["language"] == "python" and hook["pass_filenames"] is False
    assert re.search(hook["files"], "clients/a/adapter_model.safetensors")
    program, *words = hook["entry"].split()
    assert program == "clair"
    assert run_clair(*words, str(SAMPLES / "clients")).exit_code == 3


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what follows each."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def test_the_image() -> None:
    """As far as it can be checked without building it."""
    found = instructions()
    names = [name for name, _ in found]
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert set(names) == known and names[0] == "FROM"  # no ADD of an address, no EXPOSE, no VOLUME
    last = dict(found)
    assert last["USER"].isdigit() and int(last["USER"]) > 0
    assert "RUN" not in names[names.index("USER") :]
    assert json.loads(last["ENTRYPOINT"]) == ["clair"] and json.loads(last["CMD"]) == ["--help"]
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in found:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in kept
    installs = [rest for name, rest in found if "pip install" in rest and name == "RUN"]
    assert installs and all(
        "-c constraints.txt" in part for rest in installs for part in rest.split("&&")[:-1]
    )
    assert "cpu" in installs[0]


# The manual page


def test_the_manual_page_is_current() -> None:
    """`python -m tests.pages` writes it again."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_manual_page_has_every_command_and_option() -> None:
    text = PAGE.read_text(encoding="utf-8").replace(r"\-", "-")
    helps = run_clair("merge", "--help").stdout
    assert set(re.findall(r"--[a-z][a-z-]+", helps)) <= set(re.findall(r"--[a-z][a-z-]+", text))
    assert "--output-format" not in text
    for command in ("merge", "inspect", "refine", "verify", "convert", "completion"):
        assert f"\n.SS clair {command}\n" in text


def test_a_line_of_the_manual_page_is_no_request() -> None:
    assert roff(".so /etc/passwd\n'x\na-b\\c") == "\\&.so /etc/passwd\n\\&'x\na\\-b\\ec"


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_the_manual_page_is_sound() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(PAGE)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
