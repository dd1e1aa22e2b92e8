"""Reading in a process of its own beside the import of torch: the same results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import clair_cli
from clair_cli.workflow import beside

SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def run(code: str) -> list[str]:
    """Lines printed by a fresh interpreter, which has one thread and no torch."""
    done = started(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def started(code: str) -> subprocess.CompletedProcess[str]:
    start = """
        import os, signal, sys, time
        from clair_cli.engine import own_process
        from clair_cli.workflow import beside
        from clair_cli.workflow.beside import results_beside

        def children():
            try:
                return os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
    """
    source = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )


def test_results_come_in_order_from_another_process() -> None:
    lines = run("""
        done = []
        out = results_beside(lambda i: (i * i, os.getpid()), range(300), 2, lambda: done.append(1))
        found = list(out)
        print([v for v, _ in found] == [i * i for i in range(300)], done)
        print({pid for _, pid in found} == {os.getpid()}, len({pid for _, pid in found}))
        print(children())
    """)
    assert lines == ["True [1]", "False 1", "None"]


def test_many_threads_are_in_several_processes() -> None:
    """Each begins with its number; one more of them has a thread less while there is other work."""
    lines = run("""
        import threading
        begun = []
        def work(i):
            time.sleep(0.02)
            return i, os.getpid(), threading.active_count(), begun[0], time.monotonic()
        def meanwhile():
            time.sleep(0.3)
            meanwhile.end = time.monotonic()
        found = list(results_beside(
            work, range(200), 13, meanwhile, begun=lambda *numbers: begun.append(numbers)))
        print([i for i, *_ in found] == list(range(200)), len({pid for _, pid, *_ in found}))
        print(sorted({numbers for *_, numbers, _ in found}), begun)
        print(sorted({max(n for _, _, n, (k, _), at in found if k == j and at < meanwhile.end)
                      for j in range(3)}))
        print(children(), len(os.listdir("/proc/self/fd")))
    """)
    assert lines[:2] == ["True 3", "[(0, 3), (1, 3), (2, 3)] []"]
    assert lines[2] == "[6]"  # main, sender and workers: 5 less one, 4 and 4
    assert lines[3] == "None 4"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_what_one_of_several_does_not_deliver_is_done_here(lost: int) -> None:
    lines = run(f"""
        here = os.getpid()
        def work(i):
            if i == 6 + {lost} and os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            return i, os.getpid() == here
        found = list(results_beside(work, range(20), 12, lambda: time.sleep(0.3)))
        print([i for i, _ in found] == list(range(20)))
        print({{i % 3 for i, mine in found if mine}}, children())
    """)
    assert lines == ["True", f"{{{lost}}} None"]


def test_room_for_some_processes_only() -> None:
    lines = run("""
        fork, forks = os.fork, []
        def some():
            forks.append(1)
            if len(forks) == 2:
                raise BlockingIOError("no room")
            return fork()
        os.fork = some
        found = list(results_beside(lambda i: (i, os.getpid()), range(20), 12, lambda: None))
        print([i for i, _ in found] == list(range(20)), len(forks))
        print({i % 3 for i, pid in found if pid == os.getpid()}, children())
    """)
    assert lines == ["True 2", "{1, 2} None"]


def test_it_works_on_while_nobody_takes_the_results() -> None:
    """More than a pipe holds, and on all threads only once the other work is done."""
    lines = run("""
        import threading
        def work(i):
            return os.urandom(200_000), time.monotonic(), threading.get_ident()
        def meanwhile():
            time.sleep(0.5)
            meanwhile.end = time.monotonic()
        found = list(results_beside(work, range(20), 3, meanwhile))
        print(all(at < meanwhile.end for _, at, _ in found), len(found))
    """)
    assert lines == ["True 20"]


def test_one_thread_less_as_long_as_the_other_work_lasts() -> None:
    lines = run("""
        import threading
        def work(i):
            time.sleep(0.02)
            return time.monotonic(), threading.active_count()
        def meanwhile():
            time.sleep(0.3)
            meanwhile.end = time.monotonic()
        found = list(results_beside(work, range(60), 2, meanwhile))
        before = [n for at, n in found if at < meanwhile.end]
        after = [n for at, n in found[-5:]]
        print(max(before), max(after) - max(before))  # main, sender, workers
    """)
    first, more = map(int, lines[0].split())
    assert (first, more >= 1) == (3, True)


@pytest.mark.parametrize(
    "fails",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "raise MemoryError",
        "os._exit(0)",
        "return lambda: 0  # can't be pickled",
    ],
)
def test_what_does_not_arrive_is_done_here(fails: str) -> None:
    lines = run(f"""
        here = os.getpid()
        def work(i):
            if i == 3 and os.getpid() != here:
                {fails}
            return i, os.getpid() == here
        found = list(results_beside(work, range(6), 2, lambda: time.sleep(0.3)))
        print([i for i, _ in found], found[-1][1])
        print(children())
    """)
    assert lines == ["[0, 1, 2, 3, 4, 5] True", "None"]


def test_it_ends_when_nobody_waits_any_more() -> None:
    """As when the command itself is killed: nothing of it goes on reading."""
    source = """
        import os, time
        from clair_cli.workflow.beside import results_beside
        def work(i):
            time.sleep(0.05)
            os.write(1, b"x")
        results = results_beside(work, range(200), 2, lambda: None)
        next(results)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE, timeout=60,
        check=True,
    )  # fmt: skip
    assert len(done.stdout) < 20


