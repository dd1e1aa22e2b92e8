"""On a device that is none, but keeps its tensors apart: the code that a GPU runs, and the same
results. What only a real one shows (its rounding, streams) is in `test_gpu`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.formats.write_adapter import safetensors_bytes
from clair_cli.maths import grams as grams_module
from clair_cli.maths.evidence import gather
from clair_cli.maths.stack import stack_factors
from clair_cli.workflow import engine, judging, merger, reading, resident
from clair_cli.workflow.pool import Workers
from clair_cli.workflow.reading import read_cohort
from clair_cli.workflow.rehearsal import rehearse_comparing, rehearse_merging
from clair_cli.workflow.round import load_round
from clair_cli.workflow.settings import make_settings
from clair_cli.workflow.tensors import factors_of
from tests.pretend import device as pretend
from tests.test_workflow_paths import CASES, clients, losing_c1, save

SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    try:
        pretend.register()
    except ImportError:
        pytest.skip("this torch has no such devices")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call something with everything on the device; it must have done some work."""

    def call(
        function: Any, *args: Any, products: torch.dtype = torch.float64, **options: Any
    ) -> Any:
        before = len(pretend.counted)
        with monkeypatch.context() as patch:
            device = engine.Device(pretend.NAME, products)
            patch.setattr(engine, "choose_device", lambda wanted: device)
            result = function(*args, **options)
        assert len(pretend.counted) > before + 20
        return result

    return call


def same(one: Any, other: Any, rtol: float = 1e-6) -> None:
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]
    for first, second in zip(one.report.clients, other.report.clients, strict=True):
        if first.scores.alignment is not None:
            assert second.scores.alignment == pytest.approx(first.scores.alignment, rel=1e-9)
    assert one.report.merged.error == pytest.approx(other.report.merged.error, rel=rtol, abs=1e-12)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert type(other.tensors[name]) is torch.Tensor
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-2, atol=1e-4)


def test_tensors_of_two_devices_do_not_mix() -> None:
    there = torch.ones(3).to(pretend.NAME)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    assert (there + there).cpu().tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bits", [16, 32])
def test_a_merge_from_grams(tmp_path: Path, far: Any, dtype: str, bits: int) -> None:
    folder = save(tmp_path / "clients", bits)
    options = {"dtype": dtype, "rank": 8}
    same(clair_cli.merge(folder, **options), far(clair_cli.merge, folder, **options))


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_merge(far: Any, case: str) -> None:
    options = {"allow_undetermined": True, "rank": 16}
    same(
        clair_cli.merge(clients(case), **options),
        far(clair_cli.merge, clients(case), **options),
    )


def test_a_sketched_stack(far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "clients", 16)
    monkeypatch.setattr(grams_module, "SKETCHED_ABOVE", 10)
    same(clair_cli.merge(folder), far(clair_cli.merge, folder))


def test_the_sample(far: Any) -> None:
    same(clair_cli.merge(SAMPLE), far(clair_cli.merge, SAMPLE))


def test_a_later_round(far: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "clients", 32)
    merged = clair_cli.merge(folder, tmp_path / "before")
    assert merged.tensors is not None
    options = {"previous": tmp_path / "before", "allow_undetermined": True}
    same(clair_cli.merge(folder, **options), far(clair_cli.merge, folder, **options))


def test_refinement(far: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "clients", 32)
    one, other = clair_cli.refine(folder), far(clair_cli.refine, folder)
    assert one.adapters.keys() == other.adapters.keys()
    for name, (tensors, _) in one.adapters.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(other.adapters[name][0][key], tensor, rtol=1e-4, atol=1e-5)


def test_a_device_without_float64(far: Any, tmp_path: Path) -> None:
    """As MPS: products in float32, verdicts the same."""
    folder = save(tmp_path / "clients", 32)
    one, other = clair_cli.inspect(folder), far(clair_cli.inspect, folder, products=torch.float32)
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]


