"""Makers of one bad client each: the rows about a single client's files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import cohorts
from tests.hostile import raw_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LIKE_THE_OTHERS = cohorts.honest(4)["c3"]
DATA = cohorts.client_bytes(LIKE_THE_OTHERS)
MODULE = "model.layers.0.attn.q_proj"
KEY = cohorts.peft_names("A", MODULE)
Make = Callable[[Path], None]
Header = dict[str, Any]


def client(
    folder: Path, data: bytes = DATA, fields: Mapping[str, Any] | None = None, name: str = "bad"
) -> Path:
    """A PEFT folder with these bytes for weights."""
    path = folder / name
    path.mkdir()
    (path / WEIGHTS).write_bytes(data)
    text = json.dumps({**LIKE_THE_OTHERS.fields, **(fields or {})})
    (path / CONFIG).write_text(text)
    return path


def weights(data: bytes) -> Make:
    return lambda folder: void(client(folder, data))


def fields(**changes: Any) -> Make:
    return lambda folder: void(client(folder, fields=changes))


def config(text: str | bytes) -> Make:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: void((client(folder) / CONFIG).write_bytes(data))


def void(_: object) -> None:
    return None


def parts() -> tuple[Header, bytes]:
    """Header and body of a good file."""
    (size,) = struct.unpack("<Q", DATA[:8])
    header: Header = json.loads(DATA[8 : 8 + size])
    return header, DATA[8 + size :]


def header(change: Callable[[Header], object], more: bytes = b"") -> Make:
    """A good file whose header was changed in place."""

    def make(folder: Path) -> None:
        fields, body = parts()
        change(fields)
        client(folder, raw_file(fields, body + more))

    return make


def entry(**changes: Any) -> Make:
    """A good file with one tensor's header entry changed."""
    return header(lambda h: h[KEY].update(changes))


def added(name: str, array: np.ndarray, dtype: str = "F32", **changes: Any) -> Make:
    """A good client with one more tensor, and other fields in its config."""
    tensors = {cohorts.peft_names(s, m): a for s in "AB" for m, a in factors(s).items()}
    data = cohorts.safetensors({**tensors, name: array}, dtype, {})
    return lambda folder: void(client(folder, data, changes))


def factors(side: str) -> Mapping[str, np.ndarray]:
    return LIKE_THE_OTHERS.A if side == "A" else LIKE_THE_OTHERS.B


def renamed(change: Callable[[str], str]) -> Make:
    """A good file with other tensor names."""
    tensors = {change(cohorts.peft_names(s, m)): a for s in "AB" for m, a in factors(s).items()}
    return weights(cohorts.safetensors(tensors, "F32", {}))


def as_dtype(dtype: str, bits: int) -> Make:
    """Every tensor said to be of this dtype, with as many bytes as that needs."""
    fields, _ = parts()
    position = 0
    for name, tensor in fields.items():
        if name != "__metadata__":
            size = int(np.prod(tensor["shape"])) * bits // 8
            tensor.update(dtype=dtype, data_offsets=[position, position + size])
            position += size
    return weights(raw_file(fields, bytes(position)))


def spoiled(value: float) -> Make:
    """A good client with one value in one module replaced."""
    a = factors("A")[MODULE].copy()
    a[1, 2] = value
    made = cohorts.Client({**factors("A"), MODULE: a}, factors("B"))
    return lambda folder: void(cohorts.save_peft(folder / "bad", made))


def scaled(value: float, dtype: str = "F32", **config: Any) -> Make:
    made = cohorts.scaled(LIKE_THE_OTHERS, value)
    made = cohorts.Client(made.A, made.B, {**made.config, **config})
    return lambda folder: void(cohorts.save_peft(folder / "bad", made, dtype))


def both_factors(value: float) -> Make:
    """Every number near the largest that float32 has."""
    made = cohorts.Client(
        {m: value * a for m, a in factors("A").items()},
        {m: value * b for m, b in factors("B").items()},
    )
    return lambda folder: void(cohorts.save_peft(folder / "bad", made))


def sparse(folder: Path) -> None:
    size = 200 * 1000**3
    shape = [size]
    data = raw_file({KEY: {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}})
    file = client(folder, data) / WEIGHTS
    os.truncate(file, len(data) + size)


def many_tensors(count: int, pad: str = "") -> Make:
    def make(folder: Path) -> None:
        entries = ",".join(
            f'"{pad}{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}'
            for i in range(count)
        )
        client(folder, raw_file("{" + entries + "}", bytes(4 * count)))

    return make


