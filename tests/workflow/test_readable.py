"""A result that clair could not read again is not published: every limit, at it and above it."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.cohort.load import load_one
from clair_cli.errors import OutputError
from clair_cli.formats.limits import Limits
from clair_cli.workflow import result_limits
from clair_cli.workflow.result_limits import check_adapter, check_report
from tests import cohorts
from tests.cohorts import clair

AT = {"names": ["n" * 9] * 6, "rank": 5, "header_bytes": 70, "file_bytes": 80, "config_bytes": 60}
LIMITS = Limits(
    max_file_bytes=80,
    max_header_bytes=70,
    max_tensors=6,
    max_name_chars=9,
    max_rank=5,
    max_config_bytes=60,
)
ABOVE: list[tuple[dict[str, Any], str, str]] = [
    ({"names": ["n"] * 7}, "7 tensors, and clair reads at most 6", "--limit tensors="),
    ({"names": ["n" * 10]}, "10 characters in a tensor's name", "--modules"),
    ({"rank": 6}, "6 as its rank, and clair reads at most 5", "--limit rank="),
    ({"config_bytes": 61}, "61 bytes of config, and clair reads at most 60", "--modules"),
    ({"header_bytes": 71}, "71 bytes of header, and clair reads at most 70", "--limit header="),
    ({"file_bytes": 81}, "81 bytes, and clair reads at most 80", "--limit file="),
]


@pytest.mark.parametrize(("change", "words", "remedy"), ABOVE)
def test_each_limit_of_the_reader(change: dict[str, Any], words: str, remedy: str) -> None:
    check_adapter(LIMITS, **AT)  # type: ignore[arg-type]
    with pytest.raises(OutputError) as caught:
        check_adapter(LIMITS, **{**AT, **change})
    assert words in caught.value.message and remedy in caught.value.hint


def test_every_limit_on_one_file_is_checked() -> None:
    """`ABOVE` has all but those on a cohort."""
    assert len(fields(Limits)) == len(ABOVE) + len(("clients", "total", "work"))


@pytest.fixture(scope="module", params=["m.safetensors", "m"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clients that each lack another module, beside what they were merged to."""
    folder = tmp_path_factory.mktemp("merged")
    made = cohorts.honest(6)
    for k, module in enumerate(cohorts.MODULES):
        made[f"c{k}"] = cohorts.without(made[f"c{k}"], [module])
    clients = cohorts.save(folder / "clients", made)
    clair_cli.merge(clients, folder / request.param, rank="full")
    return Path(folder / request.param)


@pytest.mark.parametrize(
    "name", ["max_rank", "max_tensors", "max_config_bytes", "max_header_bytes"]
)
def test_nothing_is_published_that_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: Path, name: str
) -> None:
    """What was found in a result is a limit that just fits, and one less does not. The clients'
    own files are smaller: ranks add up, and so do modules that not all have."""
    shutil.copytree(merged.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    output = merged.name
    one = load_one(Path(output)).adapters[0]
    weights = Path(output) / "adapter_model.safetensors" if output == "m" else Path(output)
    config = cohorts.read_safetensors(weights)[1].get("lora_adapter_metadata", "").encode()
    if output == "m":
        config = Path("m/adapter_config.json").read_bytes()
    found = {
        "max_rank": max(m.rank for m in one.modules.values()),
        "max_tensors": 2 * len(one.modules),
        "max_config_bytes": len(config),
        "max_header_bytes": int.from_bytes(weights.read_bytes()[:8], "little"),
    }[name]
    before = cohorts.snapshot(Path())
    clair_cli.merge("clients", output, rank="full", force=True, limit=Limits(**{name: found}))
    assert cohorts.snapshot(Path()).keys() == before.keys()
    with pytest.raises(OutputError, match=f"clair reads at most {found - 1:,}"):
        clair_cli.merge(
            "clients", "again" + output[1:], rank="full", limit=Limits(**{name: found - 1})
        )
    assert cohorts.snapshot(Path()).keys() == before.keys()


def test_a_report_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(3))
    assert clair("merge", "clients", "-o", "m.safetensors").exit_code == 0
    size = Path("m.report.json").stat().st_size
    monkeypatch.setattr(result_limits, "MAX_REPORT", size)
    check_report(size)
    assert clair("merge", "clients", "-o", "m.safetensors", "--force").exit_code == 0
    monkeypatch.setattr(result_limits, "MAX_REPORT", size - 1)
    done = clair("merge", "clients", "-o", "n.safetensors")
    assert done.exit_code == 6
    assert f"{size:,} bytes, and clair reads at most {size - 1:,}" in done.stderr
    monkeypatch.setattr(result_limits, "MAX_REPORT", 10)
    assert clair("inspect", "clients", "-o", "i2.json").exit_code == 6
    assert "n.safetensors" not in os.listdir() and "n.report.json" not in os.listdir()
    assert "i2.json" not in os.listdir()


def test_an_alpha_beyond_whole_numbers_is_written_as_it_is_read(tmp_path: Path) -> None:
    """As a whole number it had more digits than the reader takes."""
    made = {n: cohorts.scaled(c, 1e-20) for n, c in cohorts.honest(3).items()}
    made = {n: cohorts.Client(c.A, c.B, {**c.config, "lora_alpha": 1e22}) for n, c in made.items()}
    clients = cohorts.save(tmp_path / "clients", made)
    clair_cli.merge(clients, tmp_path / "m", keep_alpha=True)
    assert load_one(tmp_path / "m").rejected == ()
