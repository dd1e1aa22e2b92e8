"""Limits on the input: what `--limit` takes, and what happens to a cohort above them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.limits import NAMES, Limits, changed_limits, parse_limits
from clair_cli.settings import OPTIONS
from tests.hostile import client, load_cohort, rejected


def test_the_help_has_every_name_and_default() -> None:
    given = re.findall(r"[a-z]+=\w+", OPTIONS["limit"].help)
    assert parse_limits(given) == Limits()
    assert [text.partition("=")[0] for text in given] == list(NAMES)


def test_values() -> None:
    limits = parse_limits(["file=2K", "total=3m", "header=4G", "clients=5", "tensors=6", "rank=7"])
    assert (limits.max_file_bytes, limits.max_total_bytes) == (2048, 3 * 1024**2)
    assert (limits.max_header_bytes, limits.max_clients) == (4 * 1024**3, 5)
    assert (limits.max_tensors, limits.max_rank) == (6, 7)
    assert parse_limits({"rank": 9, "file": "1T"}).max_file_bytes == 1024**4
    assert changed_limits(parse_limits({"rank": 9, "clients": 1000})) == {"rank": 9}


def test_an_adapter_of_all_experts_of_a_large_mixture_is_within_the_limits() -> None:
    """Qwen3-30B-A3B: 48 layers of 128 experts with three projections, and attention."""
    names = [
        f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
        for layer in range(48)
        for module in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(
                f"mlp.experts.{e}.{name}_proj"
                for e in range(128)
                for name in ("gate", "up", "down")
            ),
        )
        for side in "AB"
    ]
    begin = 10**10  # offsets of eleven digits, more than the file limit allows
    entry = {"dtype": "BF16", "shape": [2048, 16], "data_offsets": [begin, begin]}
    assert len(names) == 37_248 <= Limits().max_tensors
    assert len(json.dumps(dict.fromkeys(names, entry), separators=(",", ":"))) <= (
        Limits().max_header_bytes
    )


@pytest.mark.parametrize(
    "given",
    [["rank"], ["rank="], ["rank=0"], ["rank=-1"], ["rank=1K"], ["file=1.5G"], ["file=1GB"],
     ["modules=3"], ["=3"], ["rank=\u0663"], ["file=" + "9" * 30], {"rank": 1.5}, {"rank": True},
     [None], ["file=99999999999T"], ["clients=9223372036854775808"]],
)  # fmt: skip
def test_other_values_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="--limit"):
        parse_limits(given)


def test_files_out_of_proportion_go_before_the_round_does(folder: Path) -> None:
    for k in range(4):
        client(folder, f"c{k}")
    size = (folder / "c0" / "adapter_model.safetensors").stat().st_size
    large = client(folder, "large") / "adapter_model.safetensors"
    os.truncate(large, 100 * size)
    enough = Limits(max_total_bytes=200 * size)
    assert "extra bytes" in rejected(load_cohort(folder, limits=enough))["large"]

    cohort = load_cohort(folder, limits=Limits(max_total_bytes=50 * size))
    assert [a.name for a in cohort.adapters] == ["c0", "c1", "c2", "c3", "good"]
    (entry,) = cohort.rejected
    for words in (f"{100 * size:,} bytes", "100 x the median", f"limit of {50 * size:,}"):
        assert words in entry.message
    assert "--limit total=" in entry.hint
    assert entry.path == large.as_posix()

    with pytest.raises(InputRefused, match="for all clients together") as caught:
        load_cohort(folder, limits=Limits(max_total_bytes=4 * size))
    assert "--limit total=" in caught.value.hint
    with pytest.raises(InputRefused, match="6 clients, above the limit of 5") as caught:
        load_cohort(folder, limits=Limits(max_clients=5))
    assert "--limit clients=" in caught.value.hint
    assert load_cohort(folder, limits=Limits(max_clients=5), exclude=["large"]).rejected == ()


def test_four_times_the_median_is_in_proportion(folder: Path) -> None:
    for k in range(3):
        client(folder, f"c{k}")
    size = (folder / "c0" / "adapter_model.safetensors").stat().st_size
    large = client(folder, "large") / "adapter_model.safetensors"
    os.truncate(large, 4 * size)
    with pytest.raises(InputRefused, match="for all clients together"):
        load_cohort(folder, limits=Limits(max_total_bytes=7 * size))
    os.truncate(large, 4 * size + 1)
    cohort = load_cohort(folder, limits=Limits(max_total_bytes=7 * size))
    assert "4 x the median" in rejected(cohort)["large"]


def test_a_file_above_its_own_limit_does_not_count_in_the_total(folder: Path) -> None:
    size = (folder / "good" / "adapter_model.safetensors").stat().st_size
    os.truncate(client(folder, "large") / "adapter_model.safetensors", 100 * size)
    cohort = load_cohort(folder, limits=Limits(max_file_bytes=9 * size, max_total_bytes=9 * size))
    assert "above the limit" in rejected(cohort)["large"]
    assert "--limit file=" in cohort.rejected[0].hint


def test_what_is_not_read_does_not_set_the_typical_size(folder: Path) -> None:
    for k in range(3):
        client(folder, f"c{k}")
    size = (folder / "c0" / "adapter_model.safetensors").stat().st_size
    for k in range(9):
        (folder / f"p{k}.bin").write_bytes(b"")
    os.truncate(client(folder, "large") / "adapter_model.safetensors", 100 * size)
    cohort = load_cohort(folder, limits=Limits(max_total_bytes=50 * size))
    assert [a.name for a in cohort.adapters] == ["c0", "c1", "c2", "good"]
    assert "100 x the median" in rejected(cohort)["large"]
