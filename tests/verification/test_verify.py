"""`clair verify`: the same is said to be the same, and every change is seen and named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli import InputRefused, UsageError
from tests import cohorts
from tests.cohorts import clair

CLIENTS = {**cohorts.honest(4), "odd": cohorts.unrelated()}
FORMS = {"file": ("merge", "m.safetensors"), "folder": ("merge", "m"), "refined": ("refine", "m")}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every form of output, made once."""
    folder = tmp_path_factory.mktemp("master")
    clients = cohorts.save(folder / "clients", CLIENTS, "mixed")
    for form, (command, name) in FORMS.items():
        (folder / form).mkdir()
        getattr(clair_cli, command)(clients, folder / form / name)
    return folder


@pytest.fixture
def work(tmp_path: Path, master: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER", str(master))
    shutil.copytree(master / "clients", "clients")
    return tmp_path


def made(form: str, **options: Any) -> Path:
    """An output in the working directory: a copy, or with options a new one."""
    command, name = FORMS[form]
    if options:
        assert getattr(clair_cli, command)("clients", name, **options).report.exit_code == 0
    else:
        shutil.copytree(Path(os.environ["MASTER"]) / form, ".", dirs_exist_ok=True)
    return Path(name)


def weights_of(output: Path) -> Path:
    if output.is_file():
        return output
    inside = output / "c1" if (output / "c1").exists() else output
    return inside / "adapter_model.safetensors"


@pytest.mark.parametrize("form", FORMS)
def test_the_same_is_the_same(work: Path, form: str) -> None:
    output = made(form)
    before = cohorts.snapshot(work)
    for args in ((output,), (output, "clients"), (output, "clients", "-q")):
        result = clair("verify", *args)
        assert (result.exit_code, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) == 1
        assert result.stdout.startswith(f"{output}: as m")
        assert ("of 5 clients again" in result.stdout) == (len(args) > 1)
    found = clair_cli.verify(output, "clients")
    assert (found.exit_code, found.differences, found.notes) == (0, (), ())
    assert cohorts.snapshot(work) == before, "verify writes nothing"


def test_renamed_folder_of_clients_and_other_places(work: Path) -> None:
    output = made("file", report="r.json")
    Path("clients").rename("elsewhere")
    output.rename("copy.safetensors")
    found = clair_cli.verify("copy.safetensors", "elsewhere", report="r.json")
    assert found.differences == ()
    with pytest.raises(UsageError, match=r"no report 'copy\.report\.json'"):
        clair_cli.verify("copy.safetensors")


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("file", {"rank": 4, "dtype": "float16", "keep_alpha": True}),
        ("folder", {"rank": "full", "exclude": ["c3"], "min_clients": 4, "modules": "same"}),
        ("folder", {"error_target": 0.3, "fail_on": "never"}),
        ("refined", {"noise": 0.01, "rank": "same"}),
    ],
    ids=str,
)
def test_the_recorded_options_are_used(work: Path, form: str, options: dict[str, Any]) -> None:
    output = made(form, **options)
    assert clair_cli.verify(output, "clients").differences == ()
    path = output / "report.json" if output.is_dir() else Path("m.report.json")
    report = json.loads(path.read_text())
    report["options"]["rank"] = 2
    path.write_text(json.dumps(report))
    found = clair_cli.verify(output, "clients").differences
    assert any("doing it again gives an adapter of sha256" in line for line in found)


def test_fields_that_came_later_are_no_differences(work: Path) -> None:
    """A report of an earlier version of this schema has fewer fields."""
    output = made("file")
    path = Path("m.report.json")
    report = json.loads(path.read_text())
    later = ("line", "line_width", "coordinates", "spectrum")
    assert all(report["cohort"].pop(name, None) is not None for name in later)
    for client in report["clients"]:
        assert client.pop("heads") == {} and client.pop("judged")
        client.pop("review")
    assert report["merged"].pop("heads") == []
    path.write_text(json.dumps(report))
    assert clair("verify", output, "clients").exit_code == 0
    report["cohort"].pop("power")  # which every report has
    path.write_text(json.dumps(report))
    result = clair("verify", output, "clients")
    assert result.exit_code == 3 and "cohort.power" in result.output


