"""A minority from files to the merge, the report and the exit code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.cli.sentences import verdict_line
from clair_cli.cohort.round import load_round
from clair_cli.engine.device import Device
from clair_cli.engine.factors import RoundFactors
from clair_cli.settings import make_settings
from clair_cli.workflow import shared_part
from clair_cli.workflow.read import read_cohort
from tests.cohorts import texts

NAMES = [f"c{k}" for k in range(10)]
APART = ["c3", "c7"]
CPU = Device("cpu", torch.float64)


def clients(size: float = 1.0) -> dict[str, Any]:
    """Ten clients that share one direction; two of them share another one too, and use fewer
    directions in every other module, as two that share a fault do."""
    g = torch.Generator().manual_seed(4)
    made: dict[str, Any] = {}
    modules = [f"layers.{i}.q" for i in range(6)]
    shared = {
        m: [(torch.randn(1, 60, generator=g), torch.randn(60, 1, generator=g)) for _ in "gm"]
        for m in modules
    }
    for name in NAMES:
        state = {}
        for i, m in enumerate(modules):
            (A, B), (own_A, own_B) = shared[m]
            by = size if name in APART else 0.0
            noise_A, noise_B = torch.randn(4, 60, generator=g), torch.randn(60, 4, generator=g)
            noise_B = noise_B * (0.5 if by and i % 2 and len(APART) == 2 else 1.0)
            state[f"{m}.lora_A.weight"] = torch.cat([A, own_A, noise_A])
            state[f"{m}.lora_B.weight"] = torch.cat([B, by * own_B, noise_B], dim=1)
        made[name] = state, {"r": 6, "lora_alpha": 6}
    return made


def test_they_are_left_out_and_named() -> None:
    report = clair_cli.merge(clients(), minority="exclude").report
    found = {c.name: c for c in report.clients}
    assert [n for n in NAMES if found[n].verdict == "minority"] == APART
    assert {found[n].verdict for n in NAMES if n not in APART} == {"benign"}
    (reason,) = found["c3"].reasons
    assert (reason.code, reason.text) == ("minority", "shares with c7 what all others lack")
    assert [found[n].weight for n in APART] == [0.0, 0.0]
    assert sum(c.weight for c in report.clients) == pytest.approx(1.0)
    assert report.exit_code == 0
    assert APART in [list(g.members) for g in report.cohort.groups]


def delta(result: Any, module: str) -> torch.Tensor:
    """The merged delta weight, float64."""
    lora_A, lora_B = (
        next(t.double() for n, t in result.tensors.items() if f"{module}.lora_{side}" in n)
        for side in "AB"
    )
    return result.config["lora_alpha"] / result.config["r"] * lora_B @ lora_A


def before_delta(state: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    lora_A, lora_B = (state[f"{module}.lora_{side}.weight"].double() for side in "AB")
    return lora_B @ lora_A


@pytest.mark.parametrize("later", [False, True])
def test_what_they_share_is_merged_and_what_is_their_own_is_not(later: bool) -> None:
    given, options = clients(), dict[str, Any](rank="full", dtype="float32")
    if later:
        g = torch.Generator().manual_seed(7)
        before = {
            f"layers.{i}.q.lora_{side}.weight": torch.randn(*shape, generator=g)
            for i in range(6) for side, shape in (("A", (2, 60)), ("B", (60, 2)))
        }  # fmt: skip
        options["previous"] = before, {"r": 2, "lora_alpha": 2}
        for state, config in given.values():
            for name, tensor in before.items():
                state[name] = torch.cat([state[name], tensor], dim=0 if "lora_A" in name else 1)
            config |= {"r": 8, "lora_alpha": 8}
    ways = ("shared", "merge", "exclude")
    found = {how: clair_cli.merge(given, minority=how, **options) for how in ways}
    shared = {c.name: c for c in found["shared"].report.clients}
    assert [n for n in NAMES if shared[n].verdict == "minority"] == APART
    assert sum(c.weight for c in shared.values()) == pytest.approx(1.0)
    assert all(0.001 < shared[n].weight < 0.06 for n in APART)
    said = texts(found["shared"].report.warnings)
    assert any("the part is merged that it shares with the others" in text for text in said)
    state = given[APART[0]][0]
    own, common = [], []
    for i in range(6):
        m = f"layers.{i}.q"
        A, B = state[f"{m}.lora_A.weight"].double(), state[f"{m}.lora_B.weight"].double()
        parts = [(B[:, j : j + 1] @ A[j : j + 1]) for j in (0, 1)]
        merged = {how: delta(result, m) for how, result in found.items()}
        if later:
            P = before_delta(before, m)
            merged = {how: D - P for how, D in merged.items()}
        for part, held in zip(parts, (common, own), strict=True):
            held.append([float((D * part).sum() / part.square().sum()) for D in merged.values()])
    (c_shared, c_merge, c_exclude), (o_shared, o_merge, o_exclude) = (
        torch.tensor(held).mean(0).tolist() for held in (common, own)
    )
    assert o_merge > 0.15 and abs(o_shared) < 0.1 * o_merge and abs(o_exclude) < 0.1 * o_merge
    assert c_shared == pytest.approx(c_exclude, rel=0.1) and c_merge > 0.8
    assert torch.isfinite(torch.tensor(c_shared))
    moved = size = 0.0  # the distance to the plain mean, of what is merged
    for i in range(6):
        m = f"layers.{i}.q"
        whole = sum(
            s[f"{m}.lora_B.weight"].double() @ s[f"{m}.lora_A.weight"].double()
            for s, _ in given.values()
        ) / len(given)  # fmt: skip
        before_it = before_delta(before, m) if later else torch.zeros(60, 60, dtype=torch.float64)
        moved += float((delta(found["shared"], m) - whole).square().sum())
        size += float((whole - before_it).square().sum())
    merged = found["shared"].report.merged
    assert merged.plain_mean_distance == pytest.approx((moved / size) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("most", "directions"), [(1, 1), (64, 3)])
def test_directions_hold_the_share_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, most: int, directions: int
) -> None:
    """Singular values of the mean: 3, 2, 1 and 0.1; its share between clients is 0.99."""
    g = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(20, 4, generator=g)).Q for _ in "lr")
    state = {"m.lora_A.weight": right.T, "m.lora_B.weight": left * torch.tensor([3.0, 2, 1, 0.1])}
    pairs = {f"c{k}": (state, {"r": 4, "lora_alpha": 4}) for k in range(3)}
    settings = make_settings("merge", pairs, None, {})
    factors = RoundFactors(load_round(settings, read_cohort(settings)), CPU)
    monkeypatch.setattr(shared_part, "MAX_DIRECTIONS", most)
    task = shared_part.Sharing((0, 1), (0.5, 0.5), (2,), {"m": 0.99})
    found = shared_part.project(task, factors, "m")
    assert found.left.shape == (20, directions) and found.right.shape == (directions, 20)
    kept = found.left @ found.cores[0] @ found.right
    expected = (
        left[:, :directions] * torch.tensor([3.0, 2, 1])[:directions] @ right[:, :directions].T
    )
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


def test_a_module_in_which_the_others_share_nothing_has_no_shared_part() -> None:
    g = torch.Generator().manual_seed(2)
    state = {
        "m.lora_A.weight": torch.randn(4, 20, generator=g),
        "m.lora_B.weight": torch.randn(20, 4, generator=g),
    }
    pairs = {f"c{k}": (state, {"r": 4, "lora_alpha": 4}) for k in range(4)}
    settings = make_settings("merge", pairs, None, {})
    factors = RoundFactors(load_round(settings, read_cohort(settings)), CPU)
    task = shared_part.Sharing((0, 1), (0.5, 0.5), (2, 3), {"m": 0.0})
    found = shared_part.project(task, factors, "m")
    assert found.left.shape == (20, 0) and found.right.shape == (0, 20)
    assert [core.shape for core in found.cores] == [(0, 0)] * 2
    assert not found.inner.any()


def test_a_round_without_one_is_merged_to_the_same_bytes() -> None:
    given = {n: pair for n, pair in clients().items() if n not in APART[:1]}
    one, other = (clair_cli.merge(given, minority=how) for how in ("shared", "merge"))
    assert not one.report.with_verdict("minority")
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name])


def test_they_are_merged_where_that_is_asked_for() -> None:
    report = clair_cli.merge(clients(), minority="merge").report
    assert {c.weight for c in report.clients} == {0.1}
    assert [c.name for c in report.with_verdict("minority")] == APART
    assert report.options["minority"] == "merge"


def test_the_last_line_names_them() -> None:
    line = verdict_line(clair_cli.inspect(clients()).report)
    assert line == "0 of 10 clients contaminated; 2 minority: c3, c7"


@pytest.mark.parametrize(
    ("fail_on", "code"), [("never", 0), ("contaminated", 0), ("suspicious", 3)]
)
def test_they_trip_suspicious(fail_on: Any, code: int) -> None:
    assert clair_cli.inspect(clients(), fail_on=fail_on).report.exit_code == code


def test_refine_writes_no_adapter_for_them_unless_they_are_merged() -> None:
    assert set(clair_cli.refine(clients()).adapters) == set(NAMES) - set(APART)
    assert set(clair_cli.refine(clients(), minority="merge").adapters) == set(NAMES)


def test_a_large_one_leaves_no_majority() -> None:
    """Four of nine against five; three of nine are a minority."""
    given = clients(0.7)
    state, config = given["c3"]
    for count, outcome in ((3, "judged"), (4, "undetermined")):
        g = torch.Generator().manual_seed(9)
        chosen = {n: given[n] for n in [n for n in NAMES if n not in APART][: 9 - count]}
        for i in range(count):
            other = {k: t.clone() for k, t in state.items()}
            for key in other:  # noise of its own in the same places
                part = other[key][2:] if "lora_A" in key else other[key][:, 2:]
                part.copy_(torch.randn(part.shape, generator=g))
            chosen[f"x{i}"] = other, config
        report = clair_cli.inspect(chosen).report
        assert report.cohort.outcome == outcome
        if outcome == "judged":
            assert len(report.with_verdict("minority")) == 3
        else:
            assert "two groups of similar size" in report.cohort.outcome_text
