"""On a device that is none, but keeps its tensors apart: the code that a GPU runs, and the same
results. What only a real one shows (its rounding, streams) is in `test_gpu`."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.engine import engine
from clair_cli.engine.device import Device
from clair_cli.engine.engine import CpuEngine, GpuEngine
from clair_cli.maths.evidence.gather import gather
from clair_cli.maths.factors import grams as grams_module
from clair_cli.maths.factors.stack import stack_factors
from tests.engine import pretend
from tests.engine.pretend import same
from tests.workflow.test_paths import CASES, clients, save

pytestmark = pytest.mark.usefixtures("pretend_device")
SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"


def test_tensors_of_two_devices_do_not_mix() -> None:
    there = torch.ones(3).to(pretend.NAME)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    assert (there + there).cpu().tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bits", [16, 32])
def test_a_merge_from_grams(tmp_path: Path, far: Any, dtype: str, bits: int) -> None:
    folder = save(tmp_path / "clients", bits)
    options = {"dtype": dtype, "rank": 8, "fresh": True}
    same(clair_cli.merge(folder, **options), far(clair_cli.merge, folder, **options))


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_merge(far: Any, case: str) -> None:
    options = {"allow_undetermined": True, "rank": 16}
    same(
        clair_cli.merge(clients(case), **options),
        far(clair_cli.merge, clients(case), **options),
    )


def test_a_module_that_one_client_lacks(far: Any) -> None:
    """From memory: its Gram is made with the other modules' of its shape, and not kept."""
    g, given = torch.Generator().manual_seed(5), {}
    common = {n: (torch.randn(4, 60, generator=g), torch.randn(50, 4, generator=g)) for n in "abc"}
    for k in range(5):
        tensors = {}
        for name, (lora_A, lora_B) in common.items():
            if (k, name) != (1, "b"):
                noise_A, noise_B = torch.randn(4, 60, generator=g), torch.randn(50, 4, generator=g)
                tensors[f"{name}.q.lora_A.weight"] = lora_A + 0.3 * noise_A
                tensors[f"{name}.q.lora_B.weight"] = lora_B + 0.3 * noise_B
        given[f"c{k}"] = tensors, {"r": 4, "lora_alpha": 8}
    options = {"rank": 8, "fresh": True}
    same(clair_cli.merge(given, **options), far(clair_cli.merge, given, **options))


def test_the_sample(far: Any) -> None:
    same(clair_cli.merge(SAMPLE), far(clair_cli.merge, SAMPLE))


def test_an_adapter_of_the_users_own(far: Any, tmp_path: Path) -> None:
    """From a file that is in the device's memory with the clients'."""
    folder = shutil.copytree(SAMPLE, tmp_path / "clients")
    (folder / "cedar").rename(tmp_path / "own")
    options: dict[str, Any] = {"trust_adapter": tmp_path / "own", "rank": 8}
    here = clair_cli.merge(folder, **options)
    same(here, far(clair_cli.merge, folder, **options))
    assert here.report.inputs.keys() == {"trust_adapter"}


def test_a_later_round(far: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "clients", 32)
    merged = clair_cli.merge(folder, tmp_path / "before", fresh=True)
    assert merged.tensors is not None
    options = {"previous": tmp_path / "before", "allow_undetermined": True}
    same(clair_cli.merge(folder, **options), far(clair_cli.merge, folder, **options))


def test_refinement(far: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "clients", 32)
    one = clair_cli.refine(folder, fresh=True)
    other = far(clair_cli.refine, folder, fresh=True)
    assert one.adapters and one.adapters.keys() == other.adapters.keys()
    for name, (tensors, _) in one.adapters.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(other.adapters[name][0][key], tensor, rtol=1e-4, atol=1e-5)


def test_a_device_without_float64(far: Any, tmp_path: Path) -> None:
    """As MPS: products in float32, verdicts the same."""
    folder = save(tmp_path / "clients", 32)
    one = clair_cli.inspect(folder, fresh=True)
    other = far(clair_cli.inspect, folder, products=torch.float32, fresh=True)
    assert one.report.cohort.outcome == "judged"
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]
    assert one.report.options == other.report.options, "nothing says what computed it"


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

    def work(_: object, item: int) -> tuple[int, object]:
        time.sleep(0.01)
        return item, getattr(inside, "now", None)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: inside.now)
    monkeypatch.setattr(engine, "warm_up", lambda device: None)
    factors: Any = SimpleNamespace(cache=None)
    on_gpu = GpuEngine(Device("cuda", torch.float64), 2, lambda *_: None)
    found = list(on_gpu.map("working", work, range(20), factors))
    assert [item for item, _ in found] == list(range(20))
    assert {stream for _, stream in found} == set(made)
    assert len(made) == 2
    assert len(waited) == 20 and set(waited) == set(made)  # others may go on with every result
    on_cpu = CpuEngine(2, lambda *_: None)
    assert [item for item, _ in on_cpu.map("working", work, range(3), factors)] == [0, 1, 2]
    assert len(made) == 2


def test_what_goes_to_a_cuda_device_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    empty = torch.empty

    def seen(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", seen)
    factors = (torch.ones(2, 5), torch.ones(4, 2), 1.0)
    for device in (Device("cuda", torch.float64), Device("cpu", torch.float64)):
        stack = stack_factors([[factors]], (4, 5), pinned=device.pinned)
        assert torch.equal(stack.lora_A[0], factors[0])
    assert pinned == [True, True, False, False]


def test_the_comparison_stays_on_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only what the judgement needs leaves it: no Gram of the clients' components does."""
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
    assert found.norms.device.type == "cpu" and len(moved) < 20
    for name in ("norms", "effective_ranks"):
        torch.testing.assert_close(getattr(found, name), getattr(here, name))
    for stacking in ("matrix", "output", "input"):
        torch.testing.assert_close(found.table(stacking).value, here.table(stacking).value)
    some = pair.of_clients([0, 3]).cpu()
    assert some.B.device.type == "cpu" and some.ranks == (4, 4)