def test_an_error_of_a_result_is_raised_here() -> None:
    lines = run("""
        def work(i):
            raise ValueError(f"item {i}")
        try:
            list(results_beside(work, range(6), 2, lambda: None))
        except ValueError as error:
            print(error, children())
    """)
    assert lines == ["item 0 None"]


def test_without_room_for_a_process_all_is_done_here() -> None:
    lines = run("""
        def no_fork():
            raise BlockingIOError("no room")
        os.fork = no_fork
        before = len(os.listdir("/proc/self/fd"))
        print(list(results_beside(lambda i: i + 1, range(4), 2, lambda: print("not called"))))
        print(len(os.listdir("/proc/self/fd")) - before)
    """)
    assert lines == ["[1, 2, 3, 4]", "0"]


def test_an_error_of_the_other_work_ends_the_process() -> None:
    lines = run("""
        def broken():
            raise ImportError("no torch")
        before = len(os.listdir("/proc/self/fd"))
        try:
            list(results_beside(lambda i: time.sleep(60), range(4), 2, broken))
        except ImportError as error:
            print(error, children(), len(os.listdir("/proc/self/fd")) - before)
    """)
    assert lines == ["no torch None 0"]


def test_only_a_process_of_our_own_is_forked() -> None:
    lines = run("""
        import threading
        print(beside.may_fork())
        own_process.claim()
        print(beside.may_fork())
        go = threading.Event()
        other = threading.Thread(target=go.wait)
        other.start()
        print(beside.may_fork())
        go.set()
        other.join()
        sys.modules["torch"] = sys
        print(beside.may_fork())
    """)
    assert lines == ["False", "True", "False", "False"]


def test_a_library_is_not_a_process_of_our_own() -> None:
    assert not beside.may_fork()


def test_imports_leave_the_collector_as_it_was() -> None:
    lines = run("""
        import gc
        for before in (True, False):
            (gc.enable if before else gc.disable)()
            with beside.importing():
                print(gc.isenabled(), gc.get_freeze_count())
            print(gc.isenabled(), gc.get_freeze_count() > 0)
            own_process.claim()
    """)
    assert lines == ["False 0", "True False", "False 0", "False True"]


