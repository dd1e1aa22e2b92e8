"""Kill a process again and again while it publishes, and look whether anything is torn.

    python tests/tools/kill_publisher.py --kills 200
    python tests/tools/kill_publisher.py --kills 200 --signal TERM
    python tests/tools/kill_publisher.py --steps

With --steps the child kills itself before and after each of its calls that touch the disk.

The child publishes a report with an adapter file, and a folder, in turn with old and new
contents, without end. After each kill every target must be whole: all old or all new, never
absent; and an adapter that is there must be the one that its report names, or an older one. A
signal that can be handled must leave no temporary file either.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clair_cli.cli.exits import Stopped, raise_on_signals
from clair_cli.output import rename
from clair_cli.output.publish import Output, publish
from clair_cli.output.temporary import leftovers

SIZE = 300_000
FILES = ("adapter_model.safetensors", "adapter_config.json")


def adapter(turn: int) -> bytes:
    return turn.to_bytes(8, "little") * (SIZE // 8)


def report(turn: int) -> bytes:
    return f"{turn} {hashlib.sha256(adapter(turn)).hexdigest()}".encode()


def publish_turn(folder: Path, turn: int) -> None:
    data = adapter(turn)
    one = [Output(folder / "m.report.json", report(turn), True)]
    publish([*one, Output(folder / "m.safetensors", data, True)])
    publish([Output(folder / "merged", dict.fromkeys(FILES, data), True)])


def publish_for_ever(folder: Path, turn: int) -> None:
    while True:
        turn += 1
        publish_turn(folder, turn)


def turn_of(data: bytes) -> int:
    """Which turn's adapter these bytes are.

    Raises:
        AssertionError: they are no turn's.
    """
    turn = int.from_bytes(data[:8], "little")
    assert data == adapter(turn), f"torn: {len(data)} bytes"
    return turn


def look(folder: Path) -> tuple[int, str]:
    """The highest turn in place, and where in its work the child was; raises on anything torn."""
    said = (folder / "m.report.json").read_bytes()
    named = int(said.split()[0])
    assert said == report(named), "torn report"
    there = turn_of((folder / "m.safetensors").read_bytes())
    assert there <= named, "an adapter that its report does not name"
    assert sorted(os.listdir(folder / "merged")) == sorted(FILES), "torn folder"
    turns = {turn_of((folder / "merged" / name).read_bytes()) for name in FILES}
    assert len(turns) == 1, "a folder of two turns"
    where = "report in place, adapter not" if there < named else "both in place"
    return max(named, *turns), where


def child(folder: Path, turn: int, ready: int) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # nohup, say, leaves one ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    raise_on_signals()
    try:
        os.write(ready, b"x")
        publish_for_ever(folder, turn)
    except Stopped as stop:
        os._exit(stop.exit_code)
    finally:
        os._exit(1)


def run(kills: int, number: int, seed: int) -> Counter[str]:
    """Kill `kills` children; what was found, counted.

    Raises:
        AssertionError: something was torn, or a child ended in an odd way.
    """
    chance, found, turn = random.Random(seed), Counter[str](), 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish_turn(folder, turn)
        for _ in range(kills):
            code = _kill_one(folder, turn, number, chance.random() * 0.04)
            assert code == (-number if number == signal.SIGKILL else 128 + number), code
            turn, where = look(folder)
            found[where] += 1
            stale = _sweep(folder)
            found["with temporary files left"] += bool(stale)
            assert number == signal.SIGKILL or not stale, stale
        found["published in all"] = turn - 1
    return found


def run_steps() -> Counter[str]:
    """Kill a child before and after each call that touches the disk; raises as `run`."""
    found, turn, step = Counter[str](), 1, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish_turn(folder, turn)
        while True:
            pid = os.fork()
            if pid == 0:
                _kill_at(step)
                publish_turn(folder, turn + 1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            turn, where = look(folder)
            _sweep(folder)
            if code == 0:
                return found
            assert code == -signal.SIGKILL, code
            found[where] += 1
            step += 1


def _kill_at(step: int) -> None:
    """Let this process kill itself at the step-th of all beginnings and ends of calls."""
    left = [step]

    def tick() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tick()
            result = real(*args, **kwargs)
            tick()
            return result

        return call

    for name in ("open", "write", "fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir"):
        setattr(os, name, killing(getattr(os, name)))
    rename._renameat2 = killing(rename._renameat2)


def _sweep(folder: Path) -> list[str]:
    """Remove the temporary files of a killed child, which must all be known as such."""
    targets = ("m.report.json", "m.safetensors", "merged")
    stale = sorted(set(os.listdir(folder)) - set(targets))
    known = [name for target in targets for name in leftovers(folder / target)]
    assert sorted(known) == stale, "a temporary name that is not recognised"
    for left in stale:
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return stale


def _kill_one(folder: Path, turn: int, number: int, delay: float) -> int:
    """The exit code of a child that was killed `delay` seconds after it began."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(folder, turn, writer)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    time.sleep(delay)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT", "HUP"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", action="store_true")
    given = parser.parse_args()
    start = time.monotonic()
    if given.steps:
        found = run_steps()
        print(f"{sum(found.values())} steps x SIGKILL: 0 torn, {time.monotonic() - start:.1f} s")
        print("\n".join(f"  {what}: {count}" for what, count in sorted(found.items())))
        return
    found = run(given.kills, signal.Signals[f"SIG{given.signal}"], given.seed)
    print(f"{given.kills} x SIG{given.signal}: 0 torn, {time.monotonic() - start:.1f} s")
    for what, count in sorted(found.items()):
        print(f"  {what}: {count}")


if __name__ == "__main__":
    main()
