"""A round that takes more memory than there is ends before it takes any."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.cohort.round import load_round
from clair_cli.engine.engine import make_engine
from clair_cli.settings import make_settings
from clair_cli.workflow import available_memory as available
from clair_cli.workflow import memory_estimate
from clair_cli.workflow.read import read_cohort
from tests import cohorts
from tests.cohorts import clair

CLIENTS = Path("clients")


@pytest.fixture
def needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a round in the working folder is said to need on one thread."""
    monkeypatch.chdir(tmp_path)
    cohorts.save(CLIENTS, cohorts.honest(5))
    settings = make_settings("merge", CLIENTS, None, {"threads": 1})
    engine = make_engine(settings)
    engine.close()
    return memory_estimate.work_memory(load_round(settings, read_cohort(settings)), engine)


@pytest.mark.parametrize(("less", "code"), [(0, 0), (1, 1)])
def test_just_enough_and_one_byte_less(
    needed: int, monkeypatch: pytest.MonkeyPatch, less: int, code: int
) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: needed - less)
    result = clair("merge", CLIENTS, "-o", "m.safetensors", "--threads", "1")
    assert result.exit_code == code
    assert Path("m.safetensors").exists() is (code == 0)
    if code:
        assert f"out of memory: 5 clients with 6 modules need about {needed / 1e6:,.0f} MB on " in (
            result.stderr
        )
        assert "1 threads, and " in result.stderr and "MB are free" in result.stderr
        assert "fewer clients at once, fewer --threads" in result.stderr
        with pytest.raises(MemoryError):
            clair_cli.merge(CLIENTS, threads=1)


def test_nothing_is_checked_where_nothing_is_known(
    needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: None)
    assert clair("merge", CLIENTS, "-o", "m.safetensors").exit_code == 0


def test_the_estimate_has_the_tables_and_the_report() -> None:
    """They grow with modules, with the square of the clients, and with both."""

    def kept(n_clients: int, n_modules: int) -> int:
        modules = [f"q.{m:03}" for m in range(n_modules)]
        rng = cohorts.np.random.default_rng(0)
        one = cohorts.factored({m: rng.standard_normal((2, 2)) for m in modules}, 2)
        pairs = {f"c{k}": (tensors(one), one.fields) for k in range(n_clients)}
        settings = make_settings("merge", pairs, None, {"threads": 1})
        engine = make_engine(settings)
        engine.close()
        return memory_estimate.work_memory(load_round(settings, read_cohort(settings)), engine)

    few, more = kept(4, 10), kept(4, 110)
    assert more - few >= 100 * 4 * (8 * 24 * 4 + 1100)
    assert kept(40, 10) - 10 * few >= 10 * 40 * 8 * 24 * 36


@pytest.mark.parametrize(("over", "counted"), [(0, 0), (1, 10)])
def test_large_tables_are_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: int, counted: int
) -> None:
    cohorts.save(tmp_path / "clients", cohorts.honest(5))
    settings = make_settings("merge", tmp_path / "clients", None, {"threads": 1})
    engine = make_engine(settings)
    engine.close()
    round_ = load_round(settings, read_cohort(settings))
    table = 8 * 5 * 5 * 6
    monkeypatch.setattr(memory_estimate, "_ROW_BYTES", 10**6)  # so that judging takes the most
    monkeypatch.setattr(memory_estimate, "LARGE", 0)
    without = memory_estimate.work_memory(round_, engine)
    monkeypatch.setattr(memory_estimate, "LARGE", table + over)
    assert memory_estimate.work_memory(round_, engine) == without + counted * table


def tensors(client: cohorts.Client) -> dict[str, Any]:
    import torch

    state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
    return state | {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that says nothing, to be filled."""
    monkeypatch.setattr(available, "PROC", tmp_path / "proc")
    monkeypatch.setattr(available, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MEMINFO = "MemTotal:  9000 kB\nMemAvailable:  800 kB\nSwapFree:  50 kB\nHugePages_Total:  0\n"


def test_a_system_that_says_nothing(system: Path) -> None:
    assert available.available_memory() is None
    put(system / "proc/meminfo", "")
    put(system / "proc/self/cgroup", "nonsense\n0::/\n")
    assert available.available_memory() is None


def test_what_the_machine_has(system: Path) -> None:
    put(system / "proc/meminfo", MEMINFO)
    assert available.available_memory() == 850 * 1024


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups(system: Path, version: int) -> None:
    """The tightest counts, and the page cache does not."""
    put(system / "proc/meminfo", MEMINFO)
    root = system / "cgroup" / ("memory" if version == 1 else "")
    limit, used, cache, line = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "4:memory:/a/b")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file", "0::/a/b")
    )
    put(system / "proc/self/cgroup", f"9:cpu:/other\n{line}\n")
    for folder, most in (("a/b", "700000"), ("a", "max" if version == 2 else str(2**63 - 4096))):
        put(root / folder / limit, most + "\n")
        put(root / folder / used, "300000\n")
        put(root / folder / "memory.stat", f"anon 5\n{cache} 20000\n")
    assert available.available_memory() == 420_000
    put(root / "a" / limit, "310000\n")
    assert available.available_memory() == 30_000
    put(root / "a" / used, "400000\n")
    assert available.available_memory() == 0


def test_a_bounded_address_space(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/statm", "10 3 2 1 0 4 0\n")
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (17 * page, resource.RLIM_INFINITY))
    assert available.available_memory() == 7 * page
