"""What a process that runs one command of clair sets up for itself, and a library does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from clair_cli.engine import own_process
if "claim" in sys.argv:
    own_process.claim()
before = sys.getswitchinterval()
own_process.settle()
print(sys.getswitchinterval() < before, os.environ.get("OPENBLAS_NUM_THREADS"))
"""


@pytest.mark.parametrize(
    ("claim", "given", "settled"),
    [("claim", None, "True 1"), ("claim", "2", "True 2"), ("", None, "False None")],
)
def test_only_a_process_of_our_own_is_settled(claim: str, given: str | None, settled: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    if given is not None:
        env["OPENBLAS_NUM_THREADS"] = given
    done = subprocess.run(
        [sys.executable, "-c", CODE, claim], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split() == settled.split()
