"""Bytes that are checked, kept and used: never those of a changed file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from clair_cli.adapters.write import safetensors_bytes
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import open_safetensors
from clair_cli.formats.safetensors.reader import KeptBytes, SafetensorsFile
from clair_cli.formats.safetensors.source import tensor_of

ROOM = 2**20


@pytest.fixture
def kept() -> KeptBytes:
    return KeptBytes(ROOM)


def tensors(seed: int, size: int = 5000) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(size, generator=g).bfloat16(),
        "b": torch.randn(3, 7, generator=g),
        "c": torch.randn(size, 2, generator=g),
    }


def opened(path: Path, given: dict[str, torch.Tensor], kept: KeptBytes) -> SafetensorsFile:
    path.write_bytes(safetensors_bytes(given, {}))
    os.utime(path, ns=(1, 1))
    return open_safetensors(path, Limits(), memory=kept)


def test_what_was_checked_arrives_without_the_file(tmp_path: Path, kept: KeptBytes) -> None:
    """The file's bytes differ, and nothing shows it: they are not looked at."""
    files = [opened(tmp_path / f"{k}.safetensors", tensors(k), kept) for k in range(3)]
    for file in files:
        data = bytearray(file.path.read_bytes())
        data[-1] ^= 1
        file.path.write_bytes(data)
        os.utime(file.path, ns=(1, 1))
    for name in ("c", "a", "b", "a"):
        for k, file in enumerate(files):
            assert torch.equal(tensor_of(file, name), tensors(k)[name])


def test_tensors_in_odd_places_are_read_as_well(tmp_path: Path, kept: KeptBytes) -> None:
    """Elements of a stranger's file may begin at any byte."""
    path, values = tmp_path / "a.safetensors", torch.randn(64)
    header = {
        "x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "y": {"dtype": "F32", "shape": [64], "data_offsets": [3, 259]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"abc" + values.numpy().tobytes()
    path.write_bytes(data)
    found = tensor_of(open_safetensors(path, Limits(), memory=kept), "y")
    assert torch.equal(found, values)
    assert found.data_ptr() % 4 == 0


def test_a_file_that_changed_is_read_again_and_told(tmp_path: Path, kept: KeptBytes) -> None:
    path = tmp_path / "a.safetensors"
    file = opened(path, tensors(1), kept)
    path.write_bytes(safetensors_bytes(tensors(2), {}))
    with pytest.raises(RejectedClient, match="changed while reading tensor"):
        file.raw("a")


def test_without_room_the_file_is_read(tmp_path: Path, kept: KeptBytes) -> None:
    large = opened(tmp_path / "a.safetensors", tensors(1, ROOM // 8), kept)
    small = opened(tmp_path / "b.safetensors", tensors(2), kept)
    assert large.kept is None and small.kept is not None
    assert torch.equal(tensor_of(large, "c"), tensors(1, ROOM // 8)["c"])
    assert torch.equal(tensor_of(small, "c"), tensors(2)["c"])


def test_a_rejected_file_keeps_nothing(tmp_path: Path, kept: KeptBytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors(1), {})[:-1])
    with pytest.raises(RejectedClient, match="truncated"):
        open_safetensors(path, Limits(), memory=kept)
