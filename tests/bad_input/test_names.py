"""Names as weapons: a client called like another's config, names that are not Unicode, and lists
of names so long that nobody reads what stands beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.adapters.write import safetensors_bytes
from clair_cli.cohort.client_names import similar_names
from clair_cli.cohort.comparable import check_comparable
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.weights import read_weights
from clair_cli.errors import MAX_MESSAGE, InputRefused, RejectedClient, UsageError
from clair_cli.text import MAX_NOTES
from tests import cohorts
from tests.bad_input.clients import CONFIG, WEIGHTS
from tests.bad_input.running import OUT, merge
from tests.cohorts import texts
from tests.hostile import client, config, load_cohort, only_rejection, pair

CLIENTS = Path("clients")
BAD = b"caf\xe9\xff"
NAME, SPELT = os.fsdecode(BAD), "caf\\xe9\\xff"


# A folder is never a config


@pytest.mark.parametrize("layout", ["header", "file"])
@pytest.mark.parametrize("name", [CONFIG, "c0.json"])
def test_a_client_called_like_a_config(work: Path, layout: str, name: str) -> None:
    """Honest clients are plain files: their configs are looked for beside them."""
    five = cohorts.honest(5)
    attacker = five.pop("c4")
    cohorts.save(CLIENTS, five, layout)
    taken = (CLIENTS / name).exists()
    if taken:
        (CLIENTS / name).unlink()
        data = cohorts.client_bytes(
            five["c0"], metadata={"lora_adapter_metadata": json.dumps(five["c0"].fields)}
        )
        (CLIENTS / "c0.safetensors").write_bytes(data)
    cohorts.save_peft(CLIENTS / name, attacker)
    ran = merge()
    assert ran.code == 0
    assert ran.verdicts == {**dict.fromkeys(five, "benign"), name: "benign"}
    assert f"'{name}' is not a regular file, so it is nobody's config" in ran.words


def test_folders_and_pipes_are_passed_over_for_the_next_config(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(safetensors_bytes(pair(), {}))
    os.mkfifo(folder / "x.json")
    (folder / CONFIG).write_text(json.dumps(config(lora_alpha=6)))
    cohort = load_cohort(folder)
    assert [a.name for a in cohort.adapters] == ["good", "x"]
    assert cohort.adapters[1].config.lora_alpha == 6
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    entry = only_rejection(folder)
    assert "'x.json' is a FIFO (named pipe), not a regular file" in entry.message
    assert "'adapter_config.json' is a folder, not a regular file" in entry.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    client(tmp_path / "clients", "good")
    return tmp_path / "clients"


# Names that are not Unicode


def weighted(text: bytes, tmp_path: Path, names: list[str], **more: Any) -> dict[str, float]:
    (tmp_path / "w").write_bytes(text)
    return read_weights(tmp_path / "w", names, **more)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "caf\xe9\xff": 2}',
        b'{"a": 1, "caf\\udce9\\udcff": 2}',
        b'{"a": 1, "caf\\\\xe9\\\\xff": 2}',
        json.dumps({"a": 1, NAME: 2}).encode(),
        b"a,1\ncaf\xe9\xff,2\n",
        b"a,1\ncaf\\xe9\\xff,2\n",
    ],
)
def test_weights_of_a_name_that_is_not_unicode(tmp_path: Path, text: bytes) -> None:
    assert weighted(text, tmp_path, ["a", NAME]) == {"a": 1.0, NAME: 2.0}


def test_the_largest_file_of_weights(tmp_path: Path) -> None:
    assert weighted(b'{"a": 2}'.ljust(4_000_000), tmp_path, ["a"]) == {"a": 2.0}
    with pytest.raises(UsageError, match="above the limit of 4,000,000"):
        weighted(b'{"a": 2}'.ljust(4_000_001), tmp_path, ["a"])


def test_a_spelling_that_is_anothers_name_is_that_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight for"):
        weighted(b"caf\\xe9\\xff,2\n", tmp_path, [NAME, SPELT])
    both = weighted(b"caf\\xe9\\xff,2\ncaf\xe9\xff,3", tmp_path, [NAME, SPELT])
    assert both == {NAME: 3.0, SPELT: 2.0}
    with pytest.raises(UsageError, match="twice"):
        weighted(b"caf\\xe9\\xff,2\ncaf\xe9\xff,3", tmp_path, [NAME])
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        weighted(b'{"\\ud800": 2}', tmp_path, ["a"])


@pytest.mark.parametrize("given", [NAME, SPELT])
def test_a_round_with_such_a_name(work: Path, given: str) -> None:
    clients = cohorts.honest(4)
    cohorts.save(CLIENTS, {**clients, NAME: cohorts.unrelated()})
    Path("w.json").write_text(json.dumps({**dict.fromkeys(clients, 1), given: 2}))
    assert merge("--weights", "w.json").verdicts[SPELT] == "contaminated"
    ran = merge("--exclude", given, "--weights", "w.json", "--force")
    assert ran.code == 0 and list(ran.verdicts) == list(clients)
    assert ran.report is not None and ran.report["options"]["exclude"] == [SPELT]
    assert clair_cli.verify(OUT, CLIENTS, weights="w.json").differences == ()


# Lists are cut, and say how long they were


def test_thousands_of_files_are_one_note(work: Path) -> None:
    cohorts.save(CLIENTS, cohorts.honest(3))
    for k in range(2000):
        (CLIENTS / "c0" / f"{k:04d}{'x' * 100}.bin").touch()
    for k in range(200):
        (CLIENTS / f"{k:03d}{'y' * 100}").mkdir()
    ran = merge()
    assert ran.code == 0 and ran.report is not None
    notes = texts(w for w in ran.report["warnings"] if w["code"] != "first_round")
    assert len(notes) == 2
    assert "and 1,997 more ignored" in notes[1] and "and 190 more ignored" in notes[0]
    assert all(len(note) < MAX_MESSAGE for note in notes)


def test_folders_in_a_clients_folder(folder: Path) -> None:
    for k in range(30):
        (folder / "good" / f"{k:02d}").mkdir()
        (folder / "good" / f"{k:02d}" / WEIGHTS).touch()
    (note,) = texts(load_cohort(folder).adapters[0].notes)
    assert note.endswith("sub-folders '00', '01', '02' and 27 more")


@pytest.mark.parametrize("count", [MAX_NOTES, MAX_NOTES + 1])
def test_notes_on_clients_are_joined_and_cut(count: int) -> None:
    """One note for all clients that it is true of; not one for each."""
    alpha = {f"c{k:02d}": (pair(), config(lora_alpha=0)) for k in range(2 * count)}
    report = clair_cli.inspect(alpha).report
    (note,) = (w for w in texts(report.warnings) if "lora_alpha is 0" in w)
    assert note.startswith("clients 'c00', 'c01'") and f"and {2 * count - 20} more: " in note


def test_a_note_of_another_text_for_each_client_is_one_line(folder: Path) -> None:
    for k in range(12):
        client(folder, f"c{k:02d}")
        (folder / f"c{k:02d}" / f"old{k}.bin").write_bytes(b"")
    report = clair_cli.inspect(folder).report
    (note,) = (w for w in texts(report.warnings) if ".bin" in w)
    assert note.startswith("12 clients: 'c00': 'old0.bin' ignored")
    assert note.endswith(" and 2 more")


@pytest.mark.parametrize("count", [MAX_NOTES, MAX_NOTES + 1])
def test_notes_on_modules_and_on_names_are_cut(count: int) -> None:
    def state(width: int) -> dict[str, torch.Tensor]:
        more = {k: t for m in range(count) for k, t in pair(f"x{m}", shape=(6, width)).items()}
        return usual | more

    usual = pair("q") | pair("k")
    clients: dict[str, Any] = {f"c{k}": (usual, config()) for k in range(3)}
    clients |= {"a": (state(8), config()), "b": (state(9), config())}
    notes = texts(check_comparable(adapters_from_memory(clients), "union").notes)
    assert len([n for n in notes if n.startswith("module 'x")]) == MAX_NOTES
    assert any("and 1 more modules left out" in n for n in notes) == (count > MAX_NOTES)
    names = [name for k in range(count) for name in (f"a{k}", f"A{k}")]
    assert len(similar_names(names)) == MAX_NOTES + (count > MAX_NOTES)
    (alike,) = similar_names([f"{k:07b}".replace("0", "a").replace("1", "A") for k in range(128)])
    assert alike.text.startswith("clients 'AAAAAAA', 'AAAAAAa', 'AAAAAaA' and 125 more:")


def many_adapters(folder: Path) -> None:
    part = torch.ones(2, 8)
    names = [f"base_model.model.m{k}.lora_A.{k:05d}{'n' * 400}.weight" for k in range(5000)]
    client(folder, "bad", safetensors_bytes(dict.fromkeys(names, part), {}))


def many_parts(folder: Path) -> None:
    fields = {f"{k:05d}{'p' * 400}.r": 2 for k in range(2000)}
    data = safetensors_bytes(pair(), {"lora_adapter_metadata": json.dumps(fields)})
    (folder / "bad.safetensors").write_bytes(data)


def no_part(folder: Path) -> None:
    parts = {f"{k:05d}{'p' * 100}": "" for k in range(2000)} | {"here": ""}
    fields = {f"{part}.{n}": v for part in parts for n, v in config().items()}
    tensors = pair("here.q", prefix="") | pair("elsewhere.q", prefix="")
    data = safetensors_bytes(tensors, {"lora_adapter_metadata": json.dumps(fields)})
    (folder / "bad.safetensors").write_bytes(data)


def many_nested(folder: Path) -> None:
    for k in range(50):
        client(folder / "bad", f"{k}{'n' * 200}")


def many_files(folder: Path) -> None:
    (folder / "bad").mkdir()
    for k in range(50):
        (folder / "bad" / f"{k}{'n' * 200}.safetensors").touch()


LISTS = [many_adapters, many_parts, no_part, many_nested, many_files]


@pytest.mark.parametrize("make", LISTS, ids=[make.__name__ for make in LISTS])
def test_lists_in_messages_are_cut_with_their_count(folder: Path, make: Any) -> None:
    make(folder)
    entry = only_rejection(folder)
    said = entry.message + entry.found
    assert " more" in said or "50 " in said
    assert len(entry.message) < MAX_MESSAGE and len(entry.found) < MAX_MESSAGE


@pytest.mark.parametrize("kind", [RejectedClient, InputRefused, UsageError])
def test_every_message_is_cut(kind: Any) -> None:
    for length in (MAX_MESSAGE, MAX_MESSAGE + 1):
        error = kind("m" * length, hint="h" * length)
        for text in (error.message, str(error), error.hint):
            assert text[:MAX_MESSAGE] == text[0] * MAX_MESSAGE
            assert text[MAX_MESSAGE:] == ("" if length == MAX_MESSAGE else "... (2,001 characters)")
    rejected = RejectedClient("m", found="f" * 3000, expected="e" * 3000)
    assert max(len(rejected.found), len(rejected.expected)) < MAX_MESSAGE + 30


def test_a_message_from_a_config_object_is_cut() -> None:
    class Config:
        def to_dict(self) -> Any:
            raise ValueError("v" * 10**6)

    found = adapters_from_memory({"bad": (pair(), Config()), "good": (pair(), config())})
    assert len(found.rejected[0].message) < MAX_MESSAGE + 30