def test_a_cuda_device_has_a_stream_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With streams that only say whether one is inside them."""
    inside = threading.local()
    made: list[object] = []
    waited: list[object] = []

    class Stream:
        def __init__(self) -> None:
            made.append(self)

        def synchronize(self) -> None:
            waited.append(self)

    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        inside.now = stream
        yield
        inside.now = None

    def work(item: int) -> tuple[int, object]:
        time.sleep(0.01)
        return item, inside.now

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: inside.now)
    on_gpu = engine.Engine(engine.Device("cuda", torch.float64), Workers(2), lambda *_: None)
    found = list(on_gpu.each("working", work, range(20)))
    assert [item for item, _ in found] == list(range(20))
    assert {stream for _, stream in found} == set(made)
    assert len(made) == 2
    assert len(waited) == 20 and set(waited) == set(made)  # others may go on with every result
    on_cpu = engine.Engine(engine.Device("cpu", torch.float64), Workers(2), lambda *_: None)
    assert list(on_cpu.each("working", lambda item: item, range(3))) == [0, 1, 2]
    assert len(made) == 2


def test_what_goes_to_a_cuda_device_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    empty = torch.empty

    def seen(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", seen)
    factors = (torch.ones(2, 5), torch.ones(4, 2), 1.0)
    for device in (engine.Device("cuda", torch.float64), engine.Device("cpu", torch.float64)):
        stack = stack_factors([[factors]], (4, 5), pinned=device.pinned)
        assert torch.equal(stack.lora_A[0], factors[0])
    assert pinned == [True, True, False, False]


def test_the_comparison_stays_on_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only what the judgement needs leaves it: no Gram of the clients' terms does."""
    g = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(4, 90, generator=g), torch.randn(70, 4, generator=g), 1.0) for _ in range(5)
    ]
    here = gather(grams_module.grams(stack_factors([factors, factors[::-1]], (70, 90))))
    stack = stack_factors([factors, factors[::-1]], (70, 90), device=pretend.NAME)
    before = len(pretend.counted)
    pair = grams_module.grams(stack)
    assert pair.B.device.type == pair.norms.device.type == pretend.NAME
    found = gather(pair)
    moved = [name for name in pretend.counted[before:] if name == "_to_copy"]
    assert found.cores.device.type == "cpu" and len(moved) < 20
    for name in ("norms", "cores", "effective_ranks"):
        torch.testing.assert_close(getattr(found, name), getattr(here, name))
    for stacking in ("matrix", "output", "input"):
        torch.testing.assert_close(found.table(stacking).value, here.table(stacking).value)
    some = pair.of_clients([0, 3]).cpu()
    assert some.B.device.type == "cpu" and some.ranks == (4, 4)


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
    return load_round(settings, read_cohort(settings)), engine.Engine(
        device, Workers(2), lambda *_: None
    )


@pytest.mark.parametrize("held", [1, 2**20])
@pytest.mark.parametrize("run", [100, 2**22])
def test_files_on_the_device_give_the_same_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, run: int
) -> None:
    """For all clients, one and some; read again or not; sent in pieces or whole."""
    monkeypatch.setattr(reading, "HANDOVER_BYTES", held)
    monkeypatch.setattr(resident, "_PIECE_BYTES", run)
    round_, on_device = opened(mixed(tmp_path / "clients"))
    there = resident.make_resident(round_, on_device)
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
    small = clair_cli.merge(folder)
    monkeypatch.setattr(engine, "_MEMORY", 1000)
    round_, on_device = opened(folder)
    assert resident.make_resident(round_, on_device) is None
    same(small, far(clair_cli.merge, folder))


@pytest.mark.parametrize("stage", ["loading", "merging", "writing"])
@pytest.mark.parametrize("held", [1, 2**20])
def test_a_change_is_noticed_although_the_bytes_are_on_the_device(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, held: int
) -> None:
    monkeypatch.setattr(reading, "HANDOVER_BYTES", held)
    losing_c1(partial(far, clair_cli.merge), save(tmp_path / "clients", 16), stage)


