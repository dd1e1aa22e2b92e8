"""Fuzz the reader of weights files: whatever the bytes, a file is read or rejected.

    pip install '.[fuzz]' && python fuzz/fuzz_reader.py -max_total_time=600

Reads one client as a run does, with a config beside its file or without. A third of the inputs
are whole files, a third headers to which the right length and some bytes are added, and a third
choices of which fields are wrong, so that the fuzzer gets past the first checks. Options are
libFuzzer's; a folder given keeps the inputs that reached something new. A crash, a hang
(-timeout=N) or memory without bound (-rss_limit_mb=N) stops it and leaves the input in a file.
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
    from clair_cli.adapters.config_source import HEADER_FIELD
    from clair_cli.cohort.load import load_one
    from clair_cli.formats.limits import Limits

LIMITS = Limits(max_header_bytes=1 << 16, max_file_bytes=1 << 20)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
FOLDER = Path(tempfile.mkdtemp(prefix="clair-fuzz-", dir=MEMORY))
CONFIG = {"r": 2, "lora_alpha": 4}
A, B = "base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight"
KOHYA = [f"lora_unet_m.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")]
NAMES = [
    *(A, B, A.replace(".m.", ".n."), A.replace("lora_A", "lora_embedding_A"), *KOHYA),
    *("m.lora_A.default.weight", "_orig_mod.m.lora_B.weight", "unet.m.lora.down.weight"),
    *("m.processor.to_q_lora.up.weight", "m.lora_magnitude_vector", "__metadata__", ""),
]


def seeds() -> list[bytes]:
    """Good files: PEFT's names, with the config inside, and kohya's."""
    header, kohya = ({} for _ in range(2))
    for place, (name, short) in enumerate(zip((A, B), KOHYA[:2], strict=True)):
        entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * place, 16 * place + 16]}
        header[name] = kohya[short] = entry
    inside = {HEADER_FIELD: json.dumps({**CONFIG, "rank_pattern": {"m": 2}})}
    headers = [header, {"__metadata__": inside, **header}, kohya]
    texts = [json.dumps(h, separators=(",", ":")).encode() for h in headers]
    files = [struct.pack("<Q", len(text)) + text + bytes(32) for text in texts]
    return [b"\0" + file for file in files] + [b"\x01\x20" + text for text in texts]


def read(data: bytes, *, config: bool) -> None:
    """Read one client as a run does; anything but an adapter or a rejection escapes."""
    path = FOLDER / ("with" if config else "without") / "x.safetensors"
    path.write_bytes(data)
    cohort = load_one(path, limits=LIMITS)
    for adapter in cohort.adapters:
        assert adapter.modules and adapter.content()
    for rejection in cohort.rejected:
        assert rejection.message.isprintable(), ascii(rejection.message)
    assert len(cohort.adapters) + len(cohort.rejected) == 1


def built(data: bytes) -> bytes:
    """A header whose fields are each almost right, and as many bytes as the fuzzer likes."""
    fuzzed = atheris.FuzzedDataProvider(data)
    numbers = [0, 1, 2, 4, 8, 16, 32, -1, 2**40, 2**53, 2**63, 2**64, 2.0, True, None, "2"]
    header: dict[str, object] = {}
    position = 0
    for _ in range(fuzzed.ConsumeIntInRange(1, 4)):
        name = fuzzed.PickValueInList([*NAMES, fuzzed.ConsumeUnicode(12)])
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
    """The first byte says what the others are, a file, a header, or choices for one, and whether
    there is a config beside it."""
    if len(data) < 3:
        read(data, config=True)
        return
    kind, config = data[0] % 3, data[0] < 128
    if kind == 0:
        read(data[1:], config=config)
    elif kind == 1:  # before it the number of bytes that follow it
        header = data[2:]
        read(struct.pack("<Q", len(header)) + header + bytes(data[1]), config=config)
    else:
        read(built(data[1:]), config=config)


def main() -> None:
    folders = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    if not folders:
        folder = Path(tempfile.mkdtemp(prefix="clair-fuzz-corpus-"))
        sys.argv.append(str(folder))
        folders = [str(folder)]
    for name in ("with", "without"):
        (FOLDER / name).mkdir()
    (FOLDER / "with" / "adapter_config.json").write_text(json.dumps(CONFIG))
    for number, seed in enumerate(seeds()):
        (Path(folders[0]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
