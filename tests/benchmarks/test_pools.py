"""Pools of trained clients: who is in them, and that training goes on where it stopped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.pools import run, store
from benchmarks.pools.settings import KINDS, Client, Setting, clients_of, one_change_at_a_time
from benchmarks.pools.store import Trained
from benchmarks.pretrained.clients import SETTINGS

MODULE = "base_model.model.layer.query"
TINY = one_change_at_a_time(Setting("base", {"all": 3}, {"label": 2}, rank=2))


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """A client without any training: random factors."""
    generator = store.seeded(seed, client.setting.name, client.name)
    rank = client.setting.rank
    state = {
        f"{MODULE}.lora_A.weight": torch.randn(rank, 6, generator=generator),
        f"{MODULE}.lora_B.weight": torch.randn(5, rank, generator=generator),
    }
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    return (state, config), {"loss": 1.0, "backdoor": 0.0, "previous": str(previous)}


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAIR_BENCH_CACHE", str(tmp_path))
    return tmp_path / "stub" / "seed-0"


def train_pools(*arguments: str) -> None:
    run.train_pools(["--seed", "0", *arguments], "stub", TINY, train)


def test_base_setting_has_the_larger_pool() -> None:
    counts = Counter(client.kind for client in clients_of(SETTINGS["base"]))
    assert counts["honest"] == 16
    assert all(3 <= counts[kind] <= 5 for kind in KINDS)


def test_every_other_setting_changes_one_thing() -> None:
    base = SETTINGS["base"]
    for name, setting in SETTINGS.items():
        counts = Counter(client.kind for client in clients_of(setting))
        if name == "base":
            continue
        assert counts == {"honest": 10, **dict.fromkeys(KINDS, 2)}
        fields = ("iid", "same_start", "steps", "rate", "rank", "all_linear", "second")
        changed = [field for field in fields if getattr(setting, field) != getattr(base, field)]
        assert len(changed) + (len(setting.groups) > 1) == 1


def test_names_of_a_pool_are_unique() -> None:
    for setting in SETTINGS.values():
        names = [client.name for client in clients_of(setting)]
        assert len(set(names)) == len(names)


def test_training_goes_on_where_it_stopped(pools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_pools("--setting", "base", "--limit", "2")
    first = {path: path.stat().st_mtime_ns for path in pools.glob("base/*/*")}
    train_pools("--setting", "base")
    names = [client.name for client in clients_of(TINY["base"])]
    assert sorted(path.name for path in pools.glob("base/*")) == sorted(names)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert len(capsys.readouterr().out.splitlines()) == len(names)  # each was trained once


def test_limit_counts_clients_over_all_settings(pools: Path) -> None:
    train_pools("--limit", "7")
    assert len(list(pools.glob("base/*"))) == 5
    assert len(list(pools.glob("iid/*"))) == 2


def test_half_a_client_is_no_client(pools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_pools("--limit", "1")
    assert not (pools / "base" / "honest-00").exists()
    train_pools("--limit", "1")
    assert store.about(pools / "base" / "honest-00")["loss"] == 1.0


def test_several_processes_train_the_same_clients(
    pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_pools("--setting", "base")
    once = store.load_adapter(pools / "base" / "honest-01")[0]
    for path in pools.glob("base/honest-01/*"):
        path.unlink()
    (pools / "base" / "honest-01").rmdir()
    train_pools("--setting", "base", "--jobs", "2")
    again = store.load_adapter(pools / "base" / "honest-01")[0]
    assert all(torch.equal(again[name], value) for name, value in once.items())


def test_second_round_starts_from_the_honest_mean(pools: Path) -> None:
    with pytest.raises(SystemExit, match="lacks honest clients"):
        train_pools("--setting", "second")
    train_pools("--setting", "base")
    train_pools("--setting", "second", "--limit", "1")
    adapters = [store.load_adapter(path) for path in sorted(pools.glob("base/honest-*"))]
    deltas = [store.dense(*adapter)[MODULE] for adapter in adapters]
    mean = torch.stack(deltas).mean(0)
    state, config = store.load_adapter(pools / "second" / "previous")
    found = store.dense(state, config)[MODULE]
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    assert torch.allclose(found, left[:, :2] * values[:2] @ right[:2], atol=1e-5)
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    about = store.about(pools / "second" / "honest-00")
    assert about["previous"] == str(pools / "second" / "previous")


def test_pools_need_a_folder_outside_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAIR_BENCH_CACHE", raising=False)
    with pytest.raises(SystemExit, match="CLAIR_BENCH_CACHE"):
        train_pools("--limit", "1")