def test_older_names_in_a_report_are_read(work: Path) -> None:
    output = made("file", modules="strict", output_format="peft", dtype="fp16")
    path = Path("m.report.json")
    report = json.loads(path.read_text())
    options = report["options"]
    assert (options["modules"], options["dtype"]) == ("same", "float16")
    assert (options["tensor_names"], "output_format" in options) == ("peft", False)
    options["modules"] = "strict"
    options["output_format"] = options.pop("tensor_names")
    path.write_text(json.dumps(report))
    assert clair_cli.verify(output, "clients").differences == ()
    with pytest.raises(UsageError, match="tensor_names is 'kohya', and output_format"):
        clair_cli.merge("clients", tensor_names="kohya", output_format="peft")


def test_weights_and_previous_are_given_again(work: Path) -> None:
    Path("w.json").write_text(json.dumps({n: 1.0 + k for k, n in enumerate(CLIENTS)}))
    before = cohorts.honest(1, seed=9)["c0"]
    cohorts.save_peft(Path("before"), before)
    shutil.rmtree("clients")
    cohorts.save(Path("clients"), cohorts.on_top(CLIENTS, before.deltas()))
    output = made("file", weights="w.json", previous="before")
    result = clair("verify", output, "clients")
    assert result.exit_code == 2
    assert "the report was made with --weights 'w.json'" in result.stderr
    again = ("verify", output, "clients", "--weights", "w.json")
    assert "--previous 'before'" in clair(*again).stderr
    assert clair(*again, "--previous", "before").exit_code == 0
    Path("w.json").write_text(json.dumps({n: 2.0 + k for k, n in enumerate(CLIENTS)}))
    assert clair(*again, "--previous", "before").exit_code == 3
    assert clair("verify", output, "--weights", "w.json").exit_code == 2
    Path("m.report.json").unlink()
    plain = made("folder")
    assert "was made without --weights" in clair("verify", plain, *again[2:]).stderr


# What differs


def flip_a_byte(output: Path) -> None:
    file = weights_of(output)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def cut_short(output: Path) -> None:
    file = weights_of(output)
    file.write_bytes(file.read_bytes()[:-7])


def swap_for_another(output: Path) -> None:
    client = cohorts.unrelated(5)
    text = json.dumps(client.fields)
    file = weights_of(output)
    file.write_bytes(cohorts.client_bytes(client, metadata={"lora_adapter_metadata": text}))
    if output.is_dir():
        (file.parent / "adapter_config.json").write_text(text)


def remove(output: Path) -> None:
    weights_of(output).unlink()


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_byte, "has sha256"),
    (cut_short, "is no adapter that can be read: "),
    (swap_for_another, "rank 6, the report says "),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("change", "words"), CHANGES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_changed_output_is_seen(
    work: Path, form: str, change: Callable[[Path], None], words: str
) -> None:
    output = made(form)
    change(output)
    result = clair("verify", output)
    assert (result.exit_code, result.stderr) == (3, "")
    assert "differs: '" + weights_of(output).as_posix() + "' has sha256" in result.stdout
    assert words in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"{output}: ") and "from" in last


@pytest.mark.parametrize("form", ["folder", "refined"])
def test_a_folder_is_looked_through(work: Path, form: str) -> None:
    output = made(form)
    inside = weights_of(output).parent
    config = inside / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"lora_alpha": ', '"lora_alpha": 1'))
    found = clair_cli.verify(output).differences
    assert any(f"{config.as_posix()!r} has sha256" in line for line in found)
    assert form == "refined" or any("has scale" in line for line in found)
    config.write_text(text)
    for extra in (inside / "adapter_model.bin", output / "mallory"):
        extra.write_bytes(b"x")
        (line,) = clair_cli.verify(output).differences
        assert line == f"{extra.as_posix()!r} is there, and the report does not name it"
        extra.unlink()
    (output / "README.md").write_text("a model card")
    assert clair_cli.verify(output).differences == ()
    report = (output / "report.json").read_bytes()
    Path("r.json").write_bytes(report)
    (output / "report.json").write_bytes(report + b"\n")
    assert clair_cli.verify(output, report="r.json").differences == (
        "'m/report.json' is not the report that was given",
    )
    (output / "report.json").unlink()
    remove(output)
    (line, *_) = clair_cli.verify(output, report="r.json").differences
    assert "can't be read: " in line and "No such file" in line


