"""A client whose modules make far more work than the others' is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clair_cli.cohort import work
from clair_cli.cohort.comparable import check_comparable
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.model import Cohort
from clair_cli.formats.limits import parse_limits
from tests.cohorts import texts
from tests.hostile import config, pair

SHAPE = (40, 60)  # 100 numbers a component


def cohort(*ranks: int, extra: dict[str, torch.Tensor] | None = None) -> Cohort:
    """Clients of these ranks, the last one with more tensors."""
    clients: dict[str, Any] = {
        f"c{k}": (pair("q", rank, SHAPE), config(rank)) for k, rank in enumerate(ranks)
    }
    clients[f"c{len(ranks) - 1}"][0].update(extra or {})
    return adapters_from_memory(clients)


def kept(found: Any) -> list[str]:
    return [adapter.name for adapter in found.adapters]


@pytest.mark.parametrize(("rank", "limit", "goes"), [(16, 8, False), (17, 8, True),
                                                      (17, 9, False), (19, 9, True)])  # fmt: skip
def test_beside_the_median_client(
    monkeypatch: pytest.MonkeyPatch, rank: int, limit: int, goes: bool
) -> None:
    monkeypatch.setattr(work, "LEAST_NUMBERS", 1)
    found = check_comparable(cohort(1, 2, 2, 3, rank), limits=parse_limits({"work": limit}))
    assert ("c4" not in kept(found)) is goes
    assert kept(found)[:4] == ["c0", "c1", "c2", "c3"]
    if goes:
        (entry,) = found.rejected
        words = (
            f"make {rank / 2:.3g} x the median client's work ({rank * 100:,} numbers, the median "
        )
        assert words + "client has 200)" in entry.message
        assert "--limit work=" in entry.hint


@pytest.mark.parametrize(("least", "goes"), [(1700, False), (1699, True)])
def test_little_work_is_free(monkeypatch: pytest.MonkeyPatch, least: int, goes: bool) -> None:
    monkeypatch.setattr(work, "LEAST_NUMBERS", least)
    found = check_comparable(cohort(2, 2, 2, 17))
    assert ("c3" not in kept(found)) is goes


def test_only_what_is_compared_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a module that is left out, nor rank above the width."""
    monkeypatch.setattr(work, "LEAST_NUMBERS", 1)
    large = pair("lm_head", 2, (40, 2000))
    assert len(kept(check_comparable(cohort(2, 2, 2, 2, extra=large)))) == 4
    found = check_comparable(cohort(2, 2, 2, 2, extra=large), "union")
    assert kept(found) == ["c0", "c1", "c2"] and list(found.layouts) == ["q"]
    assert len(kept(check_comparable(cohort(8, 8, 8, 1000)))) == 4


def test_who_goes_makes_no_module_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "LEAST_NUMBERS", 1)
    clients = {f"c{k}": (pair("q", 2, SHAPE), config(2)) for k in range(5)}
    for k in range(2):
        clients[f"c{k}"][0].update(pair("k", 2, SHAPE))
    clients["odd"] = ({**pair("q", 35, SHAPE), **pair("k", 35, SHAPE)}, config(35))
    found = check_comparable(adapters_from_memory(clients))
    assert kept(found) == ["c0", "c1", "c2", "c3", "c4"] and list(found.layouts) == ["q"]
    assert (
        len(found.notes) == 2
        and "1 module ('k') left out: fewer than 3 of 5" in texts(found.notes)[1]
    )


def test_nobody_honest_comes_near() -> None:
    """A small model's clients may differ as they like."""
    assert work.LEAST_NUMBERS == 2**24
    assert len(kept(check_comparable(cohort(1, 1, 1, 40)))) == 4
