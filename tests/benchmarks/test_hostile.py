"""The benchmarks of hostile inputs and of kills: what they make and how they judge (never their
seconds)."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import clair_cli
from benchmarks.attacks.hostile import (
    Row,
    Run,
    beyond,
    distance,
    exact_mean,
    line,
    measure,
    prepare,
)
from benchmarks.attacks.hostile_inputs import CASES, HOSTILE, LONG, MODULES, WEIGHTS, factors
from benchmarks.speed.kills import OUT, REPORT, Ended, Pair, killed_run, pair_in, place_of, wrong

LM_HEAD = "lm_head of twice the honest norm"
ZEROS = "one module with an axis of 20,000,000 zeros"
SLOW = ("rank 1024 in 9,900 layers of 1 x 1", "20,000 .bin files")
MB = 1_000_000
ROW = Row("x", 0, 2.0, 250 * MB, 700, 100_000, 400_000, 75_000, "benign", 0.1)


def test_the_honest_round_and_one_hostile_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hostile one as a process of its own, as the benchmark runs all."""

    def in_this_process(clients: Path, out: Path, *_: object) -> Run:
        clair_cli.merge(clients, out)
        return Run(0, 1.0, 100 * MB, 0)

    with ThreadPoolExecutor(1) as helper:
        hostile = measure(LM_HEAD, tmp_path, 1, 60, helper)
        monkeypatch.setattr("benchmarks.attacks.hostile.run_clair", in_this_process)
        honest = measure("honest", tmp_path, 1, 60, helper)
    for row in (honest, hostile):
        assert row.code == 0 and row.cpu > 0 and row.peak > 50 * MB and row.report > 10_000
        assert row.distance is not None and 0 < row.distance < 1
    assert honest.verdict == "benign"
    assert honest.file < hostile.file < 1.2 * honest.file
    assert not list(tmp_path.iterdir()), "nothing is left"
    assert line(hostile, honest).startswith(f"| {LM_HEAD} | 0 | ")


@pytest.mark.parametrize("name", [name for name in CASES if name not in SLOW])
def test_every_case_can_be_made(tmp_path: Path, name: str) -> None:
    """The seven honest clients stay as they were, and something is put beside them."""
    clients = tmp_path / "clients"
    assert prepare(name, clients) > 0
    kept = [path for path in clients.iterdir() if path.stem in {f"client-{k}" for k in range(7)}]
    assert len(kept) >= (6 if "two such" in name else 7)


def test_what_the_cases_are(tmp_path: Path) -> None:
    prepare(ZEROS, tmp_path / "long")
    file = tmp_path / "long" / HOSTILE / WEIGHTS
    assert file.stat().st_size > 4 * LONG > 100 * 512 * file.stat().st_blocks
    prepare("lm_head of twice the honest norm", tmp_path / "head")
    tensors = load_file(tmp_path / "head" / HOSTILE / WEIGHTS)
    norms = {
        m: np.linalg.norm(tensors[f"base_model.model.{m}.lora_B.weight"]
                          @ tensors[f"base_model.model.{m}.lora_A.weight"])
        for m in (*MODULES, "lm_head")
    }  # fmt: skip
    typical = np.median([norms[m] for m in MODULES])
    assert norms["lm_head"] == pytest.approx(2 * typical, rel=0.2)
    prepare("config with 130,000 target_modules", tmp_path / "targets")
    config = tmp_path / "targets" / HOSTILE / "adapter_config.json"
    assert 800_000 < config.stat().st_size < 1_000_000, "below the limit of a config"
    assert len(json.loads(config.read_text())["target_modules"]) == 130_000