def deep_header(folder: Path) -> None:
    client(folder, raw_file('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"))


def twice(text: str) -> Make:
    """A good file with this entry before the header's own."""
    fields, body = parts()
    return weights(raw_file("{" + text + "," + json.dumps(fields)[1:], body))


def no_config(folder: Path) -> None:
    (client(folder) / CONFIG).unlink()


def no_config_file(folder: Path) -> None:
    (folder / "bad.safetensors").write_bytes(DATA)


def without_its_pair(fields: Header) -> None:
    """Tell of every tensor but one lora_B; its bytes become another's."""
    gone = fields.pop(cohorts.peft_names("B", MODULE))
    size = gone["data_offsets"][1] - gone["data_offsets"][0]
    fields[cohorts.peft_names("A", "spare")] = {**gone, "shape": [1, size // 4]}


def wider(folder: Path) -> None:
    cohorts.save_peft(folder / "bad", cohorts.wider(LIKE_THE_OTHERS))


def taller(folder: Path) -> None:
    b = LIKE_THE_OTHERS.B[MODULE]
    made = cohorts.Client(LIKE_THE_OTHERS.A, {**LIKE_THE_OTHERS.B, MODULE: np.vstack([b, b[:2]])})
    cohorts.save_peft(folder / "bad", made)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(Path.cwd() / "EXPLODED"), "w"))


def bomb() -> bytes:
    return pickle.dumps(Bomb())


def pickle_only(name: str) -> Make:
    def make(folder: Path) -> None:
        path = client(folder)
        (path / WEIGHTS).unlink()
        (path / name).write_bytes(bomb())

    return make


def pickle_file(folder: Path) -> None:
    (folder / "bad.pt").write_bytes(bomb())


def pickle_inside(folder: Path) -> None:
    client(folder, bomb())


def zip_inside(folder: Path) -> None:
    file = client(folder) / WEIGHTS
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bomb())


def gzip_inside(folder: Path) -> None:
    client(folder, b"\x1f\x8b\x08\x00" + bytes(60))


def zip_client(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr("../escaped", "x")
        archive.writestr(WEIGHTS, DATA)


def tar_client(folder: Path) -> None:
    inside = client(folder)
    with tarfile.open(folder / "bad.tar.gz", "w:gz") as archive:
        archive.add(inside, "bad")
    shutil.rmtree(inside)


def npz_client(folder: Path) -> None:
    np.savez(folder / "bad.npz", a=np.zeros(4))


def archive_in_folder(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "adapter.zip").write_bytes(b"PK\x03\x04" + bytes(30))


def no_weights(folder: Path) -> None:
    (client(folder) / WEIGHTS).unlink()


def sharded(folder: Path) -> None:
    path = client(folder)
    (path / WEIGHTS).rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {KEY: "../../secret/model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def secret(folder: Path) -> Path:
    """A client of somebody else's, outside the cohort's folder."""
    outside = folder.resolve().parent / "secret"
    outside.mkdir()
    return client(outside, name="adapter")


def weights_link(folder: Path) -> None:
    target = secret(folder) / WEIGHTS
    path = client(folder)
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to(os.path.relpath(target, path))


def passwd_link(folder: Path) -> None:
    path = client(folder)
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to("/etc/passwd")


def config_link(folder: Path) -> None:
    target = secret(folder) / CONFIG
    path = client(folder)
    (path / CONFIG).unlink()
    (path / CONFIG).symlink_to(target)


def folder_link(folder: Path) -> None:
    (folder / "bad").symlink_to(secret(folder))


def file_link(folder: Path) -> None:
    (folder / "bad.safetensors").symlink_to(secret(folder) / WEIGHTS)


def loop(folder: Path) -> None:
    (folder / "bad").symlink_to("worse")
    (folder / "worse").symlink_to("bad")


def weights_loop(folder: Path) -> None:
    file = client(folder) / WEIGHTS
    file.unlink()
    file.symlink_to(WEIGHTS)


def dangling(folder: Path) -> None:
    (folder / "bad").symlink_to("nowhere")


def fifo(name: str) -> Make:
    def make(folder: Path) -> None:
        file = client(folder) / name
        file.unlink()
        os.mkfifo(file)

    return make


def fifo_file(folder: Path) -> None:
    os.mkfifo(folder / "bad.safetensors")


def a_socket(folder: Path) -> None:
    file = client(folder) / WEIGHTS
    file.unlink()
    before = Path.cwd()
    os.chdir(file.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(WEIGHTS)
    finally:
        os.chdir(before)


def a_folder(folder: Path) -> None:
    file = client(folder) / WEIGHTS
    file.unlink()
    file.mkdir()


def shift(fields: Header, by: int) -> None:
    """Move the last tensor `by` bytes on."""
    last = max((k for k in fields if k != "__metadata__"), key=lambda k: fields[k]["data_offsets"])
    begin, end = fields[last]["data_offsets"]
    fields[last]["data_offsets"] = [begin + by, end + by]
