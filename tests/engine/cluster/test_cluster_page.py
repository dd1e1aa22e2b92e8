"""The commands of docs/cluster.md, as they stand there, for machines that are all this one."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.cluster.nodes import ROOT
from tests.pages import PAGES, SAMPLES, fenced

pytestmark = pytest.mark.ray

HERE, TOKEN, START, MERGE = fenced(PAGES["docs/cluster.md"], "sh")


@pytest.fixture
def files_of_ray() -> Iterator[Path]:
    """Where Ray keeps its files: not where other programs of this machine look for a cluster. Its
    sockets want a short path."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def environment(tmp_path: Path, files_of_ray: Path) -> dict[str, str]:
    """As a user has it: a home without a token, and the program on the path."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLAIR_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    (tmp_path / "home").mkdir()
    return {
        **plain, "HOME": str(tmp_path / "home"), "PATH": path, "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(files_of_ray),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def clients(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLES / "clients", tmp_path / "clients"))


def run(block: str, folder: Path, environment: dict[str, str]) -> str:
    """What a block prints to standard output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def expected(tmp_path: Path, environment: dict[str, str]) -> bytes:
    run("clair merge clients -o local", tmp_path, environment)
    return weights(tmp_path / "local")


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_on_one_machine(tmp_path: Path, environment: dict[str, str], expected: bytes) -> None:
    assert run(HERE, tmp_path, environment) == ""
    assert weights(tmp_path / "merged") == expected
    assert not list((tmp_path / "home").iterdir()), "no token is left"


def addresses(environment: dict[str, str]) -> tuple[str, int]:
    """This machine's address, as Ray sees it, and a free port. Asked of another process: Ray reads
    how it is to check tokens when it is imported, and other tests import it later."""
    code = "from ray._private import services as s; print(s.node_ip_address_from_perspective())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    with socket.socket() as free:
        free.bind(("", 0))
        return done.stdout.strip(), free.getsockname()[1]


@contextmanager
def started(line: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A command that runs until it is ended, by its id."""
    with (folder / "started.txt").open("a+") as words:
        process = subprocess.Popen(
            [*shlex.split(line), "--num-cpus=1"], env=environment,
            cwd=folder, stdout=words, stderr=words,
        )  # fmt: skip
        try:
            for _ in range(200):
                words.seek(0)
                if "Ray runtime started." in words.read():
                    break
                assert process.poll() is None, (folder / "started.txt").read_text()
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(30)


def test_on_several(
    tmp_path: Path, environment: dict[str, str], files_of_ray: Path, expected: bytes
) -> None:
    head, port = addresses(environment)

    def here(block: str) -> str:
        block = block.replace("HEAD", head).replace("6379", str(port))
        return block.replace("/shared", str(tmp_path))

    run(TOKEN, tmp_path, environment)
    environment["RAY_AUTH_MODE"] = "token"
    assert (tmp_path / "home" / ".ray" / "auth_token").stat().st_mode & 0o77 == 0
    first, second = here(START).splitlines()
    with started(first, tmp_path, environment):
        (tmp_path / "other").mkdir()
        with started(second, tmp_path / "other", environment):
            assert run(here(MERGE), tmp_path, environment) == ""
    assert weights(tmp_path / "merged") == expected
    assert (files_of_ray / "ray" / "ray_current_cluster").is_file(), "the page says that it stays"