def test_other_weights_or_another_previous_adapter_are_named(work: Path) -> None:
    weights = {name: 1.0 + k for k, name in enumerate(CLIENTS)}
    Path("w.json").write_text(json.dumps(weights))
    before = cohorts.honest(1, seed=9)["c0"]
    cohorts.save_peft(Path("before"), before)
    cohorts.save_peft(Path("other"), cohorts.scaled(before, 1.01))
    shutil.rmtree("clients")
    cohorts.save(Path("clients"), cohorts.on_top(CLIENTS, before.deltas()))
    output = made("file", weights="w.json", previous="before")
    text = json.dumps(weights, separators=(",", ":"), sort_keys=True).encode()
    file = Path("before/adapter_model.safetensors").read_bytes()
    assert json.loads(Path("m.report.json").read_text())["inputs"] == {
        "previous": hashlib.sha256(file).hexdigest(),
        "weights": hashlib.sha256(text).hexdigest(),
    }
    again = ("verify", output, "clients", "--previous", "before", "--weights")
    Path("w.csv").write_text("".join(f"{name},{w}\n" for name, w in reversed(weights.items())))
    assert clair(*again, "w.csv").exit_code == 0  # the same weights
    Path("w.json").write_text(json.dumps({**weights, "c0": 1.01}))
    result = clair(*again, "w.json")
    assert result.exit_code == 3
    assert "differs: --weights has sha256" in result.stdout
    assert "--previous has" not in result.stdout
    result = clair("verify", output, "clients", "--previous", "other", "--weights", "w.csv")
    assert result.exit_code == 3
    assert "differs: --previous has sha256" in result.stdout


def test_the_weights_file_of_a_folder_stands_for_the_folder(work: Path) -> None:
    output = made("folder")
    assert clair_cli.verify(weights_of(output)).exit_code == 0
    flip_a_byte(output)
    assert clair_cli.verify(weights_of(output)).exit_code == 3


def test_a_link_to_the_output_is_followed(work: Path) -> None:
    output = made("file")
    Path("link.safetensors").symlink_to(output)
    assert clair_cli.verify("link.safetensors", report="m.report.json").differences == ()


@pytest.mark.parametrize("form", ["file", "refined"])
def test_changed_clients_are_seen(work: Path, form: str) -> None:
    output = made(form)
    names = {p.name.partition(".")[0] for p in Path("clients").iterdir()}
    assert names == set(CLIENTS)
    changed = {**CLIENTS, "c2": cohorts.honest(9, seed=3)["c2"], "new": cohorts.honest(8)["c7"]}
    del changed["c3"]
    cohorts.save(Path("other"), changed)
    result = clair("verify", output, "other")
    assert result.exit_code == 3
    for words in (
        "client 'c2' has sha256",
        "client 'c3' is in the report and not in CLIENTS",
        "client 'new' is in CLIENTS and not in the report",
        "so the numbers of the report differ too",
        "doing it again gives",
    ):
        assert f"differs: {words}" in result.stdout or words in result.stdout, words
    assert clair_cli.verify(output).differences == (), "the output itself is as it was"


