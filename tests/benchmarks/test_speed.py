"""The speed benchmark's cohorts, peers and arithmetic (never its seconds)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clair_cli
from benchmarks.speed import speed
from benchmarks.speed.cohorts import KINDS, MODELS, client_rank, make_cohort
from benchmarks.speed.peers import exact_mean, mean_of_factors
from benchmarks.speed.speed import PREVIOUS, command, cost, exponent, make_previous
from tests.cohorts import clair


def test_shapes_are_those_of_the_models() -> None:
    modules = list(MODELS["1b"].modules())
    assert len(modules) == 112
    assert sum(16 * (out + in_) for _, out, in_ in modules) == 11_272_192  # rank 16
    assert len(list(MODELS["8b"].modules())) == 224
    assert [client_rank(k, "mixed") for k in range(5)] == [8, 16, 32, 64, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_one_in_five_shares_nothing_and_is_found(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "cohort"
    size = make_cohort(folder, "small", 10, "8", kind=kind)
    assert size == make_cohort(folder, "small", 10, "8"), "kept"
    report = clair_cli.inspect(folder, fresh=True).report
    found = {c.name for c in report.clients if c.verdict == "contaminated"}
    assert found == {"client-004", "client-009"}
    assert report.cohort.stacking == ("output" if kind == "output" else "matrix")


def test_peers_merge_what_they_say(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    make_cohort(folder, "small", 3, "8", layers=1)
    exact_mean(folder, tmp_path / "qr", torch.float64)
    mean_of_factors(folder, tmp_path / "mean")
    found, factors = load_file(tmp_path / "qr"), load_file(tmp_path / "mean")
    states = [load_file(p) for p in sorted(folder.glob("*/*.safetensors"))]
    for key in [key for key in states[0] if ".lora_A." in key]:
        other = key.replace(".lora_A.", ".lora_B.")
        exact = sum(2.0 * s[other].double() @ s[key].double() for s in states) / 3
        got = found[other].double() @ found[key].double()
        assert torch.linalg.norm(got - exact) <= 0.01 * torch.linalg.norm(exact)  # bf16
        wrong = 2.0 * factors[other].double() @ factors[key].double()
        assert torch.linalg.norm(wrong - exact) > 0.1 * torch.linalg.norm(exact)


def test_exponents_and_costs() -> None:
    assert exponent([2, 4, 8], [3, 12, 48]) == pytest.approx(2.0)
    one = cost([sys.executable, "-c", "pass"])
    assert one.wall > 0 and one.cpu > 0 and one.peak > 2**20
    with pytest.raises(RuntimeError, match="ended with 3"):
        cost([sys.executable, "-c", "raise SystemExit(3)"])


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`later` is a merge with what the same clients gave before, at a rank of its own."""

    def in_this_process(command: Sequence[str]) -> None:
        assert clair(*command[3:]).exit_code == 0

    monkeypatch.setattr(speed, "cost", in_this_process)
    assert command("clair", Path("c"), Path("o"), 2)[-2:] == ["--threads", "2"]
    assert command("inspect", Path("c"), Path("o"), None)[2:] == [
        "clair_cli", "inspect", "c", "--fail-on", "never", "--fresh",
    ]  # fmt: skip
    folder = tmp_path / "cohort"
    make_cohort(folder, "small", 5, "8", layers=1)
    make_previous(folder, tmp_path, 16)
    previous = load_file(tmp_path / PREVIOUS)
    assert {t.shape[0] for name, t in previous.items() if ".lora_A." in name} == {16}
    later = command("later", folder, tmp_path, None)
    assert later[-2:] == ["--previous", str(tmp_path / PREVIOUS)]
    speed.cost(later)
    assert (tmp_path / "later.safetensors").exists()
