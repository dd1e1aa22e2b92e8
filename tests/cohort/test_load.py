"""Folders of clients: what is a client, what is rejected and how, what is ignored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clair_cli.adapters.write import safetensors_bytes
from clair_cli.cohort.load import load_one
from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.limits import Limits
from tests.cohorts import texts
from tests.hostile import client, config, load_cohort, only_rejection, pair, rejected


def test_folders_and_files_are_clients_sorted_by_bytes(folder: Path) -> None:
    data = safetensors_bytes(pair(prefix=""), {})
    for name in ("Zoe", "anna", "Ümit", "- x"):
        (folder / f"{name}.safetensors").write_bytes(data)
        (folder / f"{name}.json").write_text(json.dumps(config()))
    for name in (".hidden.safetensors", "x.safetensors~", "README.md", "notes.json", "a.tmp"):
        (folder / name).write_bytes(data)
    (folder / "logs").mkdir()
    (folder / "logs" / "log.txt").write_text("x")
    cohort = load_cohort(folder)
    assert cohort.rejected == ()
    assert [a.name for a in cohort.adapters] == ["- x", "Zoe", "anna", "good", "Ümit"]
    good = cohort.adapters[3]
    assert good.path == (folder / "good/adapter_model.safetensors").as_posix()
    assert good.modules["layers.0.q_proj"].shape == (6, 8)
    assert good.modules["layers.0.q_proj"].scaling == 2.0
    assert cohort.adapters[0].prefix == ""
    assert set(cohort.ignored) == {
        ".hidden.safetensors", "x.safetensors~", "README.md", "notes.json", "a.tmp", "logs/",
    }  # fmt: skip
    assert texts(cohort.notes) == (
        "folder 'logs' ignored: no weights file down to 3 levels, or a dot begins its name",
    )


def test_order_is_that_of_names_and_not_of_entries(folder: Path) -> None:
    client(folder, "a-b")  # '-' sorts before '.', so this entry comes before a.safetensors
    (folder / "a.safetensors").write_bytes(safetensors_bytes(pair(), {}))
    cohort = load_cohort(folder, assume_alpha="rank")
    assert [adapter.name for adapter in cohort.adapters] == ["a", "a-b", "good"]


def test_relative_paths_stay_as_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    client(folder, "bad", b"")
    cohort = load_cohort(Path("clients"))
    assert cohort.adapters[0].path == "clients/good/adapter_model.safetensors"
    assert cohort.rejected[0].path == "clients/bad/adapter_model.safetensors"
    assert str(folder) not in repr(cohort.rejected)


def test_config_is_looked_up_in_order(folder: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"t.r": 2, "t.lora_alpha": 10})}
    for name in ("beside", "own", "header", "assumed"):
        metadata = header if name == "header" else {}
        (folder / f"{name}.safetensors").write_bytes(safetensors_bytes(pair(), metadata))
    (folder / "beside.json").write_text(json.dumps(config(lora_alpha=6)))

    def scalings(**options: Any) -> dict[str, float]:
        cohort = load_cohort(folder, **options)
        return {a.name: a.modules["layers.0.q_proj"].scaling for a in cohort.adapters}

    assert scalings() == {"beside": 3.0, "good": 2.0, "header": 5.0}
    messages = rejected(load_cohort(folder))
    assert set(messages) == {"assumed", "own"}
    for words in ("assumed.json", "adapter_config.json", "lora_adapter_metadata"):
        assert words in messages["assumed"]
    assert "--assume-alpha" in load_cohort(folder).rejected[0].hint
    known = {"beside": 3.0, "good": 2.0, "header": 5.0}
    assert scalings(assume_alpha="rank") == known | {"own": 1.0, "assumed": 1.0}
    assert scalings(assume_alpha=16) == known | {"own": 8.0, "assumed": 8.0}
    (folder / "adapter_config.json").write_text(json.dumps(config(lora_alpha=14)))
    assert scalings() == known | {"own": 7.0, "assumed": 7.0}
    assert all(a.notes == () for a in load_cohort(folder).adapters)


def test_header_config_of_several_adapters_is_refused(folder: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"a.r": 2, "b.lora_alpha": 10})}
    (folder / "x.safetensors").write_bytes(safetensors_bytes(pair(), header))
    assert "several adapters: prefixes 'a', 'b'" in only_rejection(folder).message


def test_nested_links_inside_and_pickles_beside(folder: Path) -> None:
    client(folder / "nested", "default")
    (folder / "nested" / "default" / "adapter_model.bin").write_bytes(b"x")
    (folder / "again").symlink_to("good")
    (folder / "file.safetensors").symlink_to("good/adapter_model.safetensors")
    (folder / "file.json").symlink_to("good/adapter_config.json")
    cohort = load_cohort(folder)
    assert cohort.rejected == ()
    assert [a.name for a in cohort.adapters] == ["again", "file", "good", "nested"]
    assert len({a.sha256 for a in cohort.adapters}) == 1
    assert texts(cohort.adapters[3].notes) == (
        "read from the sub-folder 'default'",
        "'adapter_model.bin' ignored",
    )
    assert cohort.adapters[1].factors("layers.0.q_proj")[0].shape == (2, 8)


def test_sub_folders_beside_an_adapter_are_named(folder: Path) -> None:
    """PEFT saves the adapter "default" in the folder, and others below it."""
    client(folder / "good", "other")
    (adapter,) = load_cohort(folder).adapters
    assert texts(adapter.notes) == (
        "ignored, as the folder has an adapter itself: sub-folders 'other'",
    )


def test_one_peft_folder_is_one_client(folder: Path) -> None:
    (folder / "good" / "training_args.bin").write_bytes(b"x")
    (folder / "good" / "README.md").write_text("x")
    cohort = load_cohort(folder / "good")
    assert [a.name for a in cohort.adapters] == ["good"]
    assert texts(cohort.notes) == (
        "the folder is itself one adapter: read as the one client 'good'; to compare several, "
        "give the folder that holds their folders",
    )
    assert cohort.ignored == ("README.md", "training_args.bin")


def test_equal_names_are_told_apart(folder: Path) -> None:
    data = safetensors_bytes(pair(), {})
    (folder / "good.safetensors").write_bytes(data)
    (folder / "good.safetensors.safetensors").write_bytes(data)
    (folder / "GOOD.safetensors").write_bytes(data)
    cohort = load_cohort(folder, assume_alpha=4)
    names = [a.name for a in cohort.adapters]
    assert names == ["GOOD", "good", "good.safetensors", "good.safetensors.safetensors"]
    assert texts(cohort.notes) == (
        "clients 'GOOD', 'good': names differ only in case or Unicode form",
    )


def test_a_suffix_in_capitals_is_the_suffix(folder: Path) -> None:
    data = safetensors_bytes(pair(), {})
    (folder / "X.SAFETENSORS").write_bytes(data)
    (folder / "X.json").write_text(json.dumps(config(lora_alpha=6)))
    (folder / "X.bin").write_bytes(b"")
    (folder / "good.Safetensors").write_bytes(data)
    inner = client(folder, "inner")
    (inner / "adapter_model.safetensors").rename(inner / "Adapter.SafeTensors")
    client(folder, "D.SAFETENSORS")
    cohort = load_cohort(folder, assume_alpha=4)
    names = [a.name for a in cohort.adapters]
    assert names == ["D.SAFETENSORS", "X", "good", "good.Safetensors", "inner"]
    assert [m.alpha for a in cohort.adapters if a.name == "X" for m in a.modules.values()] == [6]
    assert cohort.ignored == ("X.bin",)
    assert load_one(folder / "X.SAFETENSORS").adapters[0].name == "X"
    assert load_one(inner).adapters


def test_hostile_names_are_escaped_in_messages(folder: Path) -> None:
    client(folder, "a\n::error::\x1b[31m\u202e", b"")
    client(folder, os.fsdecode(b"\xff"), b"")
    for entry in load_cohort(folder).rejected:
        assert entry.message.isascii()
        assert entry.message.isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_rejected(folder: Path) -> None:
    (client(folder, "bad") / "adapter_model.safetensors").chmod(0)
    assert "Permission denied" in only_rejection(folder).message


def test_a_denied_read_is_a_rejection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(folder, "bad")
    real = os.open

    def denied(path: Any, *args: Any, **options: Any) -> int:
        if "bad" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", denied)
    assert "unreadable: Permission denied" in only_rejection(folder).message


def test_exclude(folder: Path) -> None:
    client(folder, "bad", b"")
    cohort = load_cohort(folder, exclude=["bad"])
    assert (cohort.rejected, cohort.excluded) == ((), ("bad",))
    with pytest.raises(UsageError, match="no client is called 'bat'") as caught:
        load_cohort(folder, exclude=["bat"])
    assert caught.value.hint == "did you mean 'bad'?"


def test_calls_that_are_wrong(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        load_cohort(folder.parent / "client")
    assert "clients" in caught.value.hint
    with pytest.raises(UsageError, match="is not a folder"):
        load_cohort(folder / "good" / "adapter_config.json")
    with pytest.raises(InputRefused, match="2 clients, above the limit of 1"):
        client(folder, "second")
        load_cohort(folder, limits=Limits(max_clients=1))


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    with pytest.raises(InputRefused, match="2 other entries ignored") as caught:
        load_cohort(tmp_path)
    assert "*.safetensors" in caught.value.hint


def test_loading_imports_neither_torch_nor_peft(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from clair_cli.cohort import find, load;"
        "from clair_cli.output import publish;"
        "from clair_cli.cohort import comparable, memory, weights;"
        "from clair_cli.adapters import write;"
        "(c,) = find.find_clients(Path(sys.argv[1])).candidates; load.load_client(c).modules;"
        "bad = {'torch', 'peft', 'transformers', 'safetensors', 'pickle'} & set(sys.modules);"
        "assert bad <= {'pickle'}, bad"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=root, check=True)
