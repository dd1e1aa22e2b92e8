"""The command line: exit code, stdout, stderr and files; help that does not wait for torch."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import jsonschema
import pytest
import typer.testing

import clair_cli
from clair_cli import api
from clair_cli.adapters.names.parts import FORMATS
from clair_cli.cli import app as cli
from clair_cli.errors import InputRefused, OutputError, RejectedClient, UsageError
from clair_cli.formats.limits import Limits
from clair_cli.pipeline_options import ReportFile
from clair_cli.report.schema import report_schema
from clair_cli.settings import OPTIONS, Settings, TensorNames, make_settings, options_of
from clair_cli.workflow.outputs import check_outputs
from tests.fake_report import fake_report, undetermined

COMMANDS = ("merge", "inspect", "refine", "verify", "convert")
# Of a report that is there: no functions of these names.
SHOWING = ("explain", "report", "plot", "diff")


def run(*args: object) -> Any:
    return typer.testing.CliRunner().invoke(
        cli.app, [str(arg) for arg in args], catch_exceptions=False, prog_name="clair"
    )


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of clients, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients").mkdir()
    return Path("clients")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Replaces the work of `merge`, `inspect` and `refine`; what it was asked to do."""
    made: list[Settings] = []

    def run_command(settings: Settings) -> Any:
        check_outputs(settings)
        made.append(settings)
        path = "merged.report.json" if settings.command == "merge" else None
        return SimpleNamespace(report=fake_report(command=settings.command), report_path=path)

    use_workflow(
        monkeypatch, run_merge=run_command, run_inspect=run_command, run_refine=run_command
    )
    return made


def use_workflow(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    module = ModuleType("clair_cli.api")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "clair_cli.api", module)
    monkeypatch.setattr(clair_cli, "api", module, raising=False)


def options(settings: Settings) -> dict[str, Any]:
    """The options alone."""
    return {name: value for name, value in vars(settings).items() if name in OPTIONS}


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


# What the commands hand on


def test_merge_with_defaults(clients: Path, calls: list[Settings]) -> None:
    result = run("merge", clients, "-o", "merged.safetensors")
    assert (result.exit_code, result.stdout) == (0, "")
    (settings,) = calls
    assert settings.command == "merge"
    assert (settings.clients, settings.output) == (Path("clients"), Path("merged.safetensors"))
    assert options(settings) == {
        "report": (),
        "rank": "auto",
        "error_target": 0.1,
        "keep_alpha": False,
        "dtype": "auto",
        "tensor_names": "auto",
        "weights": None,
        "max_weight": None,
        "previous": None,
        "initial": None,
        "fresh": False,
        "exclude": (),
        "same_base": False,
        "checkpoint": None,
        "min_clients": 3,
        "trust": (),
        "allow": (),
        "verdicts": None,
        "earlier": None,
        "trust_adapter": None,
        "heads": "average",
        "allow_undetermined": False,
        "device": "auto",
        "fail_on": ("never",),
        "minority": "shared",
        "base_model": None,
        "force": False,
        "modules": "common",
        "assume_alpha": None,
        "limit": Limits(),
        "noise": None,
        "strict": False,
        "engine": "local",
        "threads": None,
    }
    last = result.stderr.splitlines()[-1]
    assert last.startswith("3 of 12 clients contaminated: amber, mallory, zoe; ")
    assert last.endswith("(rank 16, error 0.071); report in merged.report.json")
    assert os.listdir() == ["clients"]  # all writing is the workflow's


