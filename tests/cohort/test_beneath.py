"""A client's folder that becomes a link out of the cohort while it is read: nothing outside is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cohort import load
from clair_cli.errors import RejectedClient
from clair_cli.formats import files
from tests import cohorts
from tests.hostile import load_cohort

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CLIENT = cohorts.honest(1)["c0"]

pytestmark = pytest.mark.skipif(not files._BENEATH, reason="no opening beneath a folder")


@pytest.fixture(params=["plain", "linked"])
def clients(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A cohort's folder, or a link to it, with the client c0; and a stranger's adapter outside."""
    cohorts.save_peft(tmp_path / "clients" / "c0", CLIENT)
    cohorts.save_peft(tmp_path / "secret", CLIENT)
    if request.param == "linked":
        (tmp_path / "link").symlink_to("clients")
        return tmp_path / "link"
    return tmp_path / "clients"


def swap(folder: Path, secret: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(secret)


def swapped_before(
    monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, secret: Path
) -> list[int]:
    """Swap the folder when the reader is about to call a function."""
    real, calls = getattr(load, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not calls:
            swap(folder, secret)
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(load, name, call)
    return calls


@pytest.mark.parametrize("step", ["open_safetensors", "find_config"])
def test_swapped_between_listing_and_opening(
    clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert len(load_cohort(clients).adapters) == 1
    calls = swapped_before(monkeypatch, step, clients / "c0", tmp_path / "secret")
    found = load_cohort(clients)
    assert calls and not found.adapters
    (lost,) = found.rejected
    assert "folder 'c0' changed while reading" in lost.message


def test_swapped_one_level_deeper(
    clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts.save_peft(clients / "c1" / "checkpoint-3", CLIENT)
    shutil.rmtree(clients / "c0")
    cohorts.save_peft(tmp_path / "secret" / "checkpoint-3", CLIENT)
    assert len(load_cohort(clients).adapters) == 1
    swapped_before(monkeypatch, "open_safetensors", clients / "c1", tmp_path / "secret")
    (lost,) = load_cohort(clients).rejected
    assert "folder 'c1' changed while reading" in lost.message


def test_swapped_between_two_readings(clients: Path, tmp_path: Path) -> None:
    """Even for the very bytes that were there: no file outside is opened."""
    (adapter,) = load_cohort(clients).adapters
    source: Any = adapter.source
    key = next(iter(source.tensors))
    assert len(source.raw(key)) > 0
    swap(clients / "c0", tmp_path / "secret")
    with pytest.raises(RejectedClient, match="changed while reading"):
        source.raw(key)


def test_a_folder_that_is_gone(
    clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load.open_safetensors

    def call(*args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(clients / "c0")
        return real(*args, **kwargs)

    monkeypatch.setattr(load, "open_safetensors", call)
    (lost,) = load_cohort(clients).rejected
    assert "changed while reading" in lost.message


@pytest.mark.parametrize("beneath", [True, False], ids=["beneath", "no dir_fd"])
def test_links_inside_the_cohort_are_followed(
    clients: Path, monkeypatch: pytest.MonkeyPatch, beneath: bool
) -> None:
    monkeypatch.setattr(files, "_BENEATH", beneath)
    store = clients / ".store"
    cohorts.save_peft(store / "deep" / "a", CLIENT)
    (clients / "whole").symlink_to(".store/deep/a")
    (clients / "files").mkdir()
    (clients / "files" / WEIGHTS).symlink_to("../.store/deep/a/" + WEIGHTS)
    (clients / "files" / CONFIG).symlink_to("../whole/" + CONFIG)
    (clients / "nested").mkdir()
    (clients / "nested" / "step").symlink_to("../whole")
    (clients / "one.safetensors").symlink_to(f"whole/{WEIGHTS}")
    (clients / "one.json").symlink_to(f"files/{CONFIG}")
    found = load_cohort(clients)
    assert [a.name for a in found.adapters] == ["c0", "files", "nested", "one", "whole"]
    assert found.rejected == ()
    for adapter in found.adapters:
        assert len(adapter.source.raw(next(iter(adapter.modules.values())).key_A)) > 0


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
def test_no_descriptor_is_left(clients: Path, tmp_path: Path) -> None:
    root = Path(os.path.realpath(clients))
    before = os.listdir("/proc/self/fd")
    os.close(files.open_beneath(root, ["c0", WEIGHTS]))
    (clients / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(RejectedClient, match="'out' changed"):
        files.open_beneath(root, ["out", WEIGHTS])
    (clients / "file").symlink_to(tmp_path / "secret" / WEIGHTS)
    for name in ("file", "absent"):
        with pytest.raises(OSError):  # ELOOP and ENOENT
            files.open_beneath(root, [name])
    assert os.listdir("/proc/self/fd") == before
