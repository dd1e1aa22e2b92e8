"""Work is described by small values that can be pickled, to run on another machine."""

from __future__ import annotations

import functools
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import clair_cli
from clair_cli.engine.engine import CpuEngine
from clair_cli.workflow import heads as dense_tensors
from clair_cli.workflow import merge_modules, run
from tests import cohorts
from tests.workflow import test_heads as heads
from tests.workflow.test_paths import CASES, clients, save

SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"
T = TypeVar("T")
R = TypeVar("R")


class PickledEngine(CpuEngine):
    """Pickles all work, items and results, as an engine of several machines would."""

    stages: set[str]

    def map(self, stage: str, work: Any, items: Any, *where: Any, **how: Any) -> Iterator[Any]:
        every = list(items)
        for described in (work, *every):
            assert len(pickle.dumps(described)) < 4000
        work, every = pickle.loads(pickle.dumps((work, every)))
        self.stages.add(stage)
        for result in super().map(stage, work, every, *where, **how):
            yield pickle.loads(pickle.dumps(result))


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function with such an engine; every stage must have run on it."""

    def call(function: Callable[..., Any], stages: str, *args: Any, **options: Any) -> Any:
        engine = PickledEngine(2, lambda *_: None)
        engine.stages = set()
        with monkeypatch.context() as patch:
            patch.setattr(run, "make_engine", lambda _: engine)
            result = function(*args, **options)
        assert engine.stages >= set(stages.split())
        return result

    return call


class Forgetful(CpuEngine):
    """Keeps nothing from one look at the modules for the next."""

    def map(self, stage: str, work: Any, items: Any, *where: Any, **how: Any) -> Iterator[Any]:
        (factors,) = where
        factors.cores.clear()
        factors.grams.clear()
        return super().map(stage, work, items, factors, **how)


def equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])


def test_a_merge(pickled: Callable[..., Any]) -> None:
    options = {"dtype": "float32"}
    found = pickled(clair_cli.merge, "comparing merging writing", SAMPLE, **options)
    equal(clair_cli.merge(SAMPLE, **options).tensors, found.tensors)


OPTIONS: dict[str, Any] = {"allow_undetermined": True, "rank": 16, "dtype": "float32"}


@functools.cache
def merged(case: str) -> Any:
    """By the engine that there is."""
    return clair_cli.merge(clients(case), **OPTIONS)


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_merge(pickled: Callable[..., Any], case: str) -> None:
    stages = "comparing merging writing"
    found = pickled(clair_cli.merge, stages, clients(case), **OPTIONS)
    equal(merged(case).tensors, found.tensors)


@pytest.mark.parametrize("case", CASES)
def test_an_engine_may_keep_nothing(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Grams that are made again may differ in the last bit."""
    expected = merged(case)
    seen: list[str] = []
    real = merge_modules.svd
    monkeypatch.setattr(merge_modules, "svd", lambda product: seen.append("QR") or real(product))
    monkeypatch.setattr(run, "make_engine", lambda _: Forgetful(2, lambda *_: None))
    found = clair_cli.merge(clients(case), **OPTIONS)
    assert not seen, "no module is taken for an ill-conditioned one"
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [clair_cli.merge, clair_cli.refine])
def test_heads(
    pickled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]
) -> None:
    """They are read where work is done: once to judge them, once to merge them."""
    given, read = heads.with_heads(cohorts.honest(6), heads.honest_heads(6)), Counter[str]()
    expected, real = function(given), dense_tensors.pieces_of

    def counted(source: Any, key: str, elements: int) -> Any:
        assert stage == ["heads"], "on the machine that the run was started on"
        read[key] += 1
        return real(source, key, elements)

    stage: list[str] = []
    monkeypatch.setattr(dense_tensors, "pieces_of", counted)
    real_map = CpuEngine.map

    def watched(self: Any, name: str, *args: Any, **how: Any) -> Iterator[Any]:
        stage[:] = [name]
        yield from real_map(self, name, *args, **how)
        stage.clear()

    monkeypatch.setattr(CpuEngine, "map", watched)
    found = pickled(function, "heads", given)
    assert expected.report == found.report
    assert read == {heads.HEAD: 2 * 6, heads.BIAS: 2 * 6}


@pytest.mark.parametrize("later", [False, True])
def test_refinement(pickled: Callable[..., Any], tmp_path: Path, later: bool) -> None:
    folder, options = save(tmp_path / "clients", 32), dict[str, Any](fresh=True)
    if later:
        clair_cli.merge(folder, tmp_path / "before", fresh=True)
        options = {"previous": tmp_path / "before", "allow_undetermined": True, "noise": 0.1}
    stages = "comparing refining writing" + " measuring" * later
    found = pickled(clair_cli.refine, stages, folder, **options)
    for name, (tensors, _) in clair_cli.refine(folder, **options).adapters.items():
        equal(tensors, found.adapters[name][0])
