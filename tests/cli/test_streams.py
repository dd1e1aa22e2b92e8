"""Standard output as Docker and CI runners set it up: unbuffered, non-blocking, nearly full."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.test_process import FAKE, STREAM, arguments, environment

UNBUFFERED = [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}]
LIMIT = 4096
COMMANDS = {
    "json": (FAKE, "inspect", "clients", "--json"),
    "adapter": (STREAM, "merge", "clients", "-o", "-"),
}


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("env", UNBUFFERED, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("what", ["json", "adapter"])
def test_a_file_that_takes_only_a_part_is_a_failure(
    tmp_path: Path, what: str, env: dict[str, str]
) -> None:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    (tmp_path / "clients").mkdir()
    with open(tmp_path / "out", "wb") as out:
        found = subprocess.run(
            arguments(*COMMANDS[what]), cwd=tmp_path, env=environment() | env, timeout=20,
            stdout=out, stderr=subprocess.PIPE, preexec_fn=limit,
        )  # fmt: skip
    assert (tmp_path / "out").stat().st_size <= LIMIT
    assert found.returncode == 6
    assert found.stderr == b"clair: can't write to standard output: File too large\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("env", UNBUFFERED, ids=["buffered", "unbuffered"])
def test_a_pipe_that_does_not_block_gets_all(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "clients").mkdir()
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen(
        arguments(*COMMANDS["adapter"]), cwd=tmp_path, env=environment() | env, stdout=write,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        os.close(write)
        time.sleep(0.5)  # the pipe is full before anybody reads
        with open(read, "rb") as pipe:
            seen = pipe.read()
        assert b"contaminated" in child.communicate(timeout=20)[1]
    assert (child.returncode, seen) == (0, b"\x00\xff" * 500_000)


def test_no_adapter_into_the_reports_place(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    command = arguments(*COMMANDS["adapter"], "--report", "r.json", "--force")
    with open(tmp_path / "r.json", "wb") as out:
        found = subprocess.run(
            command, cwd=tmp_path, env=environment(), stdout=out, stderr=subprocess.PIPE, timeout=20
        )
    assert found.returncode == 2
    assert b"standard output goes to 'r.json', the report's place" in found.stderr
