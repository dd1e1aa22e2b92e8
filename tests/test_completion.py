"""`clair completion`: the scripts, and what real shells make of a line and Tab."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, run_clair

SHELLS = ("bash", "zsh", "fish")
# A line at a prompt, and what may follow.
LINES = {
    "clair me": {"merge"},
    "clair merge x --fail": {"--fail-on"},
    "clair inspect --al": set(),
    "clair completion ": {"bash", "zsh", "fish"},
}
posix = pytest.mark.skipif(os.name != "posix", reason="shells of POSIX")


def program(shell: str) -> str:
    """Where a shell is; the test is skipped where it is not."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed here")
    return found


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a shell with `clair` on its path, in a folder whose clair.toml is broken: no
    option is read, so that does not matter."""
    monkeypatch.chdir(tmp_path)
    Path("clair.toml").write_text("broken")
    Path("bin").mkdir()
    clair = Path("bin/clair")
    clair.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clair_cli "$@"\n')
    clair.chmod(0o755)
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script(shell: str) -> None:
    done = run_clair("completion", shell)
    assert done.exit_code == 0 and "_CLAIR_COMPLETE" in done.stdout and done.stderr == ""
    assert run_clair("completion", "tcsh").exit_code == 2


@posix
def test_bash(env: dict[str, str]) -> None:
    script = (
        'eval "$(clair completion bash)"\n'
        'for line in "$@"; do IFS=" " read -ra COMP_WORDS <<< "$line"\n'
        '[[ $line == *" " ]] && COMP_WORDS+=("")\n'
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
        '_clair_completion clair; printf ">\\n"; printf "%s\\n" "${COMPREPLY[@]}"; done'
    )
    done = subprocess.run(
        [program("bash"), "--norc", "-c", script, "bash", *LINES], env=env, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    answers = [set(part.split()) for part in done.stdout.split(">\n")[1:]]
    assert (answers, done.stderr) == (list(LINES.values()), "")


@posix
def test_fish(env: dict[str, str]) -> None:
    asked = "\n".join(f"echo '>'; complete -C '{line}'" for line in LINES)
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", f"clair completion fish | source\n{asked}"],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = [set(re.findall(r"^([\w-]+)", part, re.M)) for part in done.stdout.split(">\n")[1:]]
    assert (answers, done.stderr) == (list(LINES.values()), "")


@posix
def test_zsh(env: dict[str, str]) -> None:
    """At a terminal, as people use it: nothing else asks zsh's own completion."""
    terminal, inside = os.openpty()
    shell = subprocess.Popen(
        [program("zsh"), "-f", "-i"], env={**env, "PS1": "ready> "}, stdin=inside, stdout=inside,
        stderr=inside, start_new_session=True,
    )  # fmt: skip
    os.close(inside)

    def told(text: str, until: str) -> str:
        """What the terminal shows after a text was typed."""
        os.write(terminal, text.encode())
        shown = ""
        while not re.search(until, shown):
            ready, _, _ = select.select([terminal], [], [], 30)
            assert ready, f"after {text!r} zsh shows {shown!r}"
            shown += re.sub(r"\x1b\[[\d;?]*\w|[\x07\r]", "", os.read(terminal, 4096).decode())
        return shown

    try:
        told(
            "autoload -U compinit; compinit -u -D; eval \"$(clair completion zsh)\"; echo so'on'\n",
            "soon",
        )
        told("clair me\t", r"clair merge $")
        told("x --fail\t", r"--fail-on")
        told("\x15clair completion \t", r"bash\b[^$]*\bfish\b[^$]*\bzsh|bash\b[^$]*zsh[^$]*fish")
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
