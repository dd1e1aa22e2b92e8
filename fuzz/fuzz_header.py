"""Fuzz the reader of weights files: whatever the bytes, a file is read or rejected.

    pip install '.[fuzz]' && python fuzz/fuzz_header.py -max_total_time=600

Imports only the reader. A third of the inputs are whole files, a third headers to which the right
length and some bytes are added, and a third choices of which fields are wrong, so that the fuzzer
gets past the first checks. Options are libFuzzer's; a folder given keeps the inputs that reached
something new. A crash, a hang (-timeout=N) or memory without bound (-rss_limit_mb=N) stops it and
leaves the input in a file.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clair_cli", "json"]):
    from clair_cli.errors import RejectedClient
    from clair_cli.formats.adapter_config import parse_config
    from clair_cli.formats.config_source import HEADER_FIELD
    from clair_cli.formats.limits import Limits
    from clair_cli.formats.read_adapter import build_adapter
    from clair_cli.formats.safetensors_file import open_safetensors
    from clair_cli.formats.strict_json import parse_strict

LIMITS = Limits(max_header_bytes=1 << 16, max_file_bytes=1 << 20)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
PATH = Path(tempfile.mkdtemp(prefix="clair-fuzz-", dir=MEMORY)) / "x.safetensors"
A, B = "base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight"


def seeds() -> list[bytes]:
    """Two good files, one of them with its config inside."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header = {A: entry, B: {**entry, "data_offsets": [16, 32]}}
    config = json.dumps({"r": 2, "lora_alpha": 4, "rank_pattern": {"m": 2}})
    headers = [header, {"__metadata__": {HEADER_FIELD: config}, **header}]
    texts = [json.dumps(h, separators=(",", ":")).encode() for h in headers]
    files = [struct.pack("<Q", len(text)) + text + bytes(32) for text in texts]
    return [b"\0" + file for file in files] + [b"\x01\x20" + text for text in texts]


def read(data: bytes) -> None:
    """Read a client's weights file, config and modules as a run does; anything but an adapter or
    a rejection escapes."""
    PATH.write_bytes(data)
    try:
        file = open_safetensors(PATH, LIMITS)
        for entry in file.tensors.values():
            assert 0 <= entry.begin < entry.end <= file.size - file.data_start
        fields = {"r": 2, "lora_alpha": 4}
        if HEADER_FIELD in file.metadata:
            try:
                text = file.metadata[HEADER_FIELD].encode()
                fields = parse_strict(text, "config", LIMITS.max_config_bytes)
            except ValueError:
                pass
        config = parse_config(fields)
        adapter = build_adapter("fuzz", "x", file.sha256, file.tensors, file, config, LIMITS)
        assert adapter.modules
    except RejectedClient as error:
        assert error.message.isprintable(), ascii(error.message)


def built(data: bytes) -> bytes:
    """A header whose fields are each almost right, and as many bytes as the fuzzer likes."""
    fuzzed = atheris.FuzzedDataProvider(data)
    numbers = [0, 1, 2, 4, 8, 16, 32, -1, 2**40, 2**53, 2**63, 2**64, 2.0, True, None, "2"]
    header: dict[str, object] = {}
    position = 0
    for _ in range(fuzzed.ConsumeIntInRange(1, 4)):
        known = (A, B, A.replace("lora_A", "lora_B"), A.replace(".m.", ".n."), "__metadata__", "")
        name = fuzzed.PickValueInList([*known, fuzzed.ConsumeUnicode(12)])
        shape = [2, 2] if fuzzed.ConsumeBool() else [
            fuzzed.PickValueInList(numbers) for _ in range(fuzzed.ConsumeIntInRange(0, 9))
        ]  # fmt: skip
        end = position + 16
        offsets = [position, end] if fuzzed.ConsumeBool() else [
            fuzzed.PickValueInList(numbers) for _ in range(fuzzed.ConsumeIntInRange(0, 3))
        ]  # fmt: skip
        dtype = fuzzed.PickValueInList(["F32", "F32", "F64", "F4", "BF16", "I8", "", None, []])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        if fuzzed.ConsumeIntInRange(0, 9) == 0:
            header[name] = fuzzed.PickValueInList([*numbers, [], {}, {"k": "v"}, {"k": 1}])
        position = end
    body = fuzzed.ConsumeBytes(position + fuzzed.ConsumeIntInRange(-1, 1))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body.ljust(position, b"\0")


def one_input(data: bytes) -> None:
    """The first byte says what the others are: a file, a header, or choices for one."""
    if len(data) < 3:
        read(data)
    elif data[0] % 3 == 0:
        read(data[1:])
    elif data[0] % 3 == 1:  # before it the number of bytes that follow it
        header = data[2:]
        read(struct.pack("<Q", len(header)) + header + bytes(data[1]))
    else:
        read(built(data[1:]))


def main() -> None:
    folders = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    if not folders:
        folder = Path(tempfile.mkdtemp(prefix="clair-fuzz-corpus-"))
        sys.argv.append(str(folder))
        folders = [str(folder)]
    for number, seed in enumerate(seeds()):
        (Path(folders[0]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
