"""What pipelines use: the GitHub action, the hook, the image, completion and the manual page."""

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


def run_action(work: Path, **given: str) -> tuple[int, dict[str, str]]:
    """The action's second step, run as GitHub does; its exit code and outputs."""
    step, out = ACTION["runs"]["steps"][1], work / "outputs"
    out.write_text("")
    names = [re.findall(r"inputs\.([\w-]+)", value)[0] for value in step["env"].values()]
    inputs = {
        v: given.get(n.replace("-", "_"), "") for v, n in zip(step["env"], names, strict=True)
    }
    (work / "bin").mkdir(exist_ok=True)
    program = work / "bin" / "clair"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clair_cli "$@"\n')
    program.chmod(0o755)
    env = {
        **os.environ, **inputs, "RUNNER_TEMP": str(work), "GITHUB_OUTPUT": str(out),
        "PATH": f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, check=False)
    lines = out.read_text().splitlines()
    return done.returncode, dict(line.split("=", 1) for line in lines)


@posix
def test_the_action_on_the_sample_round(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "clients", tmp_path / "clients")
    code, found = run_action(tmp_path, clients="clients", output="m.safetensors")
    assert (code, found["exit-code"], found["verdict"]) == (0, "0", "contaminated")
    counts = json.loads(found["counts"])
    assert counts["contaminated"] == 3 and sum(counts.values()) == 12
    paths = json.loads(found["paths"])
    assert paths["adapter"] == "m.safetensors" and (tmp_path / "m.safetensors").exists()
    assert json.loads(Path(paths["report"]).read_text())["command"] == "merge"
    code, found = run_action(tmp_path, clients="clients", output="n", fail_on="contaminated")
    assert (code, found["exit-code"]) == (3, "3") and "adapter" not in json.loads(found["paths"])
    (tmp_path / "c.toml").write_text('fail-on = "never"\n')
    code, found = run_action(tmp_path, clients="clients", config="c.toml")
    assert (code, found["verdict"]) == (0, "contaminated")


@posix
def test_the_action_with_hostile_inputs(tmp_path: Path) -> None:
    for clients in ("$(touch stolen)", "x\nverdict=benign", "--help", "; touch stolen"):
        code, found = run_action(tmp_path, clients=clients)
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


# At a prompt


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = run_clair("completion", shell)
    assert done.exit_code == 0 and "_CLAIR_COMPLETE" in done.stdout and done.stderr == ""
    program = shutil.which(shell)
    if program is not None:
        checked = subprocess.run(
            [program, "-n", "-c" if shell == "bash" else "/dev/stdin",
             *([done.stdout] if shell == "bash" else [])],
            input=done.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (checked.returncode, checked.stderr) == (0, "")
    assert run_clair("completion", "tcsh").exit_code == 2


@posix
@pytest.mark.parametrize(
    ("line", "wanted"),
    [("clair me", {"merge"}), ("clair merge x --fail", {"--fail-on"}),
     ("clair inspect --al", set()), ("clair completion ", {"bash", "zsh", "fish"})],
)  # fmt: skip
def test_what_is_completed(line: str, wanted: set[str], tmp_path: Path) -> None:
    """Also where the line is not whole, and nothing is read: a broken clair.toml is no matter."""
    (tmp_path / "clair.toml").write_text("broken")
    words = line.split(" ")
    env = {
        **os.environ, "_CLAIR_COMPLETE": "complete_bash", "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli"], env=env, cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (set(done.stdout.split()), done.stderr) == (wanted, "")


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
