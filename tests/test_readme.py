"""What people copy from the README and docs/ works, and what they see there is what is printed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.pages import BLOCKS, COMMANDS, PAGES, README, ROOT, SAMPLES, fenced, generated, run_clair


def test_the_generated_blocks_are_where_people_look() -> None:
    assert set(BLOCKS) == {
        ("README.md", "sample"),
        ("README.md", "results"),
        ("docs/how-it-writes.md", "exit codes"),
        ("docs/reading-the-report.md", "explain"),
        *(("docs/commands.md", f"help {command}") for command in COMMANDS),
    }


@pytest.mark.parametrize(("page", "name"), BLOCKS)
def test_a_generated_block(page: str, name: str) -> None:
    assert BLOCKS[page, name] == generated(name)


@pytest.fixture
def round_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages' commands name: clients, two-clients and samples.csv."""
    shutil.copytree(SAMPLES / "clients", tmp_path / "clients")
    for name in ("alder", "cedar"):
        shutil.copytree(SAMPLES / "clients" / name, tmp_path / "two-clients" / name)
    counts = json.loads((SAMPLES / "weights.json").read_text(encoding="utf-8"))
    lines = "".join(f"{name},{count}\n" for name, count in counts.items())
    (tmp_path / "samples.csv").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_of(page: str) -> list[tuple[list[str], int]]:
    """The commands of a page's sh blocks, and the exit code that a comment behind them says."""
    blocks = fenced(PAGES[page], "sh")[2 if page == "README.md" else 0 :]
    found = []
    for line in "".join(blocks).splitlines():
        command, _, comment = line.partition("#")
        code = re.search(r"exit code (\d+)", comment)
        found.append((shlex.split(command), int(code[1]) if code else 0))
    return found


# What stands in these is run with what it is for, in tests/engine/cluster, federated and store.
ELSEWHERE = ("docs/cluster.md", "docs/federated.md", "docs/storage.md")


@pytest.mark.parametrize("page", [p for p in PAGES if p not in ELSEWHERE and commands_of(p)])
def test_the_commands_of_a_page(page: str, round_folder: Path) -> None:
    for text in fenced(PAGES[page], "toml"):  # its first line names the file
        birch = Path("clients/birch/adapter_model.safetensors").read_bytes()
        text = text.replace("SHA256-OF-BIRCH", hashlib.sha256(birch).hexdigest())
        Path(text.split()[1]).write_text(text, encoding="utf-8")
    for command, code in commands_of(page):
        assert command[0] == "clair"
        result = run_clair(*command[1:])
        assert result.exit_code == code, (command, result.stderr)


CODE = [
    (page, n)
    for page, text in PAGES.items()
    if page not in ELSEWHERE
    for n in range(len(fenced(text, "python")))
]


@pytest.mark.parametrize(("page", "number"), CODE)
def test_the_python_code_of_a_page(page: str, number: int, round_folder: Path) -> None:
    code = fenced(PAGES[page], "python")[number]
    exec(compile(code, f"{page}, python block {number}", "exec"), {})


def test_the_python_code_names_the_contaminated(
    round_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(fenced(PAGES["docs/python.md"], "python")[0], {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["birch", "larch", "rowan"]


def test_the_set_up_commands_come_first() -> None:
    assert fenced(README, "sh")[:2] == [
        "pip install -c constraints.txt . "
        "&& clair merge sample_adapters/clients -o merged.safetensors\n",
        "pip install -c constraints.txt '.[test]' && pytest -n 2 --dist worksteal\n",
    ]
    before = README.split("```sh", 1)[0]
    assert "```" not in before
    assert "\n## " not in before


def test_the_readme_is_about_one_screen() -> None:
    assert len(README.splitlines()) <= 115


def test_the_folder_of_ones_own_adapters_is_read(round_folder: Path) -> None:
    """The files that the README lists make clients of which none is rejected."""
    listed = [line.split()[0] for line in fenced(README, "text")[0].splitlines()]
    shutil.rmtree("clients")
    sources = {".json": "adapter_config.json", ".safetensors": "adapter_model.safetensors"}
    for name in listed:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        client = "cedar" if "clinic-a" in name else "alder"
        shutil.copy(SAMPLES / "clients" / client / sources[Path(name).suffix], name)
    run_clair("inspect", "clients", "-o", "report.json")
    clients = json.loads(Path("report.json").read_text(encoding="utf-8"))["clients"]
    assert [c["name"] for c in clients] == ["clinic-a", "clinic-b"]
    assert all(c["verdict"] != "rejected" for c in clients)


def ci_script() -> str:
    """What the last `run: |` of the README's CI job has below it."""
    (block,) = fenced(README, "yaml")
    return textwrap.dedent(block.split("run: |\n")[-1])


@pytest.mark.skipif(os.name != "posix", reason="a bash script")
@pytest.mark.parametrize(
    ("code", "words"), [(0, ""), (2, ""), (3, "contaminated"), (5, "no verdict")]
)
def test_the_ci_job_acts_on_the_exit_code(tmp_path: Path, code: int, words: str) -> None:
    """The script is run as GitHub runs it, with a program called clair that exits with `code`."""
    program = tmp_path / "clair"
    program.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", ci_script()],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert words in done.stdout
    assert bool(words) == done.stdout.startswith("::error::")


def test_the_command_of_the_ci_job_finds_the_contaminated(round_folder: Path) -> None:
    (line,) = (line for line in ci_script().splitlines() if line.startswith("clair "))
    result = run_clair(*shlex.split(line.partition("||")[0])[1:])
    assert result.exit_code == 3
    assert Path("merged.report.json").exists()
    assert not Path("merged.safetensors").exists()


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