def test_an_edited_report_is_seen(work: Path) -> None:
    output, path = made("file"), Path("m.report.json")
    text = path.read_text()
    report = json.loads(text)
    for client in report["clients"]:
        if client["name"] == "odd":
            client["verdict"] = "benign"
    path.write_text(json.dumps(report))
    assert clair_cli.verify(output).differences == ()
    assert clair_cli.verify(output, "clients").differences == (
        "client 'odd' has verdict contaminated, the report says benign",
    )
    report = json.loads(text)
    report["merged"]["norm"] *= 2
    report["version"] = "0.0.1"
    path.write_text(json.dumps(report))
    found = clair_cli.verify(output, "clients")
    assert [line.split(" is ")[0] for line in found.differences] == ["merged.norm"]
    assert found.notes == (f"the report is by clair '0.0.1', this is {clair_cli.__version__}",)
    report = json.loads(text)
    report["modules"][0]["shape"][0] += 1
    path.write_text(json.dumps(report))
    (line,) = clair_cli.verify(output).differences
    assert "has shape (" in line


def test_a_report_without_an_adapter_vouches_for_none(work: Path) -> None:
    output = made("file", report="first.json")
    two = cohorts.save(Path("two"), cohorts.honest(2))
    assert clair_cli.merge(two, "x.safetensors", report="r.json").report.exit_code == 5
    result = clair("verify", output, "--report", "r.json")
    assert result.exit_code == 3
    assert "differs: the report names no adapter, so nothing vouches" in result.stdout


# Wrong calls


def edited(**changes: Any) -> str:
    report = json.loads(Path("m.report.json").read_text())
    return json.dumps({**report, **changes})


