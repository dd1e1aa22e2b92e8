"""How often factors are read by an engine that has room for what one pass makes for the next."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.adapters.adapter import Adapter
from clair_cli.engine.engine import CpuEngine
from clair_cli.workflow import batches, merge, run
from tests.engine.test_engine import equal
from tests.workflow import test_minority as minority
from tests.workflow.test_paths import CASES, clients


class Roomy(CpuEngine):
    """Has the memory of other machines for what one look makes for the next."""

    stores = 2**30


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each client's factors of each module are read after they were checked."""
    found = Counter[tuple[str, str]]()
    real = Adapter.stored_factors

    def counted(self: Adapter, module: str) -> Any:
        found[self.name, module] += 1
        return real(self, module)

    monkeypatch.setattr(Adapter, "stored_factors", counted)
    return found


def several(n_clients: int, *, copies: bool) -> dict[str, Any]:
    """Clients with five modules of two shapes, one of them zero in all."""
    g = torch.Generator().manual_seed(5)
    found = {}
    for k in range(n_clients):
        state = {}
        for n, (out, in_) in enumerate([(40, 30)] * 3 + [(30, 40)] * 2):
            state[f"l{n}.q.lora_A.weight"] = torch.randn(4, in_, generator=g)
            state[f"l{n}.q.lora_B.weight"] = torch.randn(out, 4, generator=g) * (n != 1)
        found[f"c{k}"] = (state, {"r": 4, "lora_alpha": 8})
    return found | {"copy": found["c0"]} if copies else found


COHORTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{case: functools.partial(clients, case) for case in CASES},
    "several modules": functools.partial(several, 5, copies=False),
    "copies": functools.partial(several, 5, copies=True),
    "as many components as width": functools.partial(several, 9, copies=False),
}


@pytest.mark.parametrize(("kept", "rank"), [(0, "auto"), (0, "full"), (2**29, 16)])
@pytest.mark.parametrize("case", COHORTS)
def test_an_engine_with_room_reads_factors_twice(
    monkeypatch: pytest.MonkeyPatch,
    reads: Counter[tuple[str, str]],
    case: str,
    rank: str | int,
    kept: int,
) -> None:
    """Once to compare them, and once to merge them; the bytes are the same."""
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", kept)
    options = {"allow_undetermined": True, "rank": rank, "dtype": "bfloat16"}
    expected = clair_cli.merge(COHORTS[case](), **options)
    assert kept or max(reads.values()) > 2, "an engine without room reads them again"
    reads.clear()
    monkeypatch.setattr(run, "make_engine", lambda _: Roomy(1, lambda *_: None))
    found = clair_cli.merge(COHORTS[case](), **options)
    assert max(reads.values()) == 2
    equal(expected.tensors, found.tensors)
    assert expected.report == found.report


@pytest.mark.parametrize("rank", ["auto", 6])
def test_in_a_later_round_too(
    monkeypatch: pytest.MonkeyPatch, reads: Counter[tuple[str, str]], rank: str | int
) -> None:
    """With a previous adapter no Grams are kept; that adapter is read as often."""
    (state, config), *_ = several(6, copies=False).values()
    options = {"allow_undetermined": True, "previous": (state, config), "rank": rank}
    given = several(5, copies=False)
    expected = clair_cli.merge(given, **options)
    reads.clear()
    monkeypatch.setattr(run, "make_engine", lambda _: Roomy(1, lambda *_: None))
    equal(expected.tensors, clair_cli.merge(given, **options).tensors)
    by_module = [max(n for (_, m), n in reads.items() if m == f"l{k}.q") for k in range(5)]
    assert by_module == [2] * 5


@pytest.mark.parametrize("keep_alpha", [False, True])
def test_a_full_rank_between_what_a_module_may_have(
    monkeypatch: pytest.MonkeyPatch, reads: Counter[tuple[str, str]], keep_alpha: bool
) -> None:
    """Between the number of a module's components and that of the independent ones is the rank of
    another module, which has fewer components."""
    g, given = torch.Generator().manual_seed(3), dict[str, Any]()
    pairs = several(4, copies=True).items()
    for (name, (state, config)), rank in zip(pairs, [4, 4, 4, 6, 0], strict=True):
        own = {key: tensor for key, tensor in state.items() if not key.startswith("l4.")}
        if rank:
            own["l4.q.lora_A.weight"] = torch.randn(rank, 40, generator=g)
            own["l4.q.lora_B.weight"] = torch.randn(30, rank, generator=g)
        given[name] = own, {**config, "rank_pattern": {"l4.q": rank} if rank else {}}
    options: dict[str, Any] = {"allow_undetermined": True, "rank": "full", "modules": "union"}
    options["keep_alpha"] = keep_alpha
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", 0)
    expected = clair_cli.merge(given, **options)
    assert expected.report.merged is not None and expected.report.merged.rank == 18
    reads.clear()
    monkeypatch.setattr(run, "make_engine", lambda _: Roomy(1, lambda *_: None))
    found = clair_cli.merge(given, **options)
    assert max(reads.values()) == 2
    equal(expected.tensors, found.tensors)
    assert expected.report == found.report


