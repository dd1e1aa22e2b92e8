"""Rows about the machine: order, threads, network, rights; and whose word is configuration."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from tests import cohorts
from tests.bad_input.running import GOOD, OUT, REPORT, merge
from tests.bad_input.table import ROWS, covers
from tests.conftest import NO_NETWORK

CLIENTS = Path("clients")
MIXED = {**cohorts.honest(4), "odd": cohorts.unrelated()}


@covers(96)
def test_the_order_of_the_folder(work: Path, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts.save(CLIENTS, MIXED)
    first = merge()
    before = Path(OUT).read_bytes()
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *a: sorted(listdir(*a), reverse=True))
    again = merge("--force")
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert (first.code, again.code, again.report) == (0, ROWS[row].code, first.report)
    assert Path(OUT).read_bytes() == before
    for k, name in enumerate(sorted(os.listdir(CLIENTS), reverse=True)):
        (CLIENTS / name).rename(CLIENTS / f"x{k}")
    CLIENTS.rename("others")
    assert cohorts.clair("merge", "others", "-o", OUT, "--force").exit_code == ROWS[row].code
    assert Path(OUT).read_bytes() == before


@covers(97)
def test_again_and_with_two_threads(work: Path, row: int) -> None:
    cohorts.save(CLIENTS, MIXED)
    seen = set()
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        assert merge("--force").code == ROWS[row].code
        seen.add((Path(OUT).read_bytes(), Path(REPORT).read_bytes()))
    assert len(seen) == 1


@covers(98)
def test_a_run_without_a_network(work: Path, row: int) -> None:
    """Also with a folder that a hub's loader would have to ask about."""
    cohorts.save(CLIENTS, GOOD)
    cohorts.save_peft(CLIENTS / "hub", cohorts.honest(4)["c3"])
    (CLIENTS / "hub" / "adapter_model.safetensors").unlink()
    ran = merge()  # any attempt fails the test, here and in processes
    assert ran.code == ROWS[row].code
    assert ran.verdicts["hub"] == "rejected"


@pytest.mark.parametrize(
    "code", ["s.connect(('127.0.0.1', 9))", "socket.getaddrinfo('localhost', 80)",
             "socket.create_connection(('127.0.0.1', 9))", "s.connect_ex(('127.0.0.1', 9))"]
)  # fmt: skip
def test_processes_of_tests_have_no_network(code: str) -> None:
    source = f"import socket; s = socket.socket(); {code}"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 1 and "tried to reach the network" in done.stderr
    assert NO_NETWORK in os.environ["PYTHONPATH"]


@covers(99)
def test_a_read_only_input(unprivileged: Path, row: int) -> None:
    cohorts.save(CLIENTS, MIXED)
    before = {p: p.stat() for p in [CLIENTS, *CLIENTS.rglob("*")]}
    for path, status in before.items():
        path.chmod(0o555 if stat.S_ISDIR(status.st_mode) else 0o444)
    old = os.umask(0o027)
    try:
        ran = merge()
    finally:
        os.umask(old)
    assert ran.code == ROWS[row].code
    assert {stat.S_IMODE(Path(p).stat().st_mode) for p in (OUT, REPORT)} == {0o640}
    for path, status in before.items():
        assert path.stat().st_mtime_ns == status.st_mtime_ns


# Nothing in the clients' folder is configuration, whatever it is called. It is not even opened.

DECOYS = (
    "pyproject.toml", "setup.cfg", "tox.ini", ".env", ".netrc", "_netrc", ".clair.toml",
    "clair.toml", "clair.json", "clair.cfg", ".clairrc", "config.json", "generation_config.json",
    "tokenizer_config.json", "training_args.json", "README.md", ".huggingface", "hf.json",
    "sitecustomize.py", "usercustomize.py", "torch.py", "conftest.py", "weights.json",
    "weights.csv",
    "merged.report.json", ".gitattributes", "requirements.txt", "pip.conf",
)  # fmt: skip


def decoys(folder: Path) -> None:
    text = '[tool.clair]\nexclude = ["c0"]\nfail-on = "never"\n'
    for name in DECOYS:
        if name.endswith(".py"):
            data = "raise SystemExit('imported')\n"
        elif name.endswith(".json"):
            data = json.dumps({"exclude": ["c0"], "c0": 5, "lora_alpha": 99, "r": 1})
        else:
            data = text
        (folder / name).write_text(data)


def test_nor_is_it_when_it_is_the_working_directory(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts.save(CLIENTS, GOOD)
    decoys(CLIENTS)
    monkeypatch.chdir(CLIENTS)
    before: dict[str, Any] = cohorts.snapshot(Path())
    result = clair_cli.merge(".")
    assert result.report.exit_code == 0 and result.report.options["exclude"] == []
    assert result.report.options["weights"] is None
    assert cohorts.snapshot(Path()) == before
