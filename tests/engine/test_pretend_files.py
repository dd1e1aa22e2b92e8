"""Files that lie on the device, and what is begun there before it is known to be wanted."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.adapters.write import safetensors_bytes
from clair_cli.cohort.round import load_round
from clair_cli.engine import device as engine
from clair_cli.engine import device_cache
from clair_cli.engine.engine import GpuEngine
from clair_cli.engine.factors import factors_of
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.settings import make_settings
from clair_cli.workflow import read as reading
from clair_cli.workflow.read import read_cohort
from tests.engine import pretend
from tests.engine.pretend import same
from tests.workflow.test_paths import losing_c1, save

pytestmark = pytest.mark.usefixtures("pretend_device")


def mixed(folder: Path) -> Path:
    """Clients of four arrangements: of two ranks, two dtypes, with a module less."""
    g = torch.Generator().manual_seed(5)
    for k in range(7):
        rank, dtype = (4, 6)[k % 2], torch.float32 if k == 3 else torch.bfloat16
        tensors = {}
        for name in "ab" if k == 4 else "abc":
            shape_A, shape_B = (rank, 30), (20, rank)
            tensors[f"{name}.q.lora_A.weight"] = torch.randn(shape_A, generator=g).to(dtype)
            tensors[f"{name}.q.lora_B.weight"] = torch.randn(shape_B, generator=g).to(dtype)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8 + k, "target_modules": ["q"]}
        (folder / f"c{k}").mkdir(parents=True)
        file = folder / f"c{k}" / "adapter_model.safetensors"
        file.write_bytes(safetensors_bytes(tensors, {}))
        (folder / f"c{k}" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def opened(folder: Path) -> tuple[Any, Any]:
    settings = make_settings("inspect", folder, None, {})
    device = engine.Device(pretend.NAME, torch.float64)
    return load_round(settings, read_cohort(settings)), GpuEngine(device, 2, lambda *_: None)


@pytest.mark.parametrize("held", [1, 2**20])
@pytest.mark.parametrize("run", [100, 2**22])
def test_files_on_the_device_give_the_same_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, run: int
) -> None:
    """For all clients, one and some; read again or not; sent in pieces or whole."""
    monkeypatch.setattr(reading, "KEPT_BYTES", held)
    monkeypatch.setattr(device_cache, "_PIECE_BYTES", run)
    round_, on_device = opened(mixed(tmp_path / "clients"))
    there = on_device.load(round_).cache
    assert there is not None
    for modules in ("a.q", "b.q"), ("c.q",), ("a.q", "c.q"):
        for some in None, [2], [0, 1, 3, 4], [0, 2, 6]:
            chosen = range(7) if some is None else some
            each = [[factors_of(round_.adapters[k], m) for k in chosen] for m in modules]
            here, found = stack_factors(each, (20, 30)), there.stack(modules, some)
            assert found.ranks == here.ranks
            assert torch.equal(found.scaling, here.scaling)
            for side in "lora_A", "lora_B":
                one, other = getattr(here, side), getattr(found, side)
                assert type(other) is pretend.PretendTensor
                assert one.dtype == other.dtype
                assert torch.equal(other.cpu(), one)


def test_what_does_not_fit_the_device_stays_in_its_files(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "clients", 16)
    small = clair_cli.merge(folder, fresh=True)
    monkeypatch.setattr(engine, "_MEMORY", 1000)
    round_, on_device = opened(folder)
    assert on_device.load(round_).cache is None
    same(small, far(clair_cli.merge, folder, fresh=True))


@pytest.mark.parametrize("rank", [20, 21])
def test_more_rank_than_width_stays_in_its_file(far: Any, tmp_path: Path, rank: int) -> None:
    """What is computed with has fewer components than the file."""
    folder = mixed(tmp_path / "clients")
    tensors, g = {}, torch.Generator().manual_seed(1)
    for name in "abc":
        tensors[f"{name}.q.lora_A.weight"] = torch.randn(rank, 30, generator=g)
        tensors[f"{name}.q.lora_B.weight"] = torch.randn(20, rank, generator=g)
    (folder / "c6/adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {}))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q"]}
    (folder / "c6/adapter_config.json").write_text(json.dumps(config))
    round_, on_device = opened(folder)
    assert (on_device.load(round_).cache is None) is (rank > 20)
    options = {"allow_undetermined": True, "rank": 16}
    same(clair_cli.merge(folder, **options), far(clair_cli.merge, folder, **options))


@pytest.mark.parametrize("stage", ["loading", "merging", "writing"])
@pytest.mark.parametrize("held", [1, 2**20])
def test_a_change_is_noticed_although_the_bytes_are_on_the_device(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, held: int
) -> None:
    monkeypatch.setattr(reading, "KEPT_BYTES", held)
    losing_c1(partial(far, clair_cli.merge), save(tmp_path / "clients", 16), stage)


def test_a_round_that_starts_again_gives_what_it_would_have_given(far: Any, tmp_path: Path) -> None:
    """Without a client that was lost."""
    folder, done = save(tmp_path / "clients", 16), []

    def change(now: str, count: int, total: int) -> None:
        if now == "writing" and not done:
            shutil.rmtree(folder / "c1")
            done.append(True)

    first = far(clair_cli.merge, folder, progress=change, fresh=True)
    assert [c.name for c in first.report.with_verdict("rejected")] == ["c1"]
    again = far(clair_cli.merge, folder, fresh=True)
    for name, tensor in again.tensors.items():
        assert torch.equal(first.tensors[name], tensor)


def test_what_is_sent_is_what_was_checked(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where size and time say that nothing changed."""
    monkeypatch.setattr(reading, "KEPT_BYTES", 1)
    folder, done = save(tmp_path / "clients", 16), []
    file = folder / "c1" / "adapter_model.safetensors"

    def change(now: str, count: int, total: int) -> None:
        if now == "loading" and not done:
            before, data = file.stat().st_mtime_ns, bytearray(file.read_bytes())
            data[-40] ^= 1
            file.write_bytes(data)
            os.utime(file, ns=(before, before))
            done.append(True)

    result = far(clair_cli.merge, folder, progress=change)
    (lost,) = result.report.with_verdict("rejected")
    assert lost.name == "c1" and done