def test_merge_with_every_option(clients: Path, calls: list[Settings]) -> None:
    Path("w.csv").touch()
    Path("before.safetensors").touch()
    Path("mine").mkdir()
    Path("rounds").mkdir()
    given = (
        f"--trust c --trust d=sha256:{32 * 'aB'} --trust-adapter mine "
        "--report r.json --rank 16 --error-target 0.2 --keep-alpha --dtype bfloat16 "
        "--tensor-names kohya "
        "--weights w.csv --max-weight 0.4 "
        "--previous before.safetensors --earlier rounds --exclude a --exclude b --min-clients 5 "
        "--checkpoint 300 --same-base --base-model org/base "
        "--allow-undetermined --device cpu --fail-on suspicious --force -q "
        "--threads 2 --engine ray=10.0.0.1:6379 --timings --modules same --assume-alpha 32 "
        "--limit clients=20 --limit file=1G --strict --minority merge --heads drop"
    )
    result = run("merge", clients, "-o", "out", *given.split())
    assert (result.exit_code, result.stdout) == (0, "")
    where, *stages, last = result.stderr.splitlines()  # -q
    assert where == "where the time went:"
    assert stages[-2].startswith("  memory: ") and "clients contaminated" in last
    assert stages[-1] == "  computed on a Ray cluster, its CPUs"
    assert options(calls[0]) == {
        "report": (ReportFile("json", Path("r.json")),),
        "rank": 16,
        "error_target": 0.2,
        "keep_alpha": True,
        "dtype": "bfloat16",
        "tensor_names": "kohya",
        "weights": Path("w.csv"),
        "max_weight": 0.4,
        "previous": Path("before.safetensors"),
        "initial": None,
        "fresh": False,
        "exclude": ("a", "b"),
        "same_base": True,
        "checkpoint": 300,
        "min_clients": 5,
        "trust": ("c", "d=sha256:" + 32 * "aB"),
        "allow": (),
        "verdicts": None,
        "earlier": Path("rounds"),
        "trust_adapter": Path("mine"),
        "allow_undetermined": True,
        "device": "cpu",
        "fail_on": ("suspicious",),
        "minority": "merge",
        "heads": "drop",
        "base_model": "org/base",
        "force": True,
        "modules": "same",
        "assume_alpha": 32.0,
        "limit": Limits(max_clients=20, max_file_bytes=2**30),
        "noise": None,
        "strict": True,
        "engine": "ray=10.0.0.1:6379",
        "threads": 2,
    }


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ("--output-format kohya", "tensor_names", "kohya"),
        ("--output-format=peft", "tensor_names", "peft"),
        ("--modules strict", "modules", "same"),
        ("--dtype bf16", "dtype", "bfloat16"),
        ("--dtype fp16", "dtype", "float16"),
        ("--dtype fp32", "dtype", "float32"),
        ("-f", "force", True),
    ],
)
def test_older_and_shorter_spellings(
    clients: Path, calls: list[Settings], args: str, name: str, value: object
) -> None:
    for command in ("merge", "refine"):
        assert run(command, clients, "-o", "out", *args.split()).exit_code == 0
        assert options(calls[-1])[name] == value


@pytest.mark.parametrize("command", [*COMMANDS, *SHOWING])
def test_help_has_no_older_spelling(command: str) -> None:
    text = run(command, "--help").stdout
    for older in ("--output-format", "--format", "strict|", "|strict", "bf16", "fp16", "fp32"):
        assert older not in text


def test_refine_hands_on_the_noise(clients: Path, calls: list[Settings]) -> None:
    result = run("refine", clients, "-o", "refined", "--noise", "0.01", "--assume-alpha", "rank")
    assert (result.exit_code, result.stdout) == (0, "")
    assert calls[0].command == "refine"
    assert (calls[0].clients, calls[0].output) == (Path("clients"), Path("refined"))
    assert (calls[0].noise, calls[0].assume_alpha) == (0.01, "rank")
    assert "refined 6 into refined" in result.stderr.splitlines()[-1]


def test_inspect_shows_a_table_on_stdout(clients: Path, calls: list[Settings]) -> None:
    result = run("inspect", clients)
    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.splitlines()[-1].startswith("3 of 12 clients contaminated: amber")
    assert (calls[0].clients, calls[0].output) == (Path("clients"), None)
    assert calls[0].fail_on == ("contaminated",)