def test_the_distance_is_that_of_dense_delta_weights(tmp_path: Path) -> None:
    clients = {
        f"c{k}": (
            {f"base_model.model.{m}.lora_{side}.weight": array for m, pair in factors(k).items()
             for side, array in zip("AB", _tensors(pair), strict=True)},
            {"peft_type": "LORA", "r": 8, "lora_alpha": 16},
        )
        for k in range(7)
    }  # fmt: skip
    out = tmp_path / "out.safetensors"
    clair_cli.merge(clients, out, rank="full", dtype="float32")
    assert distance(out) < 1e-6
    clair_cli.merge(clients, out, rank=1, dtype="float32", force=True)
    mean = exact_mean()
    tails = [np.linalg.svd(delta, compute_uv=False)[1:] for delta in mean.values()]
    total = sum(float(np.sum(np.square(delta))) for delta in mean.values())
    lost = sum(float(np.sum(np.square(tail))) for tail in tails)
    assert distance(out) == pytest.approx((lost / total) ** 0.5, rel=1e-5)


def _tensors(pair: tuple[np.ndarray, np.ndarray]) -> list[object]:
    torch = pytest.importorskip("torch")
    return [torch.tensor(np.ascontiguousarray(side, np.float32)) for side in pair]


def test_limits() -> None:
    assert not beyond(ROW, ROW)
    assert not beyond(replace(ROW, cpu=5.9, peak=ROW.peak + 64 * MB + 299_000, result=800_000), ROW)
    assert len(beyond(replace(ROW, cpu=6.1), ROW)) == 1
    assert len(beyond(replace(ROW, code=None), ROW)) == 1
    assert len(beyond(replace(ROW, peak=ROW.peak + 64 * MB + 301_000), ROW)) == 1
    assert len(beyond(replace(ROW, result=800_001), ROW)) == 1


def test_what_is_wrong_after_a_signal() -> None:
    term, kill = signal.SIGTERM, signal.SIGKILL
    assert not wrong(Ended(143, "old", 0, ""), term)
    assert not wrong(Ended(0, "new", 0, ""), term)
    assert not wrong(Ended(-kill, "between", 2, ""), kill)
    assert wrong(Ended(0, "old", 0, ""), term)
    assert wrong(Ended(143, "between", 0, ""), term)
    assert wrong(Ended(143, "old", 1, ""), term)
    assert wrong(Ended(-signal.SIGABRT, "old", 0, "terminate called"), term)
    assert wrong(Ended(-kill, "torn: adapter", 0, ""), kill)


def test_pairs_are_told_apart(tmp_path: Path) -> None:
    """Old, new, of both, and one that no report vouches for."""
    prepare("honest", tmp_path / "clients")
    pairs, files = [], []
    for rank in ("8", "16"):
        clair_cli.merge(tmp_path / "clients", tmp_path / OUT, rank=int(rank), force=True)
        pairs.append(pair_in(tmp_path))
        files.append({name: (tmp_path / name).read_bytes() for name in (OUT, REPORT)})
    assert place_of(tmp_path, *pairs) == "new"
    assert place_of(tmp_path, *pairs[::-1]) == "old"
    (tmp_path / OUT).write_bytes(files[0][OUT])
    assert place_of(tmp_path, *pairs) == "between"
    assert place_of(tmp_path, pair_in(tmp_path), pairs[0]).startswith("verify: ")
    (tmp_path / OUT).write_bytes(files[0][OUT][:-8])
    assert place_of(tmp_path, *pairs).startswith("torn")
    for name, data in files[0].items():
        (tmp_path / name).write_bytes(data)


def test_a_run_that_is_killed_at_once_leaves_the_old_pair(tmp_path: Path) -> None:
    prepare("honest", tmp_path / "clients")
    folder = tmp_path / "out"
    folder.mkdir()
    clair_cli.merge(tmp_path / "clients", folder / OUT, rank=8)
    old = pair_in(folder)
    ended = killed_run(
        tmp_path / "clients", folder, "16", signal.SIGKILL, 0.0, (old, Pair("none", "none"))
    )
    assert (ended.code, ended.place) == (-signal.SIGKILL, "old")
    assert not wrong(ended, signal.SIGKILL)
    assert sorted(os.listdir(folder)) == sorted((OUT, REPORT))