def test_ranks_for_which_there_is_no_room_are_cut_later(
    monkeypatch: pytest.MonkeyPatch, reads: Counter[tuple[str, str]]
) -> None:
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", 0)
    options = {"allow_undetermined": True, "dtype": "float32", "error_target": 0.5}
    expected = clair_cli.merge(clients("few terms"), **options)
    assert expected.report.merged is not None and expected.report.merged.rank == 16
    each = 4 * (400 + 300)
    for room, times in ((8 * each + 16 * each, 2), (8 * each + 16 * each - 1, 3)):
        reads.clear()
        engine = Roomy(1, lambda *_: None)
        engine.stores = room
        monkeypatch.setattr(merge, "KEPT_BETWEEN_PASSES", 0)
        monkeypatch.setattr(run, "make_engine", lambda _, engine=engine: engine)
        equal(expected.tensors, clair_cli.merge(clients("few terms"), **options).tensors)
        assert set(reads.values()) == {times}


def own_noise(n_clients: int) -> dict[str, Any]:
    """Clients with two modules, of one direction in common; the last lacks a module."""
    g = torch.Generator().manual_seed(6)
    found, modules = {}, ["l0.q", "l1.q"]
    common = {
        m: (torch.randn(1, 30, generator=g), torch.randn(40, 1, generator=g)) for m in modules
    }
    for k in range(n_clients):
        state = {}
        for m, (A, B) in common.items():
            noise_A, noise_B = torch.randn(3, 30, generator=g), torch.randn(40, 3, generator=g)
            state[f"{m}.lora_A.weight"] = torch.cat([A, noise_A])
            state[f"{m}.lora_B.weight"] = torch.cat([B, 0.1 * noise_B], dim=1)
        found[f"c{k}"] = (state, {"r": 4, "lora_alpha": 4})
    return found


# How often each tensor is read: to compare, to measure noise, to refine, to write.
@pytest.mark.parametrize(
    ("options", "times"), [({}, 3), ({"noise": 0.1}, 4), ({"noise": 1e-6, "rank": "same"}, 4)]
)
@pytest.mark.parametrize("later", [False, True])
def test_a_refinement_with_room_reads_factors_twice(
    monkeypatch: pytest.MonkeyPatch,
    reads: Counter[tuple[str, str]],
    options: dict[str, Any],
    times: int,
    later: bool,
) -> None:
    """Of clients that are not refined, once. With a byte less than one module takes, it is read as
    often as without room."""
    given = {**own_noise(6), "far": several(1, copies=False)["c0"]}
    given["far"] = {k: 30 * v for k, v in own_noise(7)["c6"][0].items()}, given["c0"][1]
    options = {**options, "fresh": not later}
    if later:
        state, config = own_noise(8)["c7"]
        options["previous"] = {k: 0.5 * v for k, v in state.items()}, config
    expected = clair_cli.refine(given, **options)
    assert expected.report.refined is not None
    refined = {client.name for client in expected.report.refined.clients}
    assert refined == given.keys() - {"far"}
    for stores, often in ((0, times), (2 * 4 * 4 * 70 * (6 + later), 2)):
        for missing in {0, min(1, stores)}:
            reads.clear()
            engine = Roomy(1, lambda *_: None)
            engine.stores = stores - missing
            monkeypatch.setattr(run, "make_engine", lambda _, engine=engine: engine)
            found = clair_cli.refine(given, **options)
            assert {reads[name, "l1.q"] for name in refined} == {times if missing else often}
            assert reads["far", "l1.q"] == 1
            assert found.report == expected.report
            for name, (tensors, _) in expected.adapters.items():
                equal(tensors, found.adapters[name][0])


@pytest.mark.parametrize(("kept", "rank"), [(0, "auto"), (2**29, "auto"), (0, "full")])
def test_what_a_minority_shares_is_read_twice(
    monkeypatch: pytest.MonkeyPatch, reads: Counter[tuple[str, str]], kept: int, rank: str
) -> None:
    """To compare the clients, and to find it; what that left is merged."""
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", kept)
    expected = clair_cli.merge(minority.clients(), rank=rank)
    apart = {c.name for c in expected.report.clients if c.verdict == "minority"}
    assert apart == set(minority.APART)
    assert {n for (name, _), n in reads.items() if name not in apart} <= {3, 4}
    reads.clear()
    monkeypatch.setattr(run, "make_engine", lambda _: Roomy(1, lambda *_: None))
    found = clair_cli.merge(minority.clients(), rank=rank)
    assert {n for (name, _), n in reads.items() if name not in apart} == {2}
    equal(expected.tensors, found.tensors)
    assert found.report == expected.report
