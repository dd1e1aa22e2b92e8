"""Rows about the folder as a whole: where it is, what else is in it, names, and how many."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import clair_cli
from tests import cohorts
from tests.bad_input.running import GOOD, OUT, REPORT, merge, run
from tests.bad_input.table import ROWS, covers
from tests.work import at_most

CLIENTS = Path("clients")
FIVE = cohorts.honest(5)


@covers(1)
def test_a_folder_that_does_not_exist(work: Path, row: int) -> None:
    Path("clients").mkdir()
    ran = run("merge", "client", "-o", OUT)
    assert (ran.code, ran.report, ran.out) == (ROWS[row].code, None, "")
    assert ran.words == (
        "clair: CLIENTS 'client' does not exist\n  fix       did you mean 'clients'?\n"
    )
    code = (
        "import sys; sys.argv[1:] = ['merge', 'client', '-o', 'm']"
        "\nfrom clair_cli.cli.app import main"
        "\ntry: main()\nfinally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, ran.words)


@covers(2)
def test_a_file_for_a_folder(work: Path, row: int) -> None:
    Path("one.safetensors").write_bytes(b"")
    ran = run("merge", "one.safetensors", "-o", OUT)
    assert (ran.code, ran.report) == (ROWS[row].code, None)
    assert "CLIENTS 'one.safetensors' is a file, not a folder" in ran.words
    assert "into one folder" in ran.words


@covers(3, 4)
def test_a_folder_without_clients(work: Path, row: int) -> None:
    CLIENTS.mkdir()
    ignored = "the folder is empty"
    if row == 4:
        (CLIENTS / "README.md").write_text("x")
        (CLIENTS / ".DS_Store").write_text("x")
        ignored = "2 other entries ignored"
    for ran in (merge(), run("inspect", "clients")):
        assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
        words = ran.words + ran.out
        assert f"no client in 'clients' ({ignored})" in words
        assert "*/adapter_model.safetensors" in words and "*.safetensors" in words
        assert "contaminated" not in words and "verdict " not in words


NAMES = {
    "[bold red]x[link=h]y": "[bold red]x[link=h]y",
    "a\x1b[31mred\x1b]0;t\x07": "a\\x1b[31mred\\x1b]0;t\\x07",
    "b\n::error::boo": "b\\x0a::error::boo",
    "::stop-commands::x": "\\x3a:stop-commands::x",
    "\u202egpj.exe\u2066": "\\u202egpj.exe\\u2066",
    "<script>alert(1)<!--": "<script>alert(1)<!--",
    "a|b|c \u2028 d": "a|b|c \\u2028 d",
}


def hostile(names: list[str], clients: cohorts.Clients) -> None:
    for name, client in zip(names, clients.values(), strict=True):
        cohorts.save_peft(CLIENTS / name, client)


@covers(65)
@pytest.mark.parametrize("command", ["merge", "inspect", "refine"])
def test_names_in_every_output(work: Path, row: int, command: str) -> None:
    """`run` checks that no character steers a terminal and no line begins with `::`."""
    names = list(NAMES)
    hostile(names, cohorts.honest(7))
    cohorts.save_peft(CLIENTS / f"{names[1]} too", cohorts.with_nan(FIVE["c0"]))
    cohorts.save_peft(CLIENTS / f"{names[2]} too", cohorts.unrelated())
    output = {"merge": ("-o", OUT), "inspect": ("-o", REPORT), "refine": ("-o", "r")}[command]
    report = "r/report.json" if command == "refine" else REPORT
    ran = run(command, "clients", *output, report=report)
    assert ran.code == (3 if command == "inspect" else ROWS[row].code), ran.words
    shown = ran.words + ran.out
    for escaped in NAMES.values():
        assert escaped in shown
    assert sorted(ran.verdicts) == sorted([*names, f"{names[1]} too", f"{names[2]} too"])
    assert Path(report).read_bytes().isascii()


@covers(65)
def test_names_in_errors_and_refusals(work: Path, row: int) -> None:
    name = "a\n::error::\x1b[2J\u202e[bold]"
    escaped = "a\\x0a::error::\\x1b[2J\\u202e[bold]"
    cohorts.save(CLIENTS, GOOD)
    calls = [
        (["merge", name, "-o", OUT], 2),
        (["merge", "clients", "-o", f"{name}/x"], 2),
        (["merge", "clients", "-o", OUT, "--exclude", name], 2),
        (["merge", "clients", "-o", OUT, "--weights", name], 2),
        (["merge", "clients", "-o", OUT, "--previous", name], 2),
        (["merge", "clients", "-o", OUT, "--report", f"{name}/r"], 2),
        (["merge", "clients", "-o", OUT, "--limit", f"{name}=1"], 2),
        (["merge", "clients", "-o", OUT, "--rank", name], 2),
        (["merge", "clients", "-o", OUT, "--device", name], 2),
        (["inspect", "clients", f"--{name}"], 2),
        (["inspect", "clients", name], 2),
        ([name], 2),
    ]
    for call, code in calls:
        ran = run(*call)
        assert (ran.code, ran.report) == (code, None), call
        assert escaped in ran.words.replace("\\n", "\\x0a"), call
    Path("w.csv").write_text(f'"{name}",1\nc0,1\nc1,1\nc2,1\n')
    assert run("merge", "clients", "-o", OUT, "--weights", "w.csv").code == 2


@covers(65)
def test_names_inside_files(work: Path, row: int) -> None:
    """Module names, config fields and base models come from strangers too."""
    bad = "m\n::error::\x1b[2J\u202e"
    made = cohorts.Client(
        {**FIVE["c0"].A, f"x.{bad}": FIVE["c0"].A["model.layers.0.mlp.up"]},
        {**FIVE["c0"].B, f"x.{bad}": FIVE["c0"].B["model.layers.0.mlp.up"]},
    )
    cohorts.save(CLIENTS, {**FIVE, "c0": made})
    named = cohorts.Client(FIVE["c1"].A, FIVE["c1"].B, {"base_model_name_or_path": bad})
    cohorts.save_peft(CLIENTS / "named", named)
    cohorts.save_peft(CLIENTS / "field", cohorts.Client(FIVE["c2"].A, FIVE["c2"].B, {bad: bad}))
    ran = merge()
    assert ran.code == ROWS[row].code and ran.verdicts["field"] == ran.verdicts["named"]
    assert "m\\n::error::\\x1b[2J\\u202e" in ran.words


@covers(66)
def test_a_name_that_is_not_utf8(work: Path, row: int) -> None:
    raw = b"caf\xe9\xff"
    hostile(["c0", "c1", "c2", os.fsdecode(raw), "caf\\xe9\\xff"], FIVE)
    for ran in (merge(), run("inspect", "clients", "--json")):
        assert ran.code == ROWS[row].code
        assert "caf\\xe9\\xff" in (ran.words + ran.out).replace("\\\\", "\\")
    ran = merge("--force")
    assert ran.report is not None
    found = [c for c in ran.report["clients"] if c["name"] == "caf\\xe9\\xff"]
    assert sorted(c["name_bytes"] or "" for c in found) == ["", base64.b64encode(raw).decode()]


@covers(67)
def test_names_that_look_the_same(work: Path, row: int) -> None:
    composed = unicodedata.normalize("NFC", "caf\u00e9")
    names = [composed, unicodedata.normalize("NFD", composed), "Bob", "bob", "c4"]
    hostile(names, FIVE)
    if len(os.listdir(CLIENTS)) < 5:
        pytest.skip("this file system takes them for one name")
    ran = merge()
    assert ran.code == ROWS[row].code and sorted(ran.verdicts) == sorted(names)
    assert "clients 'Bob', 'bob': names differ only in case or Unicode form" in ran.words
    assert "clients 'cafe\\u0301', 'caf\\xe9': names differ only" in ran.words


@covers(68)
def test_names_like_options(work: Path, row: int) -> None:
    names = ["--force", "-o", " space", "- x", "-"]
    hostile(names, FIVE)
    ran = merge()
    assert ran.code == ROWS[row].code and sorted(ran.verdicts) == sorted(names)
    assert all(name in ran.words for name in names)
    assert merge("--force", "--exclude", "-o", "--exclude", "--force", "--exclude= space").code == 5


@covers(69)
def test_what_is_no_client(work: Path, row: int) -> None:
    cohorts.save(CLIENTS, GOOD)
    alone = merge()
    before = Path(OUT).read_bytes()
    data = cohorts.client_bytes(cohorts.unrelated())
    for name in (".hidden.safetensors", "c0.safetensors~", "#c0.safetensors#", ".tmpAbC123",
                 ".m.safetensors.clair-1-00.tmp", "c0.safetensors.bak", "README.md"):  # fmt: skip
        (CLIENTS / name).write_bytes(data)
    (CLIENTS / "c0" / ".hidden.safetensors").write_bytes(data)
    cohorts.save_peft(CLIENTS / ".git", cohorts.unrelated())
    ran = merge("--force")
    assert (alone.code, ran.code, sorted(ran.verdicts)) == (0, ROWS[row].code, sorted(GOOD))
    assert "7 other entries of 'clients' ignored" in ran.words
    assert ran.words.count("'.git'") == 1, "one note on a folder"
    assert Path(OUT).read_bytes() == before


@covers(70)
def test_ten_thousand_clients(work: Path, row: int) -> None:
    CLIENTS.mkdir()
    for k in range(10_000):
        (CLIENTS / f"c{k}.safetensors").touch()
    with at_most(2_000_000):
        ran = merge()
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert "holds 10,000 clients, above the limit of 1,000" in ran.words
    assert "--limit clients=" in ran.words


@covers(68)
def test_a_client_called_like_the_report(work: Path, row: int) -> None:
    """Refinement makes folders of the clients' names, beside its report."""
    cohorts.save(CLIENTS, {**GOOD, "Report.json": FIVE["c4"]})
    ran = run("refine", "clients", "-o", "r", report="r/report.json")
    assert ran.code == ROWS[row].code
    assert ran.verdicts == {**dict.fromkeys(GOOD, "benign"), "Report.json": "rejected"}
    assert "what the report is called" in ran.reason("Report.json")
    assert merge().verdicts["Report.json"] == "benign"


