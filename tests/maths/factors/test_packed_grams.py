"""Two Grams kept in the memory of one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from clair_cli.maths.factors.block_diagonal import BlockDiagonal, diagonal_blocks, of_blocks
from clair_cli.maths.factors.grams import Grams, grams, packed, packed_bytes
from clair_cli.maths.factors.stack import stack_factors
from tests.maths.factors.test_stack import IN, OUT, cohort


def symmetric(pair: Grams) -> Grams:
    """The lower triangle of B and the upper one of A count."""
    B, A = pair.B.tril(), pair.A.triu()
    return replace(pair, B=B + B.tril(-1).mT, A=A + A.triu(1).mT)


def same(one: Grams, other: Grams) -> None:
    assert one.ranks == other.ranks and one.shape == other.shape
    for name in ("B", "A", "norms", "scale", "by_B", "by_A"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_what_is_kept_is_what_was_made() -> None:
    pair = grams(stack_factors(cohort(), (OUT, IN)))
    kept, whole = packed(pair), symmetric(pair)
    everybody = list(range(len(pair.ranks)))
    same(kept.of_clients(everybody), whole)
    same(kept.of_clients([0, 3]), whole.of_clients([0, 3]))
    numbers = kept.both.numel() + kept.diagonal_A.numel()
    assert 8 * numbers == len(pair.B) * packed_bytes(sum(pair.ranks))
    assert kept.rest.B.numel() == kept.rest.A.numel() == 0


def test_block_diagonal_matrices_are_what_they_stand_for() -> None:
    g = torch.Generator().manual_seed(0)
    for ranks in ((3, 3), (2, 0, 4), (1,)):
        n = sum(ranks)
        square, rows = torch.randn(2, n, n, generator=g), torch.randn(2, n, 5, generator=g)
        square, by = square + square.mT, torch.randn(2, len(ranks), generator=g)
        found: BlockDiagonal = diagonal_blocks(square, ranks)
        owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
        dense = torch.where(owner[:, None] == owner[None, :], square, 0.0)
        torch.testing.assert_close(found.times(rows), dense @ rows)
        torch.testing.assert_close(found.mT.times(rows), dense.mT @ rows)
        torch.testing.assert_close(
            found.scaled(by).times(rows), dense @ (by[:, owner, None] * rows)
        )
        torch.testing.assert_close(found.congruent(square), dense.mT @ square @ dense)
        ends = torch.tensor((0, *ranks)).cumsum(0).tolist()
        places = [slice(*pair) for pair in itertools.pairwise(ends)]
        one = of_blocks([square[0, place, place] for place in places])
        torch.testing.assert_close(one.times(rows[:1]), dense[:1] @ rows[:1])
