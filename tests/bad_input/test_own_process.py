"""One merge in a process of its own: its streams, what it opens and what it imports.

It imports torch, which takes a second: one process for all that is to be seen of one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.bad_input.running import GOOD, REPORT
from tests.bad_input.table import ROWS, covers
from tests.bad_input.test_environment import decoys
from tests.cli.test_process import environment

CLIENTS = dict(zip(("caf\u00e9", "\u533b\u9662", "c"), GOOD.values(), strict=True))
ARGS = ("merge", "clients", "-o", "-", "--report", REPORT)
FRAMEWORKS = {"flwr", "nvflare", "ray"}
STORES = {"connect", "listing", "objects", "tree", "upload", "windows"}

PROGRAM = f"""
import json, os, runpy, sys
folder = os.path.realpath("clients")
opened = []
def note(path):
    path = os.path.realpath(path)
    if path.startswith(folder + os.sep):
        opened.append(os.path.relpath(path, folder))
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        note(os.fsdecode(args[0]))
sys.addaudithook(hook)
import clair_cli, clair_cli.federated
modules = {{"import": sorted(sys.modules)}}
import clair_cli.formats.files  # it asks whether `os.open` takes a folder's descriptor
real, paths = os.open, {{}}
def beneath(path, flags, *args, dir_fd=None, **kwargs):  # the hook is not told of which folder
    fd = real(path, flags, *args, dir_fd=dir_fd, **kwargs)
    paths[fd] = os.path.join(paths.get(dir_fd, ""), os.fspath(path))
    if dir_fd is not None and not flags & os.O_DIRECTORY:
        note(paths[fd])
    return fd
os.open = beneath
sys.argv[1:] = {list(ARGS)!r}
leave = os._exit
def tell(code):
    modules["merge"] = sorted(sys.modules)
    clair_cli.federated.Server
    modules["server"] = sorted(sys.modules)
    with open("seen.json", "w") as file:
        json.dump({{"opened": sorted(set(opened)), "modules": modules}}, file)
    leave(code)
os._exit = tell  # how the command line ends, whatever the threads do
runpy.run_module("clair_cli", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Seen:
    """The process, its streams and its report; and the same merge in this process.

    Attributes:
        plain: the report in this process, before there were decoys.
        here: adapter and report in this process, with the decoys.
        opened: the files in the clients' folder that the process opened.
        modules: those loaded after `import clair_cli.federated`, the merge, and `Server`.
        left: the names in the working folder afterwards.
    """

    code: int
    stdout: bytes
    stderr: bytes
    report: bytes
    plain: dict[str, Any]
    here: tuple[bytes, bytes]
    opened: list[str]
    modules: dict[str, list[str]]
    left: set[str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """In an ASCII locale, of another hash seed and with more threads in torch."""
    work = tmp_path_factory.mktemp("process")
    report = work / REPORT
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        clients = cohorts.save(Path("clients"), CLIENTS)
        assert cohorts.clair(*ARGS).exit_code == 0
        plain = cohorts.read_report(report)
        for folder in (clients, *(clients / name for name in CLIENTS)):
            decoys(folder)
        here = cohorts.clair(*ARGS, "--force").stdout_bytes, report.read_bytes()
        report.unlink()
    env = {**environment(), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, timeout=120)
    note = json.loads((work / "seen.json").read_text())
    return Seen(
        done.returncode, done.stdout, done.stderr, report.read_bytes(), plain, here,
        note["opened"], note["modules"], {path.name for path in work.iterdir()},
    )  # fmt: skip


@covers(95)
def test_an_ascii_locale(seen: Seen, row: int) -> None:
    """Names, reasons and report pass through ASCII streams, and results are the same bytes."""
    assert seen.code == ROWS[row].code, seen.stderr
    assert (seen.stdout, seen.report) == seen.here
    assert seen.stderr.isascii() and b"caf\\xe9" in seen.stderr and b"\\u533b" in seen.stderr
    assert sorted(cohorts.verdicts(cohorts.check_report(seen.report.decode()))) == sorted(CLIENTS)


def test_the_adapter_is_all_of_stdout(seen: Seen) -> None:
    report = json.loads(seen.report)
    assert report["merged"]["sha256"] == hashlib.sha256(seen.stdout).hexdigest()
    last = seen.stderr.decode().splitlines()[-1]
    assert "merged 3 into standard output" in last and last.endswith(f"report in {REPORT}")
    assert seen.left == {"clients", REPORT, "seen.json"}


def test_nothing_in_the_folder_is_configuration(seen: Seen) -> None:
    """Whatever it is called. It is not even opened."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert seen.opened == sorted(f"{name}/{file}" for name in CLIENTS for file in files)
    found, wanted = json.loads(seen.report), dict(seen.plain)
    assert len(found.pop("warnings")) == len(wanted.pop("warnings")) + 1
    assert found == wanted


def test_the_servers_package_imports_no_torch(seen: Seen) -> None:
    assert "clair_cli.federated" in seen.modules["import"]
    assert not {"torch", "numpy"} & set(seen.modules["import"])
    assert "torch" in seen.modules["merge"]


@pytest.mark.parametrize("name", sorted({"obstore", "boto3"} | FRAMEWORKS))
def test_a_merge_and_a_server_import_no_library_of_stores_or_servers(seen: Seen, name: str) -> None:
    assert name not in seen.modules["server"]


def test_a_merge_of_a_folder_imports_nothing_of_stores(seen: Seen) -> None:
    assert "clair_cli.workflow.merge" in seen.modules["merge"]
    assert not {f"clair_cli.store.{name}" for name in STORES} & set(seen.modules["merge"])