def test_the_command_reads_so_and_says_the_same(tmp_path: Path) -> None:
    """A rejected client too, and with a bar. On one thread nothing is forked."""
    clients = tmp_path / "clients"
    shutil.copytree(SAMPLE, clients)
    (clients / "broken.safetensors").write_bytes(b"no adapter")
    counting = """
        import os, sys
        import clair_cli.cli.app as cli
        fork, forks = os.fork, []
        def counted():
            assert "numpy" not in sys.modules  # it starts threads
            child = fork()
            if child:
                os.write(1, b"fork ")
            return child
        os.fork = counted
        if sys.argv.pop() == "terminal":
            import clair_cli.cli.progress as watch
            watch.is_terminal = lambda stream: True
            watch.takes_ansi = lambda: True
        sys.argv = ["clair", *sys.argv[1:]]
        cli.console()
    """
    reports, adapters = [], []
    for threads, where, forks in (
        ("1", "pipe", b""), ("2", "pipe", b"fork "), ("2", "terminal", b"fork "),
    ):  # fmt: skip
        output, report = tmp_path / "merged.safetensors", tmp_path / "merged.json"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(counting), "merge", str(clients), "--force",
             "--threads", threads, "-o", str(output), "--report", str(report), where],
            capture_output=True, timeout=60, check=False,
            env={**os.environ, "PYTHONWARNINGS": "error:This process:DeprecationWarning"},
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, forks), done.stderr
        reports.append(json.loads(report.read_bytes())["clients"])
        adapters.append(output.read_bytes())
    assert [c["name"] for c in reports[0] if c["verdict"] == "rejected"] == ["broken"]
    assert reports[0] == reports[1] == reports[2]
    assert adapters[0] == adapters[1] == adapters[2]


def test_what_both_processes_have_arrives_as_itself() -> None:
    lines = run("""
        import mmap
        shared = mmap.mmap(-1, 8)
        class Holder:
            pass
        holder = Holder()
        def work(i):
            shared[i] = 7
            return [i, holder]
        found = list(results_beside(work, range(3), 2, lambda: None, shared=holder))
        print([i for i, _ in found], all(h is holder for _, h in found), shared[:])
    """)
    assert lines == [r"[0, 1, 2] True b'\x07\x07\x07\x00\x00\x00\x00\x00'"]


def test_a_client_whose_reader_died_is_read_whole(tmp_path: Path) -> None:
    """What the other process handed over before it died still holds."""
    source = """
        import os, signal, sys
        import clair_cli.cli.app as cli, clair_cli.cohort.load as cohort
        here, load, count = os.getpid(), cohort._load_one, []
        def dies(*args):
            count.append(1)
            if len(count) == 6 and os.getpid() != here:
                import time; time.sleep(1.0)  # let the others go
                os.kill(os.getpid(), signal.SIGKILL)
            return load(*args)
        cohort._load_one = dies
        sys.argv[0] = "clair"
        cli.console()
    """
    output, other = tmp_path / "dies.safetensors", tmp_path / "lives.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), "merge", str(SAMPLE),
         "--threads", "2", "-o", str(output)],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    clair_cli.merge(SAMPLE, other)
    assert output.read_bytes() == other.read_bytes()


IMPORT = """
    from clair_cli.cli import exits
    from clair_cli.workflow.beside import importing
    if {ours}:
        own_process.claim()
    exits.raise_on_signals()
    def import_torch():
        with importing():
            print(*own_process.helpers, flush=True)
            try:
                os.kill(os.getpid(), signal.{name})
                for _ in range(1000): pass
            except BaseException:
                os.abort()  # what C++ does with it
            print("imported", flush=True)
    try:
        print(*results_beside(lambda i: time.sleep(9), range(2), 2, import_torch))
    except exits.Stopped as stop:
        print("raised", stop.exit_code, *own_process.helpers)
"""


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)], ids=str
)
def test_a_signal_during_the_import_ends_a_process_of_our_own(name: str, code: int) -> None:
    done = started(IMPORT.format(ours=True, name=name))
    assert (done.returncode, done.stderr) == (code, "clair: interrupted, nothing written\n")
    (helper,) = map(int, done.stdout.split())
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)


def test_a_signal_during_the_import_waits_in_a_process_of_others() -> None:
    done = started(IMPORT.format(ours=False, name="SIGTERM"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["imported", "raised 143"]