BAD_REPORTS: dict[str, tuple[Callable[[], str], str]] = {
    "newer": (
        lambda: edited(schema="clair.report/3", version="9.1"),
        r"schema 'clair\.report/3'; clair .* reads clair\.report/2",
    ),
    "older": (
        lambda: edited(schema="clair.report/1"),
        r"schema 'clair\.report/1'; clair .* reads clair\.report/2",
    ),
    "another program's": (lambda: '{"schema": "trivy/1"}', "is no report of clair"),
    "no object": (lambda: "[1]", "is no report of clair"),
    "not JSON": (lambda: "{", "is damaged: it is not JSON"),
    "twice": (lambda: '{"schema": 1, "schema": 2}', "gives the key 'schema' twice"),
    "inspect": (lambda: edited(command="inspect"), "is of clair inspect"),
    "command": (lambda: edited(command="rm"), "unknown command 'rm'"),
    "clients": (lambda: edited(clients=3), "clients is 3"),
    "merged": (lambda: edited(merged={"sha256": "x"}), "is damaged"),
    "hash": (
        lambda: edited(merged={**json.loads(edited())["merged"], "sha256": "../x"}),
        "'../x' is no SHA-256",
    ),
    "folder": (
        lambda: edited(
            command="refine",
            refined={"clients": [{"name": "../up", "sha256": "0" * 64, "rank": 1,
                                  "config_sha256": None}]},
        ),
        "'../up' is no client's folder",
    ),
    "modules": (
        lambda: edited(modules=[{"name": "x", "written": None, "shape": "wide"}]),
        "a shape is 'wide'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_REPORTS)
def test_bad_reports_are_refused(work: Path, kind: str) -> None:
    make, words = BAD_REPORTS[kind]
    output = made("file")
    Path("bad.json").write_text(make())
    with pytest.raises(UsageError, match=words):
        clair_cli.verify(output, report="bad.json")
    result = clair("verify", output, "--report", "bad.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "bad.json" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("clair.report/1", "an older clair made it: run the merge or refinement again"),
        ("clair.report/3", "use clair '9.1', which wrote it"),
        ("clair.report/x", "use clair '9.1', which wrote it"),
    ],
)
def test_what_to_do_about_a_report_of_another_schema(work: Path, schema: str, words: str) -> None:
    output = made("file")
    Path("m.report.json").write_text(edited(schema=schema, version="9.1"))
    result = clair("verify", output)
    assert result.exit_code == 2 and schema in result.stderr and words in result.stderr


def test_a_refined_client_that_the_report_lacks(work: Path) -> None:
    output = made("refined")
    path = output / "report.json"
    report = json.loads(path.read_text())
    name = report["refined"]["clients"].pop(1)["name"]
    path.write_text(json.dumps(report))
    shutil.rmtree(output / name)
    found = clair_cli.verify(output, "clients").differences
    assert f"client '{name}': refined now, and not in the report" in found


@pytest.mark.parametrize("count", [3, 4])
def test_three_differences_of_modules_are_listed(work: Path, count: int) -> None:
    output = made("file")
    report = json.loads(Path("m.report.json").read_text())
    for module in report["modules"][:count]:
        module["shape"] = [1, 1]
    Path("m.report.json").write_text(json.dumps(report))
    found = clair_cli.verify(output).differences
    assert sum("the report says (1, 1)" in line for line in found) == 3
    rest = ["m.safetensors': 1 more differences in its modules"] if count > 3 else []
    assert [line.removeprefix("'") for line in found[3:]] == rest


@pytest.mark.parametrize("count", [5, 6])
def test_five_values_of_the_report_that_differ_are_listed(work: Path, count: int) -> None:
    output = made("file")
    report = json.loads(Path("m.report.json").read_text())
    for client in report["clients"]:
        client["weight"] = 0.5
    assert len(report["clients"]) == 5
    if count > 5:
        report["cohort"]["outcome_text"] = "fine"
    Path("m.report.json").write_text(json.dumps(report))
    found = clair_cli.verify(output, "clients").differences
    assert sum("weight is" in line or "outcome_text is" in line for line in found[:5]) == 5
    assert found[5:] == (("1 more values of the report differ",) if count > 5 else ())


def test_unknown_and_bad_options_in_a_report(work: Path) -> None:
    output = made("file")
    options = json.loads(Path("m.report.json").read_text())["options"]
    for changes, words in (
        ({"telepathy": True}, "the option 'telepathy', unknown to this"),
        ({"rank": "most"}, "options are damaged: rank is 'most'"),
        ({"min_clients": "all"}, "options are damaged: min_clients"),
    ):
        Path("bad.json").write_text(edited(options={**options, **changes}))
        with pytest.raises(UsageError, match=words):
            clair_cli.verify(output, "clients", report="bad.json")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent"], "OUT 'absent' does not exist"),
        (["m.safetensor"], "did you mean 'm.safetensors'?"),
        (["m.safetensors", "--report", "no.json"], "--report 'no.json' does not exist"),
        (["m.safetensors", "client"], "did you mean 'clients'?"),
        (["m.safetensors", "m.report.json"], "is a file, not a folder"),
        (["clients"], "no report 'clients/report.json'"),
        (["fifo", "--report", "m.report.json"], "is a FIFO"),
        ([""], "the path is empty"),
        ([], "OUT"),
    ],
    ids=str,
)
def test_wrong_calls(work: Path, args: list[str], words: str) -> None:
    made("file")
    os.mkfifo("fifo")
    result = clair("verify", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_an_output_that_cant_be_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("file")
    real = open

    def closed(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path) == "m.safetensors":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(InputRefused, match="can't be read: Permission denied"):
        clair_cli.verify("m.safetensors")
    assert clair("verify", "m.safetensors").exit_code == 4


def test_names_are_escaped(work: Path) -> None:
    output = made("file")
    cohorts.save(Path("clients"), {"evil\x1b[31m": cohorts.honest(8)["c7"]})
    result = clair("verify", output, "clients")
    assert result.exit_code == 3
    assert "\x1b" not in result.stdout and "evil" in result.stdout


def test_adapters_in_memory_can_be_verified(work: Path) -> None:
    clients = {}
    for name, client in CLIENTS.items():
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        clients[name] = (state, client.fields)
    weights = {name: 1.0 + k for k, name in enumerate(CLIENTS)}
    clair_cli.merge(clients, "m.safetensors", weights=weights)
    assert clair_cli.verify("m.safetensors", clients, weights=weights).differences == ()
    with pytest.raises(UsageError, match=r"--weights '\(in memory\)'"):
        clair_cli.verify("m.safetensors", clients)


def test_the_number_of_threads_changes_nothing(work: Path) -> None:
    clair_cli.merge("clients", "m.safetensors", threads=2)
    assert clair_cli.verify("m.safetensors", "clients", threads=1).differences == ()
    assert clair("verify", "m.safetensors", "clients", "--threads", 3).exit_code == 0
