"""The strict reader: each refusal by its message, digests, non-finite counts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clair_cli.adapters.write import safetensors_bytes
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import CHUNK_BYTES, open_safetensors
from clair_cli.formats.safetensors.reader import KeptBytes
from clair_cli.formats.safetensors.source import number_of, runs, tensor_of
from tests.hostile import entry, pair, raw_file

E8 = bytes(8)
ONCE = json.dumps(entry(0, 8))
TWICE = f'{{"a": {ONCE}, "a": {ONCE}}}'

REFUSED = {
    "empty": (b"", "file is empty (0 bytes)"),
    "7 bytes": (b"1234567", "file has 7 bytes"),
    "length over file": (struct.pack("<Q", 500) + b"{}", "header needs 500 bytes, found 2"),
    "length over cap": (
        struct.pack("<Q", 2**63) + b"{}",
        "header length 9,223,372,036,854,775,808",
    ),
    "html": (b"\n<!DOCTYPE html><html>...", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "pickle": (pickle.dumps({"a": [1, 2, 3]}, protocol=4), "a pickle, not opened"),
    "not json": (raw_file("{nope}"), "header is not JSON"),
    "array": (raw_file("[1, 2]"), "header does not start with '{'"),
    "not utf-8": (raw_file(b'{"\xff": 1}'), "header is not UTF-8 (byte 2)"),
    "deep": (raw_file('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "nan": (raw_file('{"a": NaN}'), "holds NaN"),
    "digits": (raw_file('{"a": ' + "9" * 5000 + "}"), "number of 5,000 digits"),
    "duplicate tensor": (raw_file(TWICE, E8), "header gives the key 'a' twice"),
    "duplicate metadata": (raw_file('{"__metadata__": {"k": "1", "k": "2"}}'), "key 'k' twice"),
    "duplicate field": (raw_file('{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' twice"),
    "metadata number": (raw_file({"__metadata__": {"k": 1}}), "field 'k' is not a string"),
    "metadata list": (raw_file({"__metadata__": []}), "not an object of strings"),
    "metadata false": (raw_file({"__metadata__": False}), "not an object of strings"),
    "extra field": (raw_file({"a": entry(0, 8, evil=1)}, E8), "unknown header field 'evil'"),
    "missing field": (raw_file({"a": {"dtype": "F32", "shape": []}}), "'data_offsets' is missing"),
    "not an object": (raw_file({"a": 1}), "header entry is not an object"),
    "dtype": (raw_file({"a": entry(0, 8, dtype="F33")}, E8), "unknown dtype 'F33'"),
    "dtype list": (raw_file({"a": entry(0, 8) | {"dtype": ["F32"]}}, E8), "unknown dtype"),
    "hole": (raw_file({"a": entry(4, 8)}, E8), "tensor 'a': hole of 4 bytes before it"),
    "overlap": (
        raw_file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "tensor 'b': overlaps tensor 'a' by 4 bytes",
    ),
    "trailing": (raw_file({"a": entry(0, 8)}, bytes(11)), "file has 3 extra bytes"),
    "truncated": (raw_file({"a": entry(0, 80)}, E8), "tensors need 80 bytes after the header"),
    "mismatch": (raw_file({"a": entry(0, 8, [3])}, E8), "shape (3,) of F32 needs 12 bytes"),
    "huge": (raw_file({"a": entry(0, 8, [10**6, 10**6])}, E8), "needs 4,000,000,000,000 bytes"),
    "zero": (raw_file({"a": entry(0, 0, [0, 2**63])}), "has an axis of length 0"),
    "absurd": (raw_file({"a": entry(0, 0, [2**63])}), "has an axis of length 9223372036854775808"),
    "float shape": (raw_file({"a": entry(0, 8, [2.0])}, E8), "is not a list of integers"),
    "bool shape": (raw_file({"a": entry(0, 4, [True])}, bytes(4)), "is not a list of integers"),
    "axes": (raw_file({"a": entry(0, 4, [1] * 9)}, bytes(4)), "9 axes, more than 8"),
    "no more axes": (raw_file({"a": entry(0, 8, [1] * 8)}, E8), "of F32 needs 4 bytes"),
    "long axis": (raw_file({"a": entry(0, 8, [2**40])}, E8), "needs 4,398,046,511,104 bytes"),
    "longer axis": (raw_file({"a": entry(0, 8, [2**40 + 1])}, E8), "has an axis of length 1099"),
    "offsets": (raw_file({"a": entry(8, 0, [2])}, E8), "data_offsets [8, 0] are not in order"),
    "negative": (raw_file({"a": entry(-8, 0, [2])}, E8), "data_offsets [-8, 0]"),
    "three offsets": (
        raw_file({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, E8),
        "two integers",
    ),
    "half nibble": (raw_file({"a": entry(0, 1, [3], "F4")}, b"0"), "needs 1.5 bytes"),
    "long name": (raw_file({"a" * 600: entry(0, 8)}, E8), "has 600 characters"),
    "surrogate": (raw_file('{"\\ud800": 1}'), "half of a surrogate pair"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_what_is_wrong(tmp_path: Path, case: str) -> None:
    data, words = REFUSED[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(RejectedClient) as caught:
        open_safetensors(path, Limits())
    assert words in caught.value.message
    assert caught.value.path == path.as_posix()


def test_limits_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    size = 200 * 1000**3
    header = raw_file({"a": entry(0, size - 100, dtype="U8", shape=[size - 100])})
    path.write_bytes(header)
    os.truncate(path, size)  # sparse
    with pytest.raises(RejectedClient, match="200,000,000,000 bytes, above the limit"):
        open_safetensors(path, Limits())
    many = {f"t{i:06}": entry(i * 4, i * 4 + 4) for i in range(21)}
    path.write_bytes(raw_file(many, bytes(84)))
    with pytest.raises(RejectedClient, match="21 tensors, above the limit of 20"):
        open_safetensors(path, Limits(max_tensors=20))
    with pytest.raises(RejectedClient, match="above the limit of 100 bytes"):
        open_safetensors(path, Limits(max_header_bytes=100))


def test_kinds_that_are_no_files_do_not_hang(tmp_path: Path) -> None:
    fifo, folder, link = tmp_path / "fifo", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(fifo)
    folder.mkdir()
    (tmp_path / "real").write_bytes(b"")
    link.symlink_to("real")
    for path, words in ((fifo, "a FIFO"), (folder, "a folder"), (link, "a symbolic link")):
        with pytest.raises(RejectedClient, match=words):
            open_safetensors(path, Limits())
    with pytest.raises(RejectedClient, match="unreadable: No such file"):
        open_safetensors(tmp_path / "absent", Limits())


def test_metadata_null_is_no_metadata(tmp_path: Path) -> None:
    """The library reads it so."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"__metadata__": None, "a": entry(0, 8)}, E8))
    file = open_safetensors(path, Limits())
    assert (file.metadata, list(file.tensors)) == ({}, ["a"])
    assert list(safetensors.torch.load_file(path)) == ["a"]


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        name: torch.randn(3, 5).to(dtype)
        for name, dtype in (
            ("a", torch.float32),
            ("b", torch.bfloat16),
            ("c", torch.float16),
            ("d", torch.float64),
        )
    }
    tensors["e"] = torch.arange(3, dtype=torch.int8)
    tensors["f"] = torch.tensor(8)  # alpha, as kohya's trainers may write it
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    file = open_safetensors(path, Limits())
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    for name in "abcd":
        read = tensor_of(file, name)
        assert read.dtype == tensors[name].dtype
        assert torch.equal(read, tensors[name])
    assert tensor_of(file, "f").item() == 8
    assert file.tensors["e"].dtype == "I8"
    for key in ("e", "z"):
        with pytest.raises(KeyError):
            tensor_of(file, key)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_non_finite_values_are_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    count = CHUNK_BYTES // 2 + 100  # more than one chunk for every dtype
    values = torch.full((count,), torch.finfo(dtype).max, dtype=dtype)
    values[7::2] = torch.finfo(dtype).smallest_normal / 4
    bad = [count - 50, count - 3, count - 1]
    for index, value in zip(bad, (float("nan"), float("inf"), -float("inf")), strict=True):
        values[index] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": values, "b": torch.ones(3, dtype=dtype)}, {}))
    file = open_safetensors(path, Limits())
    found = file.tensors["a"]
    assert (found.non_finite, found.first_non_finite) == (3, bad[0])
    assert (file.tensors["b"].non_finite, file.tensors["b"].first_non_finite) == (0, -1)


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_change_after_opening_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.safetensors"
    data = safetensors_bytes(pair(), {})
    path.write_bytes(data)
    file = open_safetensors(path, Limits())
    key = list(file.tensors)[-1]
    assert torch.equal(tensor_of(file, key), pair()[key])
    if change == "remove":
        path.unlink()
        words = "unreadable"
    else:
        path.write_bytes(data[:-1] if change == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
        words = "changed while reading"
    with pytest.raises(RejectedClient, match=words):
        file.raw(key)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutated_files_are_read_or_rejected(tmp_path: Path, data: st.DataObject) -> None:
    good = bytearray(safetensors_bytes(pair(), {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    good = good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good
    path = tmp_path / "x.safetensors"
    path.write_bytes(good)
    try:
        file = open_safetensors(path, Limits())
    except RejectedClient:
        return
    theirs = safetensors.torch.load(bytes(good))  # what we accept, the library accepts
    assert theirs.keys() == file.tensors.keys()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_the_largest_exponent_bounds_every_finite_value(dtype: torch.dtype) -> None:
    from clair_cli.formats.safetensors.elements import look_at

    name = {"16": "F16", "32": "F32", "64": "F64"}[str(dtype)[-2:]]
    name = "BF16" if dtype == torch.bfloat16 else name
    for values in ([1.0], [-0.75, 0.1], [3.0, float("nan"), -float("inf")], [2.0**-10]):
        tensor = torch.tensor(values, dtype=dtype)
        bound = look_at(tensor.view(torch.uint8).numpy().tobytes(), name)[2]
        largest = float(tensor[tensor.isfinite()].abs().max())
        assert 2.0 ** (bound - 1) <= largest < 2.0**bound
    for values in ([0.0], [float("inf")], [torch.finfo(dtype).smallest_normal / 4]):
        data = torch.tensor(values, dtype=dtype).view(torch.uint8).numpy().tobytes()
        assert look_at(data, name)[2] <= -13
    largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    data = largest.view(torch.uint8).numpy().tobytes()
    assert look_at(data, name)[2] in (16, 128, 1024)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64,
     torch.int16, torch.int32, torch.int64],
)  # fmt: skip
def test_a_number_is_read_without_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    other = torch.tensor([3.0])
    safetensors.torch.save_file({"alpha": torch.tensor(-24, dtype=dtype), "b": other}, path)
    opened = open_safetensors(path, Limits())
    assert (number_of(opened, "alpha"), number_of(opened, "b")) == (-24.0, 3.0)
    data = bytearray(path.read_bytes())
    data[opened.data_start + opened.tensors["alpha"].begin] ^= 1
    path.write_bytes(data)
    with pytest.raises(RejectedClient, match="changed while reading"):
        number_of(opened, "alpha")


@pytest.mark.parametrize("change", ["bytes", "size", "another file", "gone", "a link"])
def test_another_file_or_another_time_is_a_change(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({"a": torch.zeros(3)}, {}))
    os.utime(path, ns=(1, 1))
    opened = open_safetensors(path, Limits())
    opened.check_unchanged()
    if change == "bytes":
        path.write_bytes(safetensors_bytes({"a": torch.ones(3)}, {}))
    elif change == "size":
        path.write_bytes(path.read_bytes() + b" ")
        os.utime(path, ns=(1, 1))
    elif change == "gone":
        path.unlink()
    else:
        other = tmp_path / "b.safetensors"
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(1, 1))
        if change == "another file":
            other.replace(path)
        else:
            path.unlink()
            path.symlink_to(other)
    with pytest.raises(RejectedClient, match="changed while reading"):
        opened.check_unchanged()


@pytest.mark.parametrize("kept", [True, False])
def test_neighbours_are_read_at_once(tmp_path: Path, kept: bool) -> None:
    """And each of them is compared: the error names the one that changed."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({k: torch.full((3,), float(ord(k))) for k in "abc"}, {}))
    file = open_safetensors(path, Limits(), memory=KeptBytes(1000) if kept else None)
    entries = list(file.tensors.values())
    assert [[e.name for e in run] for run in runs(entries, 24)] == [["a", "b"], ["c"]]
    assert [[e.name for e in run] for run in runs(entries, 23)] == [["a"], ["b"], ["c"]]
    assert bytes(file.raw("a", "b", "c")) == path.read_bytes()[file.data_start :]
    assert bytes(file.raw("b", "c")) == bytes(file.raw("b")) + bytes(file.raw("c"))
    with pytest.raises(AssertionError, match="apart"):
        file.raw("a", "c")
    data = bytearray(path.read_bytes())
    data[file.data_start + 12] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(RejectedClient, match="changed while reading tensor 'b'"):
        file.raw("a", "b", "c")
    assert len(file.raw("c")) == 12
