"""The table of heads: what one cohort adds to a row."""

from __future__ import annotations

import torch

from benchmarks.heads.table import BAD, N, Row, _attacked, add_cohort


def heads(attack: str) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, ...]]:
    """Twelve heads that learnt nearly the same, the first three by an attack."""
    generator = torch.Generator().manual_seed(0)
    start = (torch.randn(4, 64, generator=generator), torch.zeros(4))
    learnt = [0.2 * torch.randn(s.shape, generator=generator) for s in start]
    found = []
    for k in range(N):
        own = [0.05 * torch.randn(s.shape, generator=generator) for s in start]
        head = [s + c + o for s, c, o in zip(start, learnt, own, strict=True)]
        kind = attack if k < BAD else "none"
        found.append(tuple(_attacked(h, s, kind) for h, s in zip(head, start, strict=True)))
    return found, start  # type: ignore[return-value]


def test_honest_heads_are_merged_as_their_mean() -> None:
    row, (made, start) = Row(), heads("none")
    add_cohort(row, made, start, bad=0, previous=True)  # type: ignore[arg-type]
    assert (row.contaminated, row.suspicious) == (0, 0)
    assert row.error < 1e-6 and row.plain < 1e-6


def test_attacked_heads_are_found_and_cost_the_plain_mean_more() -> None:
    for attack in ("flip", "turn", "scale", "roll"):
        row, (made, start) = Row(), heads(attack)
        add_cohort(row, made, start, bad=BAD, previous=True)  # type: ignore[arg-type]
        assert (row.bad_contaminated, row.contaminated) == (BAD, 0), attack
        assert row.error < 1e-6 < 0.3 < row.plain, attack
