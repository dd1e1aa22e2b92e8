"""The README and docs/: their text, their blocks, and what the program prints in these now.

`python -m tests.pages` writes the generated blocks again, and man/clair.1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import typer.testing

from clair_cli.cli.app import app
from clair_cli.cli.exits import EXIT_CODES

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_adapters"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
COMMANDS = (
    "merge",
    "inspect",
    "explain",
    "refine",
    "verify",
    "convert",
    "schema",
    "report",
    "plot",
    "diff",
)


def run_clair(*arguments: str) -> typer.testing.Result:
    """One command, in this process, in 80 columns."""
    runner = typer.testing.CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(app, arguments, catch_exceptions=False, prog_name="clair")


def fenced(text: str, language: str) -> list[str]:
    """The blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def help_block(command: str) -> str:
    result = run_clair(command, "--help")
    assert result.exit_code == 0
    return f"```text\n{result.stdout}```\n"


def exit_code_block() -> str:
    rows = "".join(f"| {code} | {name} | {text} |\n" for code, name, text in EXIT_CODES)
    return f"| code | name | meaning |\n| --- | --- | --- |\n{rows}"


def sample_block() -> str:
    result, _ = _sample_run()
    # a slow machine has lines of progress, one every ten seconds
    text = re.sub(r"^progress: .*\n", "", result.stderr, flags=re.MULTILINE)
    return f"```text\n{text.strip()}\n```\n"


def explain_block() -> str:
    _, explained = _sample_run()
    return f"```text\n{explained.stdout.strip()}\n```\n"


def _sample_run() -> tuple[typer.testing.Result, typer.testing.Result]:
    """A merge of the sample round, and one of its clients explained."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            os.symlink(SAMPLES / "clients", "clients")
            merged = run_clair("merge", "clients", "-o", "merged.safetensors")
            explained = run_clair("explain", "birch", "--report", "merged.report.json")
        finally:
            os.chdir(before)
    assert (merged.exit_code, explained.exit_code) == (0, 0)
    return merged, explained


def results_block() -> str:
    program = ROOT / "benchmarks" / "figures" / "readme_table.py"
    printed = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True
    ).stdout
    return f"{printed.strip()}\n"


def generated(name: str) -> str:
    """A block as the program prints it now."""
    if name.startswith("help "):
        return help_block(name.removeprefix("help "))
    return {
        "exit codes": exit_code_block,
        "explain": explain_block,
        "results": results_block,
        "sample": sample_block,
    }[name]()


BLOCK = re.compile(r"(<!-- ([a-z ]+): begin -->\n)(.*?)(<!-- \2: end -->)", re.DOTALL)
BLOCKS = {(page, m[2]): m[3] for page, text in PAGES.items() for m in BLOCK.finditer(text)}


def write_generated_blocks() -> None:
    """Write every generated block again, as the program prints it now."""
    for page, text in PAGES.items():
        new = BLOCK.sub(lambda m: m[1] + generated(m[2]) + m[4], text)
        (ROOT / page).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    from tests.man_page import PAGE, page

    write_generated_blocks()
    PAGE.write_text(page(), encoding="utf-8")