def test_inspect_json_is_one_document_and_nothing_else(
    clients: Path, calls: list[Settings]
) -> None:
    result = run("inspect", clients, "--json", "-o", "r.json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(report_schema()).validate(document)
    assert document["exit_code"] == 3
    assert result.stderr.startswith("3 of 12 clients contaminated: ")
    assert result.stderr.endswith("; report in r.json\n")
    assert (calls[0].clients, calls[0].output) == (Path("clients"), Path("r.json"))


def test_inspect_takes_the_older_format(clients: Path, calls: list[Settings]) -> None:
    wanted = run("inspect", clients, "--json")
    found = run("inspect", clients, "--format", "json")
    assert (found.stdout, found.stderr) == (wanted.stdout, wanted.stderr)
    table = run("inspect", clients, "--format", "table")
    assert table.stdout == run("inspect", clients).stdout


@pytest.mark.parametrize(
    ("env", "args", "colour"),
    [
        ({}, "", False),
        ({"FORCE_COLOR": "1"}, "", True),
        ({"FORCE_COLOR": "0"}, "", False),
        ({"FORCE_COLOR": ""}, "", False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "", False),
        ({"FORCE_COLOR": "1"}, "--color never", False),
        ({"NO_COLOR": "1"}, "--color always", True),
        ({"TERM": "dumb"}, "--color always", True),
        ({}, "--color auto", False),
    ],
)
def test_colour_off_a_terminal(
    clients: Path,
    calls: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    args: str,
    colour: bool,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    plain = [run("inspect", clients).stdout, run("merge", clients, "-o", "out").stderr]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ran = run("inspect", clients, *args.split()), run("merge", clients, "-o", "out", *args.split())
    for found, wanted in zip([ran[0].stdout, ran[1].stderr], plain, strict=True):
        assert ("\x1b[1;31mcontaminated\x1b[0m" in found) == colour
        assert re.sub(r"\x1b\[[\d;]*m", "", found) == wanted


def test_quiet_inspect_says_the_verdict_only(clients: Path, calls: list[Settings]) -> None:
    found = run("inspect", clients, "-q")
    assert (found.exit_code, found.stderr) == (3, "")
    assert found.stdout.startswith("3 of 12 clients contaminated: ")
    assert found.stdout.count("\n") == 1
    found = run("inspect", clients, "-q", "-o", "-")
    assert json.loads(found.stdout)["exit_code"] == 3
    assert found.stderr.count("\n") == 1


def test_fresh_and_previous_are_a_wrong_call(clients: Path, calls: list[Settings]) -> None:
    Path("before.safetensors").touch()
    for command in ("merge", "inspect", "refine"):
        more = () if command == "inspect" else ("-o", "out")
        given = (command, clients, *more, "--fresh")
        assert run(*given).exit_code in (0, 3) and calls[-1].fresh is True
        result = run(*given, "--previous", "before.safetensors")
        assert result.exit_code == 2 and "fresh" in result.stderr and "previous" in result.stderr
    with pytest.raises(UsageError, match="previous"):
        make_settings("inspect", clients, None, {"fresh": True, "previous": "before.safetensors"})


TYPED = {
    "merge": api.MergeOptions,
    "inspect": api.InspectOptions,
    "refine": api.RefineOptions,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_python_functions_have_the_same_options(command: str) -> None:
    """Declared once in settings.py, and typed once in api.py."""
    theirs = inspect.signature(getattr(clair_cli, command)).parameters
    ours = inspect.signature(getattr(cli, command)).parameters
    own = {"quiet", "timings", "color", "json", "format_", "github", "config"}
    declared = options_of(command)
    flags = {name for name, option in declared.items() if option.on_command_line}
    assert ours.keys() - own == theirs.keys() - {"progress"} - (declared.keys() - flags)
    assert flags <= ours.keys()
    if command in TYPED:
        older = {option.older for option in declared.values()} - {""}
        assert TYPED[command].__annotations__.keys() == {*declared, *older, "progress"}
        for name, option in declared.items():
            assert theirs[name].default == option.default_and_help(command)[0]


def test_an_option_that_a_command_lacks_is_no_argument_of_its_function(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank'"):
        clair_cli.inspect(tmp_path, rank=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'noise'"):
        clair_cli.merge(tmp_path, noise=0.1)  # type: ignore[call-arg]


JUDGED_BY = (
    "clients output weights previous initial exclude min_clients fail_on modules"
    " assume_alpha limit strict minority fresh max_weight trust trust_adapter checkpoint same_base"
    " heads allow earlier"
)
WRITTEN_BY = "base_model rank error_target keep_alpha dtype tensor_names allow_undetermined"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("inspect", JUDGED_BY),
        ("merge", f"{JUDGED_BY} {WRITTEN_BY} verdicts"),
        ("refine", f"{JUDGED_BY} {WRITTEN_BY} noise"),
    ],
)
def test_the_report_holds_what_decides_the_result(command: str, names: str) -> None:
    """And not where the report goes, whether it replaces another, or what computed it."""
    given = {"limit": ["rank=9"], "exclude": ["b", "a"], "weights": {"c": 1.0}, "previous": "p/q"}
    shown = make_settings(command, "clients/", "out", given).shown()
    assert shown.keys() == set(names.split())
    assert (shown["clients"], shown["output"]) == ("clients", "out")
    assert (shown["limit"], shown["exclude"]) == ({"rank": 9}, ["a", "b"])
    assert (shown["weights"], shown["previous"]) == ("(in memory)", "p/q")
    assert json.loads(json.dumps(shown)) == shown


def test_all_tensor_name_formats_can_be_asked_for() -> None:
    assert get_args(TensorNames) == ("auto", *FORMATS)


def test_inspect_to_stdout_is_the_report_and_the_table_goes_to_stderr(
    clients: Path, calls: list[Settings]
) -> None:
    result = run("inspect", clients, "-o", "-")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["exit_code"] == 3
    assert result.stderr.splitlines()[-1].startswith("3 of 12 clients contaminated: ")
    assert len(result.stderr.splitlines()) > 5
    assert (calls[0].clients, calls[0].output) == (Path("clients"), None)
    assert os.listdir() == ["clients"]


def test_refine_to_stdout_is_refused(clients: Path, calls: list[Settings]) -> None:
    result = run("refine", clients, "-o", "-")
    assert (result.exit_code, result.stdout, calls) == (2, "", [])
    assert "-o - : standard output takes one file" in result.stderr


def test_a_killed_runs_leftovers_are_mentioned(clients: Path, calls: list[Settings]) -> None:
    Path(".merged.safetensors.clair-99999999-0123abcd.tmp").touch()
    Path(".merged.report.json.clair-99999999-0123abcd.tmp").touch()
    result = run("merge", clients, "-o", "merged.safetensors")
    assert result.stderr.splitlines()[:2] == [
        f"note: .merged.{kind}.clair-99999999-0123abcd.tmp was left by a run that was killed;"
        " it may be deleted"
        for kind in ("safetensors", "report.json")
    ]
    assert len(os.listdir()) == 3
    assert "note: ." not in run("merge", clients, "-o", "merged.safetensors", "-q").stderr


# Exit codes


@pytest.mark.parametrize("code", [0, 3, 4, 5])
def test_the_report_decides_the_code(
    clients: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    report = replace(fake_report(), exit_code=code)
    use_workflow(
        monkeypatch, run_merge=lambda *a, **k: SimpleNamespace(report=report, report_path=None)
    )
    assert run("merge", clients, "-o", "out").exit_code == code


def test_undetermined_says_what_to_do(clients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_workflow(
        monkeypatch,
        run_merge=lambda *a, **k: SimpleNamespace(report=undetermined(), report_path=None),
    )
    result = run("merge", clients, "-o", "out")
    assert result.exit_code == 5
    assert "What to do: collect more clients" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("undetermined: 2 clients")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("bad\nvalue", hint="try x"), 2, "clair: bad\\x0avalue\n  fix       try x\n"),
        (InputRefused("no usable client"), 4, "clair: no usable client\n"),
        (OutputError("disk full"), 6, "clair: disk full\n"),
        (
            RejectedClient("r is 2", path="c/a.safetensors", found="2", expected="4", hint="fix r"),
            4,
            "clair: r is 2\n  found     2\n  expected  4\n"
            "  file      c/a.safetensors\n  fix       fix r\n",
        ),
        (KeyboardInterrupt(), 130, "clair: interrupted, nothing written\n"),
        (MemoryError(), 1, "clair: out of memory\n"),
        (RuntimeError("b\x1b[2Jug"), 1, "clair: internal error: RuntimeError: b\\x1b[2Jug\n"),
        (ModuleNotFoundError("no torch", name="torch"), 1, "  fix       pip install torch\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors(
    clients: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    monkeypatch.delenv("CLAIR_DEBUG", raising=False)
    use_workflow(monkeypatch, run_merge=raising(error))
    result = run("merge", clients, "-o", "out")
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert ("CLAIR_DEBUG=1" in result.stderr) == (code == 1)
    assert os.listdir() == ["clients"]


def test_a_traceback_on_request(clients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIR_DEBUG", "1")
    use_workflow(monkeypatch, run_merge=raising(RuntimeError("bug")))
    result = run("merge", clients, "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith("clair: internal error: RuntimeError: bug\n")


# Usage


def test_a_folder_that_is_not_there(clients: Path, calls: list[Settings]) -> None:
    result = run("inspect", "client")
    assert (result.exit_code, result.stdout, calls) == (2, "", [])
    assert result.stderr == (
        "clair: CLIENTS 'client' does not exist\n  fix       did you mean 'clients'?\n"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a.safetensors", "-o", "out"], "is a file, not a folder"),
        (["clients", "-o", "out", "--weights", "w.csv"], "--weights 'w.csv' does not exist"),
        (["clients", "-o", "out", "--previous", "p"], "--previous 'p' does not exist"),
        (["clients", "-o", "x.safetensors", "--report", "./x.safetensors"], "-o and --report"),
        (["clients", "-o", "-", "--report", "-"], "-o - and --report - : standard output"),
        (["clients", "-o", "out", "--report", "-", "--report", "markdown=-"], "takes one"),
        (["clients", "-o", "out", "--report", "junti=j.xml"], "did you mean junit?"),
        (["clients", "-o", "out", "--report", "junit="], "'--report': the path is empty"),
        (["clients", "-o", "out", "--report", "a", "--report", "json=b"], "two files for json"),
        (["clients", "-o", "out", "--report", "junit=out"], "-o and --report junit= name"),
        (["clients", "-o", "out", "--report", "junit=out.report.json"], "the JSON report and"),
        (["clients", "-o", "out", "--report", "junit=x", "--report", "sarif=./x"], "name the same"),
        (["clients", "-o", "out", "--report", "junit=clients/x"], "lies inside the input"),
        (["clients", "-o", "out", "--report", "junit=nowhere/x"], "does not exist"),
        (["clients", "-o", ""], "'-o' / '--output': the path is empty"),
        (["clients", "-o", "out", "--report", ""], "'--report': the path is empty"),
        (["", "-o", "out"], "'CLIENTS': the path is empty"),
        (["clients", "-o", "out", "--report", "out/r.json"], "one lies inside the other"),
        (["clients", "-o", "M.SAFETENSORS", "--report", "m.safetensors"], "-o and --report"),
        (["clients", "-o", "clients/merged.safetensors"], "clients"),
        (["clients", "-o", "clients"], "clients"),
        (["clients", "-o", "nowhere/merged.safetensors"], "nowhere"),
        (["clients"], "-o"),
        (["clients", "-o", "out", "--rank", "0"], "--rank"),
        (["clients", "-o", "out", "--rank", "best"], "--rank"),
        (["clients", "-o", "out", "--error-target", "nan"], "--error-target"),
        (["clients", "-o", "out", "--error-target", "1"], "--error-target"),
        (["clients", "-o", "out", "--assume-alpha", "inf"], "--assume-alpha"),
        (["clients", "-o", "out", "--assume-alpha", "-1"], "--assume-alpha"),
        (["clients", "-o", "out", "--min-clients", "0"], "--min-clients"),
        (["clients", "-o", "out", "--fail-on", "benign"], "--fail-on"),
        (["clients", "-o", "out", "--dtype", "int8"], "--dtype"),
        (["clients", "-o", "out", "--rnak", "8"], "--rank"),
        (["clients", "-o", "out", "--limit", "clients"], "--limit"),
        (["clients", "-o", "out", "--limit", "modules=3"], "--limit"),
        (["clients", "-o", "out", "--limit", "rank=2K"], "--limit"),
        (["clients", "-o", "out", "--limit", "file=0"], "--limit"),
        ([], "CLIENTS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(clients: Path, calls: list[Settings], args: list[str], words: str) -> None:
    Path("a.safetensors").touch()
    before = sorted(os.listdir())
    result = run("merge", *args)
    assert (result.exit_code, result.stdout, calls) == (2, "", [])
    assert words in result.stderr
    assert sorted(os.listdir()) == before


def test_an_output_that_exists(clients: Path, calls: list[Settings]) -> None:
    Path("m.safetensors").write_text("old")
    result = run("merge", clients, "-o", "m.safetensors")
    assert (result.exit_code, result.stdout, calls) == (6, "", [])
    assert "--force" in result.stderr
    assert Path("m.safetensors").read_text() == "old"
    assert run("merge", clients, "-o", "m.safetensors", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("command", "name", "meant"),
    [
        *(
            ("merge", f"out{suffix}", "out.safetensors")
            for suffix in (".safetensor", ".saftensors", ".SafeTensor", ".bin", ".pt", ".pth",
                           ".ckpt", ".gguf", ".json", ".onnx", ".npz", ".BIN")
        ),
        ("merge", "v1.2.bin", "v1.2.safetensors"),
        ("refine", "x.safetensors", "x"),
        ("refine", "x.bin", "x"),
    ],
)  # fmt: skip
def test_a_folder_is_not_called_like_a_file(
    clients: Path, calls: list[Settings], command: str, name: str, meant: str
) -> None:
    result = run(command, clients, "-o", name)
    assert (result.exit_code, calls) == (2, [])
    assert f"did you mean '{meant}'?" in result.stderr
    with pytest.raises(UsageError, match="ends like a file's"):
        check_outputs(make_settings(command, clients, name, {}))


@pytest.mark.parametrize("name", ["out", "v1.2", "out.tensor", "out.d", ".bin", "x.safe"])
def test_a_folder_of_any_other_name(clients: Path, calls: list[Settings], name: str) -> None:
    assert run("merge", clients, "-o", name).exit_code == 0


def test_a_call_of_nothing_shows_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Usage: clair" in result.output


SEVERAL = "CLIENTS is one folder, and {} paths are given: {}"


@pytest.mark.parametrize(
    ("args", "words", "fix"),
    [
        ("bogus", "no such command 'bogus'", "see clair --help"),
        ("--bogus", "no such option: --bogus", "see clair --help"),
        ("merge", "missing argument 'CLIENTS'", "see clair merge --help"),
        ("merge clients", "missing option '-o' / '--output'", "see clair merge --help"),
        ("merge clients -o", "option '-o' requires an argument", "see clair --help"),
        ("merge clients --rnak 8", "no such option: --rnak", "did you mean --rank?"),
        ("merge clients -o out -rank 8", "no such option: -rank", "did you mean --rank?"),
        ("merge clients -o out -rank=8", "no such option: -rank", "did you mean --rank?"),
        ("merge clients -o out -force", "no such option: -force", "did you mean --force?"),
        (
            "merge clients -o out --dtype int8",
            "invalid value for '--dtype': 'int8' is not one of 'auto', 'float32', 'bfloat16',"
            " 'float16'",
            "see clair merge --help",
        ),
        (
            "merge clients/a clients/b",
            SEVERAL.format(2, "'clients/a', 'clients/b'"),
            "give the folder that holds them: 'clients'",
        ),
        (
            "inspect clients/a other/b -q",
            SEVERAL.format(2, "'clients/a', 'other/b'"),
            "give the folder that holds them",
        ),
        (
            "verify out clients/a clients/b",
            SEVERAL.format(2, "'clients/a', 'clients/b'"),
            "give the folder that holds them: 'clients'",
        ),
    ],
)
def test_usage_errors_have_one_style(
    clients: Path, calls: list[Settings], args: str, words: str, fix: str
) -> None:
    result = run(*args.split())
    assert (result.exit_code, result.stdout, calls) == (2, "", [])
    assert result.stderr == f"clair: {words}\n  fix       {fix}\n"


def test_help_counts_before_slips() -> None:
    assert run("merge", "a", "b", "--help").stdout == run("merge", "-h").stdout


@pytest.mark.parametrize("args", [("--exclude", "-rank"), ("--exclude=-rank",)])
def test_a_value_may_look_like_a_slip(
    clients: Path, calls: list[Settings], args: tuple[str]
) -> None:
    assert run("merge", clients, "-o", "out", *args).exit_code == 0
    assert calls[0].exclude == ("-rank",)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str) -> None:
    result = run(flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"clair {clair_cli.__version__}\n"


@pytest.mark.parametrize(
    "args", [["-h"], *([command, "--help"] for command in (*COMMANDS, *SHOWING))]
)
def test_help_fits_80_columns(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    _, rest = result.stdout.split("\n", 1)  # "[ARGS]..." is no sentence cut short
    assert "..." not in rest