@pytest.mark.parametrize("command", ["##vso[task.setvariable variable=x]", "##[error]", "###[a"])
def test_commands_to_ci_systems_are_not_passed_on(work: Path, command: str) -> None:
    """GitHub and Azure obey these anywhere in a line of the log."""
    name = f"x{command}y"
    cohorts.save(CLIENTS, {**GOOD, name: FIVE["c4"]})
    (CLIENTS / f"z{command}.safetensors").write_bytes(b"")
    for args in (["merge", CLIENTS, "-o", OUT], ["inspect", CLIENTS, "--json"]):
        result = cohorts.clair(*args)
        assert result.exit_code in (0, 3)
        for said in (result.stdout, result.stderr):
            assert "##[" not in said and "##vso[" not in said
        if result.stdout:
            assert name in [client["name"] for client in json.loads(result.stdout)["clients"]]


@pytest.mark.skipif(os.name != "posix", reason="a backslash in a name")
def test_a_client_with_a_backslash_does_not_stop_refinement(work: Path) -> None:
    cohorts.save(CLIENTS, {**GOOD, "c\\4": FIVE["c4"]})
    ran = run("refine", "clients", "-o", "r", report="r/report.json")
    assert ran.code == 0
    assert ran.verdicts == {**dict.fromkeys(GOOD, "benign"), "c\\4": "rejected"}
    assert "can't be in a folder of that name" in ran.reason("c\\4")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\\b"])
def test_names_from_memory_that_are_no_folders(work: Path, name: str) -> None:
    import torch

    clients = {}
    for given, client in zip((name, "c1", "c2"), GOOD.values(), strict=True):
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        clients[given] = (state, client.fields)
    with pytest.raises(clair_cli.UsageError, match="can't be the name of a folder"):
        clair_cli.refine(clients, "r")
    assert os.listdir() == []
