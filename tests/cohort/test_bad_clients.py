"""One bad client of each kind: rejected by name, the rest read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli.formats.limits import Limits
from tests.hostile import PREFIX, client, config, load_cohort, only_rejection, pair, rejected

CONFIGS = {
    "not json": (b"{", "adapter_config.json is not JSON"),
    "array": (b"[]", "adapter_config.json is not a JSON object"),
    "deep": (b"[" * 100_000, "adapter_config.json is nested too deeply"),
    "large": (b" " * 1_000_001, "1,000,001 bytes, above the limit of 1,000,000"),
    "digits": (b'{"r": ' + b"1" * 5000 + b"}", "number of 5,000 digits"),
    "twice": (b'{"r": 1, "r": 2}', "gives the key 'r' twice"),
    "nan": (b'{"r": 2, "lora_alpha": NaN}', "holds NaN"),
    "dora": (json.dumps(config(use_dora=True)).encode(), "not supported: DoRA"),
    "rank": (json.dumps(config(r=3)).encode(), "have rank 2 but the config says rank 3"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs_reject_one_client(folder: Path, case: str) -> None:
    data, words = CONFIGS[case]
    path = client(folder, "bad") / "adapter_config.json"
    path.write_bytes(data)
    entry = only_rejection(folder)
    assert entry.message.startswith("client 'bad'")
    assert words in entry.message
    assert entry.sha256 is not None
    assert entry.module == ("layers.0.q_proj" if case == "rank" else "")
    if case != "rank":
        assert entry.path == path.as_posix() or case == "dora"


def test_tensors_at_odds_reject_one_client(folder: Path) -> None:
    tensors = pair()
    keys = list(tensors)
    client(folder, "ranks", {keys[0]: torch.ones(2, 8), keys[1]: torch.ones(6, 4)})
    client(folder, "nan", tensors | {keys[0]: torch.full((2, 8), torch.nan)})
    client(folder, "cap", pair(rank=5), config(r=5))
    client(folder, "full", {f"{PREFIX}head.weight": torch.ones(2, 2)})
    cohort = load_cohort(folder, limits=Limits(max_rank=4))
    module = "module 'layers.0.q_proj'"
    assert rejected(cohort) == {
        "cap": f"client 'cap', {module}: rank 5 is above the limit of 4",
        "full": "client 'full': full weights not supported: 1 tensor, "
        "'base_model.model.head.weight'",
        "nan": "client 'nan': tensor 'base_model.model.layers.0.q_proj.lora_A.weight' has "
        "16 NaN or Inf of 16 values, the first at flat index 0",
        "ranks": f"client 'ranks', {module}: lora_A has rank 2 but lora_B has rank 4",
    }
    assert cohort.rejected[3].found == "lora_A (2, 8), lora_B (6, 4)"
    assert all(entry.sha256 for entry in cohort.rejected)


def test_float8_and_mixed_dtypes(folder: Path) -> None:
    from safetensors.torch import save

    tensors = pair()
    keys = list(tensors)
    eight = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    client(folder, "fp8", save(eight))
    client(folder, "mixed", tensors | {keys[0]: tensors[keys[0]].bfloat16()})
    client(
        folder, "halves", {keys[0]: torch.ones(2, 8).half(), keys[1]: torch.ones(6, 2).bfloat16()}
    )
    cohort = load_cohort(folder)
    assert "has dtype F8_E4M3, expected F32, F16, BF16 or F64" in rejected(cohort)["fp8"]
    dtypes = {a.name: a.modules["layers.0.q_proj"].dtype for a in cohort.adapters}
    assert dtypes == {"good": "float32", "mixed": "float32", "halves": "float32"}


def make_pickle(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad/adapter_model.bin").write_bytes(b"\x80\x04")


def make_no_weights(folder: Path) -> None:
    (client(folder, "bad") / "adapter_model.safetensors").unlink()


def make_sharded(folder: Path) -> None:
    path = client(folder, "bad")
    (path / "adapter_model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../good"}}')


def make_two_files(folder: Path) -> None:
    path = client(folder, "bad")
    (path / "adapter_model.safetensors").rename(path / "a.safetensors")
    shutil.copy(path / "a.safetensors", path / "b.safetensors")


def make_two_nested(folder: Path) -> None:
    client(folder / "bad", "a")
    client(folder / "bad", "b")


def make_fifo(folder: Path) -> None:
    path = client(folder, "bad") / "adapter_model.safetensors"
    path.unlink()
    os.mkfifo(path)


def make_config_fifo(folder: Path) -> None:
    path = client(folder, "bad") / "adapter_config.json"
    path.unlink()
    os.mkfifo(path)


def make_weights_folder(folder: Path) -> None:
    path = client(folder, "bad") / "adapter_model.safetensors"
    path.unlink()
    path.mkdir()


def make_file_link(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    path = client(folder, "bad") / "adapter_model.safetensors"
    path.unlink()
    path.symlink_to("../../secret")


def make_config_link(folder: Path) -> None:
    (folder.parent / "secret").write_text(json.dumps(config()))
    path = client(folder, "bad") / "adapter_config.json"
    path.unlink()
    path.symlink_to("../../secret")


def make_folder_link(folder: Path) -> None:
    client(folder.parent, "outside")
    (folder / "bad").symlink_to("../outside")


def make_nested_link(folder: Path) -> None:
    client(folder.parent, "outside")
    (folder / "bad").mkdir()
    (folder / "bad" / "x").symlink_to("../../outside")


def make_loop(folder: Path) -> None:
    (folder / "bad").symlink_to("bad")


def make_dangling(folder: Path) -> None:
    (folder / "bad").symlink_to("nowhere")


def make_self_link(folder: Path) -> None:
    (folder / "bad").symlink_to(".")


REJECTED = [
    (make_pickle, "'adapter_model.bin' is a pickle-based file, not opened"),
    (make_no_weights, "holds adapter_config.json, but no adapter_model.safetensors"),
    (make_sharded, "folder holds a sharded whole model"),
    (make_two_files, "folder holds 2 .safetensors files"),
    (make_two_nested, "folder holds 2 adapters, expected one: 'a', 'b'"),
    (make_fifo, "is a FIFO (named pipe), not a regular file"),
    (make_config_fifo, "is a FIFO (named pipe), not a regular file"),
    (make_weights_folder, "is a folder, not a regular file"),
    (make_file_link, "link 'adapter_model.safetensors' to '../../secret' leaves"),
    (make_config_link, "link 'adapter_config.json' to '../../secret' leaves"),
    (make_folder_link, "link 'bad' to '../outside' leaves the cohort's folder"),
    (make_nested_link, "link 'x' to '../../outside' leaves the cohort's folder"),
    (make_loop, "link 'bad' to 'bad' can't be followed"),
    (make_dangling, "link 'bad' to 'nowhere' is dangling"),
    (make_self_link, "link 'bad' to '.' leaves the cohort's folder"),
]


@pytest.mark.parametrize(("make", "words"), REJECTED, ids=[m.__name__[5:] for m, _ in REJECTED])
def test_a_bad_client_is_rejected_and_the_rest_read(folder: Path, make: Any, words: str) -> None:
    make(folder)
    entry = only_rejection(folder)
    assert entry.name == "bad"
    assert entry.message.startswith("client 'bad': ")
    assert words in entry.message


def test_archives_and_pickles_at_the_top(folder: Path) -> None:
    for name in ("a.zip", "b.tar.gz", "c.npz", "d.bin", "e.pt", "optimizer.pt", "fifo"):
        if name == "fifo":
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "p.safetensors")
    cohort = load_cohort(folder)
    messages = rejected(cohort)
    assert set(messages) == {"a.zip", "b.tar.gz", "c.npz", "d.bin", "e.pt", "p"}
    assert "archive, not unpacked" in messages["c.npz"]
    assert "pickle-based file, not opened" in messages["e.pt"]
    assert "FIFO" in messages["p"]
    assert cohort.ignored == ("fifo", "optimizer.pt")
