"""`clair` as a process of its own: imports, signals, closed and full streams, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NO_NETWORK = str(ROOT / "tests" / "no_network")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["merge", "--help"], 0),
        ([], 2),
        (["merge", "--bogus"], 2),
        (["merge", "not-there", "-o", "out"], 2),
        (["verify", "--help"], 0),
        (["schema"], 0),
        (["verify", "not-there"], 2),
        (["inspect", "."], 1),  # gets as far as the workflow: shows that the check can fail
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_cheap_answers_import_no_torch(tmp_path: Path, args: list[str], code: int) -> None:
    found = process(
        "run_inspect = lambda settings: __import__('sys').modules.update(torch=1)",
        *args,
        after="heavy = {'torch', 'numpy', 'scipy', 'safetensors', 'rich', 'peft'}\n"
        "sys.stderr.write(f'heavy={sorted(heavy & set(sys.modules))}')",
        cwd=tmp_path,
    )
    assert found.returncode == code
    heavy = found.stderr.rsplit("heavy=", 1)[1]
    assert (heavy == "[]") == (code != 1), found.stderr


STOPPED = """
def run_merge(settings):
    import time
    from pathlib import Path
    Path("temporary").touch()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path("temporary").unlink()
"""


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)], ids=str
)
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_signals_clean_up(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "clients").mkdir()
    child = start(STOPPED, "merge", "clients", "-o", "out", cwd=tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    number = getattr(signal, name)
    child.send_signal(number)
    time.sleep(0.01)
    child.send_signal(number)  # twice: an impatient user
    stdout, stderr = child.communicate(timeout=20)
    assert (child.returncode, stdout) == (code, "")
    assert stderr == "clair: interrupted, nothing written\n"
    assert os.listdir(tmp_path) == ["clients"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_before_the_command_line_is_there_shows_no_traceback(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            for _ in range(1000): pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['clair', '--help']\n"
        "from clair_cli.__main__ import console\n"
        "console()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")


BUSY = """
import time
from concurrent.futures import ThreadPoolExecutor
def run_merge(settings):
    waiting = ThreadPoolExecutor(2).submit(time.sleep, 60)  # as the workflow's pool does
    print("ready", flush=True)
    waiting.result()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_does_not_wait_for_the_threads(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    child = start(BUSY, "merge", "clients", "-o", "out", cwd=tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=20)
    assert (child.returncode, stdout) == (130, "")
    assert stderr == "clair: interrupted, nothing written\n"


SWALLOWING = """
import os, signal
def run_merge(settings):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9): pass
    except BaseException as error:  # as torch does, while it imports numpy
        if TURNED:
            raise RuntimeError("something else") from None
    settings.progress("reading", 0, 3)
    print("went on", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("turned", [False, True])
def test_a_signal_is_answered_although_somebody_swallows_it(tmp_path: Path, turned: bool) -> None:
    (tmp_path / "clients").mkdir()
    code = SWALLOWING.replace("TURNED", str(turned))
    child = start(code, "merge", "clients", "-o", "out", cwd=tmp_path)
    stdout, stderr = child.communicate(timeout=20)
    assert (child.returncode, stdout) == (130, "")
    assert stderr == "clair: interrupted, nothing written\n"


FAKE = """
from types import SimpleNamespace
from tests.fake_report import fake_report, renamed
def run_inspect(settings):
    report = renamed(fake_report(command="inspect"), {"amber": "caf\\u00e9\\udcff\\x1b[31m"})
    return SimpleNamespace(report=report)
def run_merge(settings):
    return SimpleNamespace(report=fake_report(), report_path=None)
"""


@pytest.mark.parametrize("args", [["inspect", "clients"], ["inspect", "clients", "--json"]])
def test_a_reader_that_goes_away_does_not_change_the_code(tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "clients").mkdir()
    read, write = os.pipe()
    os.close(read)
    child = start(FAKE, *args, cwd=tmp_path, stdout=write)
    os.close(write)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 3
    assert "Broken" not in stderr
    assert "Exception" not in stderr


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_into_a_closed_pipe(tmp_path: Path, args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    child = start(FAKE, *args, cwd=tmp_path, stdout=write)
    os.close(write)
    assert child.communicate(timeout=20)[1] == ""
    assert child.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    "args", [["inspect", "clients"], ["inspect", "clients", "--json"], ["--help"]]
)
def test_stdout_on_a_full_device(tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "clients").mkdir()
    with open("/dev/full", "w") as full:
        found = process(FAKE, *args, cwd=tmp_path, stdout=full)
    assert found.returncode == 6
    assert found.stderr == "clair: can't write to standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="closing a descriptor by shell")
def test_stdout_closed_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    command = [*arguments(FAKE, "inspect", "clients")]
    found = closed(command, ">&-", tmp_path)
    assert found.returncode == 6
    assert found.stderr == "clair: standard output is closed, so the result can't be shown\n"


@pytest.mark.skipif(os.name != "posix", reason="closing a descriptor by shell")
@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["merge", "--help"], ["inspect", "-h"]]
)
def test_help_onto_a_closed_stdout(tmp_path: Path, args: list[str]) -> None:
    found = closed(arguments(FAKE, *args), ">&-", tmp_path)
    assert found.returncode == 6
    assert found.stderr == "clair: standard output is closed, so the result can't be shown\n"


OPENS = """
import os
from types import SimpleNamespace
from tests.fake_report import fake_report
def run_merge(settings):
    from clair_cli.output.publish import Output, publish
    publish([Output(settings.output, b"adapter")])
    with open("numbers", "w") as file:
        os.write(2, b"a library's warning")
        print(file.fileno(), file=file)
    return SimpleNamespace(report=fake_report(), report_path=None)
"""


HAS_TORCH = (
    "import sys, types\n"
    "from dataclasses import replace\n"
    "sys.modules['torch'] = types.ModuleType('torch')\n" + FAKE
)
CLOSED = ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-", ">&-", "<&- 2>&-"]


@pytest.mark.skipif(os.name != "posix", reason="closing a descriptor by shell")
@pytest.mark.parametrize(("which", "code"), [*((which, 3) for which in CLOSED), (">&- 2>&-", 0)])
def test_closed_streams_leave_the_verdicts_code(tmp_path: Path, which: str, code: int) -> None:
    """With torch in the process it ends by a way of its own; words that go nowhere are dropped."""
    (tmp_path / "clients").mkdir()
    workflow = HAS_TORCH.replace("fake_report(),", f"replace(fake_report(), exit_code={code}),")
    found = closed(arguments(workflow, "merge", "clients", "-o", "m"), which, tmp_path)
    assert (found.returncode, found.stdout) == (code, "")
    assert ("contaminated" in found.stderr) == ("2>&-" not in which)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_words_that_no_device_has_room_for_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    found = closed(arguments(HAS_TORCH, "merge", "clients", "-o", "m"), "2>/dev/full", tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.skipif(os.name != "posix", reason="closing a descriptor by shell")
@pytest.mark.parametrize("which", CLOSED)
def test_closed_streams_do_not_get_into_a_file(tmp_path: Path, which: str) -> None:
    """A file opened where stderr was would take what libraries write there."""
    (tmp_path / "clients").mkdir()
    found = closed(arguments(OPENS, "merge", "clients", "-o", "m.safetensors"), which, tmp_path)
    assert (found.returncode, found.stdout) == (0, "")
    assert found.stderr == "" or "2>&-" not in which
    assert (tmp_path / "m.safetensors").read_bytes() == b"adapter"
    assert int((tmp_path / "numbers").read_text()) > 2


STREAM = """
from types import SimpleNamespace
from tests.fake_report import fake_report
def run_merge(settings):
    settings.stream.write(b"\\x00\\xff" * 500_000)
    return SimpleNamespace(report=fake_report(), report_path=None)
"""


@pytest.mark.parametrize("where", ["file", "pipe"])
def test_the_adapter_to_stdout(tmp_path: Path, where: str) -> None:
    (tmp_path / "clients").mkdir()
    merge = [*arguments(STREAM, "merge", "clients", "-o", "-")]
    with open(tmp_path / "out", "wb") as out:
        found = subprocess.run(
            merge, cwd=tmp_path, env=environment(), timeout=20, stderr=subprocess.PIPE,
            stdout=out if where == "file" else subprocess.PIPE,
        )  # fmt: skip
    written = (tmp_path / "out").read_bytes() if where == "file" else found.stdout
    assert (found.returncode, written) == (0, b"\x00\xff" * 500_000)
    assert found.stderr.splitlines()[-1].startswith(b"3 of 12 clients contaminated")


def test_a_reader_of_the_adapter_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    read, write = os.pipe()
    os.close(read)
    child = start(STREAM, "merge", "clients", "-o", "-", cwd=tmp_path, stdout=write)
    os.close(write)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "roken" not in stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_adapter_to_a_full_device(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    with open("/dev/full", "w") as full:
        found = process(STREAM, "merge", "clients", "-o", "-", cwd=tmp_path, stdout=full)
    assert found.returncode == 6
    assert found.stderr == "clair: can't write to standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
def test_no_adapter_to_a_terminal_a_closed_stdout_or_an_input(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    ours, theirs = os.openpty()
    found = process(STREAM, "merge", "clients", "-o", "-", cwd=tmp_path, stdout=theirs)
    os.close(theirs)
    os.close(ours)
    assert found.returncode == 2
    assert "-o - : standard output is a terminal" in found.stderr
    assert "fix       redirect it: -o - > merged.safetensors" in found.stderr
    merge = arguments(STREAM, "merge", "clients", "-o", "-")
    found = closed(merge, ">&-", tmp_path)
    assert found.returncode == 6
    assert "standard output is closed" in found.stderr
    with open(tmp_path / "clients" / "a.safetensors", "w") as inside:
        found = process(STREAM, "merge", "clients", "-o", "-", cwd=tmp_path, stdout=inside)
    assert found.returncode == 2
    assert "goes to 'clients/a.safetensors', an input" in found.stderr


STOPPED_STREAM = """
def run_merge(settings):
    settings.stream.write(b"begun")
    import time
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_in_the_middle_of_the_stream_says_so(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    child = start(STOPPED_STREAM, "merge", "clients", "-o", "-", cwd=tmp_path)
    assert child.stdout is not None
    assert child.stdout.read(1)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 143
    assert stderr == "clair: interrupted, what went to standard output is not whole\n"


PUBLISHES = """
import os, signal
from pathlib import Path
from clair_cli.output import draft, publish
from clair_cli.output.publish import Output
def run_merge(settings):
    moment, number = Path("moment").read_text().split()
    owner = {"swap": publish, "read_into": draft}.get(moment, os)
    real, calls = getattr(owner, moment), []
    def step(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), int(number))
        return real(*args, **kwargs)
    setattr(owner, moment, step)
    publish.publish([
        Output(Path("m.report.json"), b"new", True),
        Output(settings.output, b"new" * 1_000_000, True),
    ])
    raise RuntimeError("the signal came to nothing")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("name", "code", "moment"),
    [
        *(("SIGTERM", 143, moment) for moment in ("open", "write", "fsync", "read_into", "swap")),
        *(("SIGINT", 130, moment) for moment in ("write", "swap")),
        *(("SIGHUP", 129, moment) for moment in ("write", "swap")),
    ],
)
def test_signals_while_publishing(tmp_path: Path, name: str, code: int, moment: str) -> None:
    """The handlers are one; `tests/output` has every moment."""
    (tmp_path / "clients").mkdir()
    for old in ("m.safetensors", "m.report.json"):
        (tmp_path / old).write_bytes(b"old")
    (tmp_path / "moment").write_text(f"{moment} {getattr(signal, name).value}")
    found = process(PUBLISHES, "merge", "clients", "-o", "m.safetensors", "--force", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (code, "")
    done = moment == "swap"  # the first of two renames is made: the second follows
    said = "results are in place" if done else "nothing written"
    assert found.stderr == f"clair: interrupted, {said}\n"
    assert (tmp_path / "m.report.json").read_bytes() == (b"new" if done else b"old")
    assert (tmp_path / "m.safetensors").read_bytes()[:3] == (b"new" if done else b"old")
    assert sorted(os.listdir(tmp_path)) == ["clients", "m.report.json", "m.safetensors", "moment"]


UNSYNCED = (
    FAKE
    + """
import os
def run_merge(settings):
    from clair_cli.output import publish
    def fails(folder): raise OSError(5, "Input/output error")
    publish._sync_folder = fails
    publish.publish([publish.Output(settings.output, b"adapter")])
    return SimpleNamespace(report=fake_report(), report_path=None)
"""
)


def test_a_folder_that_cant_be_synced_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    found = process(UNSYNCED, "merge", "clients", "-o", "m.safetensors", "-q", cwd=tmp_path)
    assert found.returncode == 0
    note, _ = found.stderr.splitlines()
    assert note == (
        f"note: folder '{tmp_path.as_posix()}' could not be synced: Input/output error; "
        "results are in place"
    )


def test_an_ascii_locale_shows_escapes(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    found = process(FAKE, "inspect", "clients", cwd=tmp_path, env=env)
    assert (found.returncode, found.stderr) == (3, "")
    assert "caf\\xe9\\xff\\x1b[31m" in found.stdout


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(
    ("env", "ansi"),
    [
        ({}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"--color": "never"}, False),
        ({"--color": "always", "NO_COLOR": "1"}, True),
    ],
    ids=["colour", "NO_COLOR", "dumb", "never", "always"],
)
def test_on_a_terminal(tmp_path: Path, env: dict[str, str], ansi: bool) -> None:
    (tmp_path / "clients").mkdir()
    env = {"TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **env}
    args = ["merge", "clients", "-o", "out", "--color", env.pop("--color", "auto")]
    code, text = on_terminal(FAKE, *args, cwd=tmp_path, env=env)
    assert code == 0
    assert "\u2500\u2500\u2500" in text
    assert ("\x1b" in text) == ansi
    assert "3 of 12 clients contaminated: amber, mallory, zoe" in text


LONG_NAME = "hospital-of-the-w7"
SHOWING = f"""
from dataclasses import replace
from types import SimpleNamespace
from tests.fake_report import fake_report, renamed
from clair_cli.remark import warning
def run_inspect(settings):
    report = renamed(fake_report(command="inspect"), {{"amber": {LONG_NAME!r}}})
    report = replace(report, warnings=(warning("x", "a word " * 50),))
    return SimpleNamespace(report=report)
def run_merge(settings):
    settings.progress("reading", 1, 3)
    return SimpleNamespace(report=run_inspect(settings).report, report_path=None)
"""


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(
    ("stream", "columns", "env", "width"),
    [
        *(("stderr", n, {}, min(n, 120)) for n in (40, 60, 80, 120, 200)),
        *(("stdout", n, {}, min(n, 120)) for n in (40, 200)),
        ("stderr", 80, {"COLUMNS": "60"}, 60),
        ("stdout", 60, {"COLUMNS": "0"}, 60),
        ("stderr", 60, {"COLUMNS": "wide"}, 60),
        ("stdout", 0, {}, 80),
    ],
)
def test_lines_are_as_wide_as_the_terminal(
    tmp_path: Path, stream: str, columns: int, env: dict[str, str], width: int
) -> None:
    (tmp_path / "clients").mkdir()
    args = ("inspect", "clients") if stream == "stdout" else ("merge", "clients", "-o", "out")
    env = {"TERM": "dumb", "PYTHONIOENCODING": "utf-8", "COLUMNS": "", **env}
    _, text = on_terminal(SHOWING, *args, cwd=tmp_path, env=env, columns=columns, stream=stream)
    lines = text.splitlines()
    assert width - 15 <= max(map(len, lines)) <= width
    assert any(line.startswith(f"{LONG_NAME} ") for line in lines)
    words = " ".join(text.split())
    assert "1 suspicious, 1 duplicate, 1 rejected" in words  # the end of the last sentence


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(("columns", "width"), [(60, 58), (200, 78)])
def test_help_is_no_wider_than_the_terminal(tmp_path: Path, columns: int, width: int) -> None:
    env = {"TERM": "dumb", "COLUMNS": ""}
    code, text = on_terminal(
        "", "merge", "--help", cwd=tmp_path, env=env, columns=columns, stream="stdout"
    )
    assert code == 0
    assert width - 5 <= max(map(len, text.splitlines())) <= width


def on_terminal(
    workflow: str,
    *args: str,
    cwd: Path,
    env: dict[str, str],
    columns: int = 0,
    stream: str = "stderr",
) -> tuple[int, str]:
    """Exit code, and what a pseudo-terminal gets as `stream`; the other one stays empty."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(
        theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
    )
    child = start(workflow, *args, cwd=cwd, env=env, **{stream: theirs})
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert "".join(filter(None, child.communicate(timeout=20))) == ""
    return child.returncode, seen.decode()


def arguments(workflow: str, *args: str, after: str = "") -> list[str]:
    """A Python that runs `clair ARGS` with `workflow` as the source of the workflow."""
    source = (
        "import sys, types, importlib.abc, importlib.util\n"
        "class Loader(importlib.abc.Loader, importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('clair_cli.api', 'clair_cli.verification.verify'):\n"
        "            return importlib.util.spec_from_loader(name, self)\n"
        "    def create_module(self, spec): return None\n"
        f"    def exec_module(self, module): exec({workflow!r}, vars(module))\n"
        "sys.meta_path.insert(0, Loader())\n"
        f"sys.argv = ['clair', *{args!r}]\n"
        f"from clair_cli.cli.app import {'main' if after else 'console'} as run\n"
        "try:\n    run()\n"
        f"finally:\n    pass\n{_indented(after)}\n"
    )
    return [sys.executable, "-c", source]


def closed(command: list[str], which: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command by a shell that closes streams."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {which}', "sh", *command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
    )


def _indented(source: str) -> str:
    return "".join(f"    {line}\n" for line in source.splitlines())


def environment(**changes: str) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    return {
        **keep,
        "PYTHONPATH": os.pathsep.join([NO_NETWORK, str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **changes,
    }


def start(
    workflow: str, *args: str, cwd: Path, env: dict[str, str] | None = None, **streams: Any
) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(
        arguments(workflow, *args), cwd=cwd, env=environment(**(env or {})), text=True, **streams
    )


def process(
    workflow: str,
    *args: str,
    cwd: Path,
    after: str = "",
    env: dict[str, str] | None = None,
    stdout: Any = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(workflow, *args, after=after),
        cwd=cwd,
        env=environment(**(env or {})),
        text=True,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )
