"""What helps: where clients are rejected for one reason, and where CLIENTS is no folder of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.hints import notes_on_clients, way_out
from clair_cli.cohort.model import Rejection
from clair_cli.remark import note, warning
from tests import cohorts
from tests.cohorts import texts
from tests.hostile import client, load_cohort

DORA = Rejection("x", "", "m", found="DoRA", expected="plain LoRA")
NO_CONFIG = Rejection("x", "", "m", found="no config", expected="one", hint="add it")
LARGE = Rejection("x", "", "m", found="9 bytes", expected="4", hint="raise it")
BROKEN = Rejection("x", "", "m", found="0 bytes")


@pytest.mark.parametrize(
    ("rejected", "said"),
    [
        ([DORA], "mend the rejected clients"),
        ([DORA, BROKEN], "mend the rejected clients"),
        ([DORA, DORA, BROKEN, NO_CONFIG], "mend the rejected clients"),
        ([Rejection("x", "", "m")] * 3, "mend the rejected clients"),
        (
            [DORA] * 10,
            "all 10 were rejected for one reason (found DoRA, expected plain LoRA): mend it in "
            "all of them",
        ),
        (
            [NO_CONFIG, NO_CONFIG, BROKEN],
            "2 of 3 were rejected for one reason (found no config, expected one): add it",
        ),
        (
            [LARGE, replace(LARGE, name="b", found="7 bytes"), BROKEN],
            "2 of 3 were rejected for one reason ('x': found 9 bytes, expected 4): raise it",
        ),
    ],
)
def test_one_reason_is_told_with_its_remedy(rejected: list[Rejection], said: str) -> None:
    assert way_out(rejected) == said


def test_ten_clients_without_a_config(tmp_path: Path) -> None:
    for name, made in cohorts.honest(4).items():
        cohorts.save_peft(tmp_path / name, made)
        (tmp_path / name / "adapter_config.json").unlink()
    ran = cohorts.clair("inspect", tmp_path)
    assert ran.exit_code == 4
    (said,) = [line for line in ran.stdout.splitlines() if "What to do: " in line]
    assert "all 4 were rejected for one reason (found no config" in said
    assert "--assume-alpha N|rank" in said and "--min-clients" not in said
    assert "leave them out (--exclude)" not in ran.stdout
    ran = cohorts.clair("inspect", tmp_path, "--strict")
    assert "--assume-alpha N|rank, or run without --strict" in ran.stdout


def test_groups_are_spoken_of_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what is printed has the path as given
    for k, (name, made) in enumerate(cohorts.honest(3).items()):
        own = (
            {f"{name}.{m}": a for m, a in made.A.items()},
            {f"{name}.{m}": b for m, b in made.B.items()},
        )
        cohorts.save_peft(tmp_path / "modules" / name, replace(made, A=own[0], B=own[1]))
        fields = {**made.config, "base_model_name_or_path": f"org/{k}"}
        cohorts.save_peft(tmp_path / "bases" / name, replace(made, config=fields))
    said = cohorts.clair("inspect", "modules").stdout
    assert "group" not in said and "give clients of one base model" in said
    assert "'c0' has 'c0.model.layers.0.attn.q_proj'" in said
    said = cohorts.clair("inspect", tmp_path / "bases").stdout
    assert "merge one of these groups" in said and "1 client has 'org/0' ('c0')" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("clients.zip", "archives are not unpacked"),
        ("one.safetensors", "put the clients' adapters into one folder"),
        ("https://huggingface.co/org/name", "a web server does not list its files"),
        ("org/name", "if that is a name on a hub: download"),
        ("nothing", ""),
        ("client/c0", ""),
    ],
)
def test_what_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clients.zip", "one.safetensors"):
        Path(name).touch()
    Path("client").mkdir()
    ran = cohorts.clair("inspect", given)
    assert ran.exit_code == 2 and said in ran.stderr
    assert bool(said) == ("fix" in ran.stderr)


@pytest.fixture
def adapter(folder: Path) -> Adapter:
    return load_cohort(folder).adapters[0]


@pytest.mark.parametrize("count", [3, 4])
def test_many_notes_of_one_kind_are_one(adapter: Adapter, count: int) -> None:
    clients = [
        replace(adapter, name=f"c{k}", notes=(note("x", f"read {k}"), warning("y", "same")))
        for k in range(count)
    ]
    said = texts(notes_on_clients(clients))
    assert f"clients {', '.join(repr(c.name) for c in clients)}: same" in said
    assert len(said) == (4 if count == 3 else 2)
    if count == 4:
        assert "4 clients: 'c0': read 0, 'c1': read 1, 'c2': read 2, 'c3': read 3" in said


@pytest.mark.parametrize("count", [20, 21])
def test_kinds_of_notes_are_cut(adapter: Adapter, count: int) -> None:
    many = replace(adapter, notes=tuple(note(f"code{k}", "x") for k in range(count)))
    more = ("and 1 more notes on clients",)
    assert texts(notes_on_clients([many]))[20:] == (() if count == 20 else more)


def test_the_folder_of_one_adapter(folder: Path) -> None:
    client(folder, "bob")
    said = " ".join(cohorts.clair("inspect", folder / "bob").stdout.split())
    assert "give the folder that holds their folders" in said
