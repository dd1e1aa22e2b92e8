"""Bytes that one process checks and another uses: the same, once, and never those of a changed
file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from clair_cli.errors import RejectedClient
from clair_cli.formats.handover import Handover
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors_file import SafetensorsFile, open_safetensors
from clair_cli.formats.write_adapter import safetensors_bytes

ROOM = 2**20


@pytest.fixture
def handover(monkeypatch: pytest.MonkeyPatch) -> Handover:
    """As the process that fills it sees it."""
    made = Handover(ROOM)
    monkeypatch.setattr(made, "_maker", os.getpid() + 1)
    return made


def tensors(seed: int, size: int = 5000) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(size, generator=g).bfloat16(),
        "b": torch.randn(3, 7, generator=g),
        "c": torch.randn(size, 2, generator=g),
    }


def opened(path: Path, given: dict[str, torch.Tensor], handover: Handover) -> SafetensorsFile:
    path.write_bytes(safetensors_bytes(given, {}))
    os.utime(path, ns=(1, 1))
    return open_safetensors(path, Limits(), handover=handover)


def test_what_was_checked_arrives_without_the_file(tmp_path: Path, handover: Handover) -> None:
    """The file's bytes differ, and nothing shows it: they are not looked at."""
    files = [opened(tmp_path / f"{k}.safetensors", tensors(k), handover) for k in range(3)]
    for file in files:
        data = bytearray(file.path.read_bytes())
        data[-1] ^= 1
        file.path.write_bytes(data)
        os.utime(file.path, ns=(1, 1))
    for name in ("c", "a", "b"):
        for k, file in enumerate(files):
            assert torch.equal(file.read(name), tensors(k)[name])
    with pytest.raises(RejectedClient, match="changed while reading tensor"):
        for name in ("a", "b", "c"):  # the second time the file is read
            files[0].read(name)


def test_a_file_that_changed_is_read_again_and_told(tmp_path: Path, handover: Handover) -> None:
    path = tmp_path / "a.safetensors"
    file = opened(path, tensors(1), handover)
    path.write_bytes(safetensors_bytes(tensors(2), {}))
    with pytest.raises(RejectedClient, match="changed while reading tensor"):
        file.read("a")


def test_without_room_the_file_is_read(tmp_path: Path, handover: Handover) -> None:
    large = opened(tmp_path / "a.safetensors", tensors(1, ROOM // 8), handover)
    small = opened(tmp_path / "b.safetensors", tensors(2), handover)
    assert large.handed is None and small.handed is not None
    assert torch.equal(large.read("c"), tensors(1, ROOM // 8)["c"])
    assert torch.equal(small.read("c"), tensors(2)["c"])


def test_the_process_that_made_it_never_fills_it(tmp_path: Path) -> None:
    """It does not know what its child filled."""
    assert opened(tmp_path / "a.safetensors", tensors(1), Handover(ROOM)).handed is None


def test_what_was_taken_takes_no_memory(handover: Handover) -> None:
    reserved = handover.reserve(ROOM // 2)
    assert reserved is not None and reserved.start == 0
    handover.room(0, ROOM // 2)[:] = b"x" * (ROOM // 2)
    assert bytes(handover.take(100, ROOM // 2)) == b"x" * (ROOM // 2 - 100)
    assert bytes(handover.room(0, 100)) == b"x" * 100  # of a page with something else in it
    if os.uname().sysname == "Linux":
        assert not any(handover.room(8192, ROOM // 2))


def test_a_rejected_file_hands_nothing_over(tmp_path: Path, handover: Handover) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors(1), {})[:-1])
    with pytest.raises(RejectedClient, match="truncated"):
        open_safetensors(path, Limits(), handover=handover)
