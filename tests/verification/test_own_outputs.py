"""`clair verify` finds nothing wrong with what clair wrote, whatever the options and names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli import UsageError
from clair_cli.cohort import load as cohort
from clair_cli.formats import limits
from clair_cli.verification import files as result_check
from tests import cohorts
from tests.cli.test_process import environment
from tests.cohorts import clair

BYTES = os.fsdecode(b"caf\xe9")


def unet(side: str, module: str) -> str:
    return f"unet.{module}.lora_{side}.weight"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(4))
    return tmp_path


def test_without_clients_torch_is_not_loaded(work: Path) -> None:
    clair_cli.merge("clients", "m")
    command = [sys.executable, "-X", "importtime", "-m", "clair_cli", "verify", "m"]
    found = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "clair_cli.verification.files" in loaded
    assert "torch" not in loaded


def test_a_rank_above_the_usual_limit(work: Path) -> None:
    rank = limits.Limits().max_rank + 1
    clair_cli.merge("clients", "m", rank=rank, limit={"rank": rank})
    assert clair_cli.verify("m").differences == ()
    assert clair_cli.verify("m", "clients").differences == ()


def test_sizes_above_the_usual_limits(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clair_cli.merge("clients", "m.safetensors")
    small = replace(limits.Limits(), max_file_bytes=100, max_header_bytes=100, max_tensors=2)
    monkeypatch.setattr(result_check, "Limits", lambda: small)
    monkeypatch.setattr(cohort, "Limits", lambda: small)
    assert clair_cli.verify("m.safetensors").differences == ()


@pytest.mark.parametrize("output", ["m", "m.safetensors"])
def test_an_alpha_that_float32_rounds(work: Path, output: str) -> None:
    odd = {n: replace(c, config={**c.config, "lora_alpha": 10.3}) for n, c in
           cohorts.honest(4).items()}  # fmt: skip
    cohorts.save(Path("unet"), odd, "file", names=unet)
    clair_cli.merge("unet", output, keep_alpha=True, tensor_names="kohya")
    assert clair_cli.verify(output, "unet").differences == ()


def test_the_weights_file_of_a_pipelines_folder_stands_for_the_folder(work: Path) -> None:
    cohorts.save(Path("unet"), cohorts.honest(4), "file", names=unet)
    clair_cli.merge("unet", "m", tensor_names="kohya")
    found = clair_cli.verify("m/pytorch_lora_weights.safetensors", "unet")
    assert (found.differences, found.report_path) == ((), "m/report.json")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not Unicode")
def test_a_name_that_is_not_unicode(work: Path) -> None:
    os.rename("clients/c0", f"clients/{BYTES}")
    clair_cli.refine("clients", "refined")
    assert clair_cli.verify("refined").differences == ()
    assert clair_cli.verify("refined", "clients").differences == ()
    clair_cli.merge("clients", "m", exclude=[BYTES])
    assert clair_cli.verify("m", "clients").differences == ()
    report = json.loads(Path("refined/report.json").read_text())
    for client in report["clients"]:
        client["name_bytes"] = "Li4vdXA="  # ../up
    Path("bad.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match=r"'\.\./up' is no client's folder"):
        clair_cli.verify("refined", report="bad.json")


def test_a_device_that_is_not_here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    clair_cli.merge("clients", "m", report="r.json")
    report = json.loads(Path("r.json").read_text())
    report["options"]["device"] = "cuda"
    Path("r.json").write_text(json.dumps(report))
    Path("m/report.json").unlink()
    result = clair("verify", "m", "clients", "--report", "r.json")
    assert result.exit_code == 0
    assert "note: the report was made with --device cuda, which is not here" in result.stdout
    result = clair("verify", "m", "clients", "--report", "r.json", "--device", "cpu")
    assert (result.exit_code, "note:" in result.stdout) == (0, False)
    result = clair("verify", "m", "clients", "--report", "r.json", "--device", "cuda")
    assert result.exit_code == 2 and "no CUDA device here" in result.stderr


def test_last_bits_of_another_device_are_pointed_at(work: Path) -> None:
    """The report does not say which: only where the clients' files are the same, it may be that."""
    clair_cli.merge("clients", "m")
    path = Path("m/adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = json.loads(Path("m/report.json").read_text())
    report["merged"]["sha256"] = hashlib.sha256(data).hexdigest()
    Path("m/report.json").write_text(json.dumps(report))
    found = clair("verify", "m", "clients", "--device", "cpu")
    assert found.exit_code == 3
    assert "this was a CPU, so try --device cuda if the adapter was made there" in found.stdout
    shutil.copytree("clients/c0", "clients/new")
    found = clair("verify", "m", "clients", "--device", "cpu")
    assert found.exit_code == 3 and "note: CPU and GPU differ" not in found.stdout


@pytest.mark.parametrize(
    "options", [{"exclude": [1]}, {"assume_alpha": [1]}, {"assume_alpha": {}}], ids=str
)
def test_options_of_a_wrong_type_are_damage(work: Path, options: dict[str, Any]) -> None:
    clair_cli.merge("clients", "m.safetensors")
    report = json.loads(Path("m.report.json").read_text())
    report["options"] |= options
    Path("bad.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="options are damaged"):
        clair_cli.verify("m.safetensors", "clients", report="bad.json")
    with pytest.raises(UsageError, match=next(iter(options))):
        clair_cli.merge("clients", **options)


@pytest.mark.parametrize("form", ["peft", "kohya", "refined"])
def test_a_second_adapter_in_the_folder_is_seen(work: Path, form: str) -> None:
    """Which of two a loader takes is up to the loader."""
    if form == "kohya":
        cohorts.save(Path("unet"), cohorts.honest(4), "file", names=unet)
        clair_cli.merge("unet", "m", tensor_names="kohya")
        planted = Path("m/adapter_config.json")
    else:
        (clair_cli.refine if form == "refined" else clair_cli.merge)("clients", "m")
        planted = Path("m", "c0" if form == "refined" else "", "pytorch_lora_weights.safetensors")
    assert clair_cli.verify("m").differences == ()
    fields = {"peft_type": "LORA", "r": 16, "lora_alpha": 16}
    planted.write_text(json.dumps(fields))
    (planted.parent / "README.md").write_text("words")
    found = clair_cli.verify("m").differences
    assert found == (f"'{planted.as_posix()}' is there, and the report does not name it",)