def test_a_rehearsal_does_all_that_a_round_does() -> None:
    before, there = len(pretend.counted), engine.Device(pretend.NAME, torch.float64)
    rehearse_comparing(there)
    done = set(pretend.counted[before:])
    assert {"linalg_cholesky_ex", "_linalg_eigh", "linalg_solve_triangular", "baddbmm_"} <= done
    before = len(pretend.counted)
    rehearse_merging(there)
    done = set(pretend.counted[before:])
    assert {"linalg_cholesky_ex", "_linalg_eigh", "linalg_solve_triangular", "baddbmm_"} <= done
    assert {"bmm", "copy_", "amin"} <= done  # of what is merged and rounded


class Gpu(engine.Device):
    """Says it is one; nothing is computed there."""

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        yield

    def wait(self) -> None:
        pass


def test_each_thread_rehearses_what_it_will_do_first() -> None:
    done: list[tuple[str, str]] = []

    def note(name: str) -> Callable[[engine.Device], object]:
        def noted(_: engine.Device) -> None:
            done.append((name, threading.current_thread().name))
            time.sleep(0.1)

        return noted

    lanes, workers = Workers(3), Workers(2)
    gpu = engine.Engine(Gpu("cuda", torch.float64), workers, lambda *_: None, lanes)
    gpu.rehearse(note("each"), note("once"))
    for some in (lanes, workers):
        some._pool.shutdown(wait=True)
    assert sorted(name for name, _ in done) == ["each", "each", "each", "once"]
    assert len({thread for name, thread in done if name == "each"}) == 3


def foreseen(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> list[int]:
    """Count the modules that cores are made of; the foreseen weights may be wrong."""
    made: list[int] = []
    cores, real = merger.merged_cores, judging._foreseen

    def counted(pair: Any, *args: Any) -> Any:
        made.append(len(pair.B))
        return cores(pair, *args)

    def other(round_: Any, gathered: Any, weights: tuple[float, ...]) -> Any:
        return real(round_, gathered, (0.25, 0.75, *(0.0 for _ in weights[2:])))

    monkeypatch.setattr(merger, "merged_cores", counted)
    if wrong:
        monkeypatch.setattr(judging, "_foreseen", other)
    return made


@pytest.mark.parametrize("wrong", [False, True])
def test_a_merge_begun_ahead_is_the_same_merge(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """Every module once if it was right; else with what the judgement says."""
    folder = save(tmp_path / "clients", 16)
    with monkeypatch.context() as patch:
        patch.setattr(merger.MergeAhead, "begin", lambda *_: None)
        plain = far(clair_cli.merge, folder)
    made = foreseen(monkeypatch, wrong)
    ahead = far(clair_cli.merge, folder)
    assert sum(made) in ((3, 6) if wrong else (3,))  # 3: it had not begun when it was seen
    for name, tensor in plain.tensors.items():
        assert torch.equal(ahead.tensors[name], tensor)
    assert replace(plain.report, options={}) == replace(ahead.report, options={})


def test_nothing_is_begun_ahead_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = foreseen(monkeypatch, wrong=True)
    clair_cli.merge(save(tmp_path / "clients", 16))
    assert sum(made) == 3


def test_what_was_begun_for_a_client_that_is_lost_is_left(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round starts again without it, in which others have the same weights."""
    folder, done = save(tmp_path / "clients", 16), []

    def change(now: str, count: int, total: int) -> None:
        if now == "writing" and not done:
            shutil.rmtree(folder / "c1")
            done.append(True)

    first = far(clair_cli.merge, folder, progress=change)
    assert [c.name for c in first.report.with_verdict("rejected")] == ["c1"]
    again = far(clair_cli.merge, folder)
    for name, tensor in again.tensors.items():
        assert torch.equal(first.tensors[name], tensor)


def test_what_is_sent_is_what_was_checked(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where size and time say that nothing changed."""
    monkeypatch.setattr(reading, "HANDOVER_BYTES", 1)
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
