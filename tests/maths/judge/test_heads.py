"""Verdicts on dense tensors: each rule just above and just below, and who has no part in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clair_cli.maths.judge.heads import DenseEvidence, JudgedHeads, judge_heads
from clair_cli.maths.judge.thresholds import LINE
from clair_cli.maths.merge.dense import bounded_mean, middle

N, SIZE = 8, 4096


def unit(*seeds: int) -> list[Tensor]:
    """Directions at right angles to one another."""
    drawn = torch.stack([
        torch.randn(SIZE, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in seeds
    ])  # fmt: skip
    return list(torch.linalg.qr(drawn.mT)[0].mT)


START, MOVED, *OWN = unit(*range(N + 2))


def heads(moves: list[Tensor], start: float = 3.0) -> Tensor:
    """Every client's head: a common start and what it learnt."""
    return torch.stack([start * START + move for move in moves])


def honest(k: int, norm: float = 1.0) -> Tensor:
    return norm * (0.8 * MOVED + 0.6 * OWN[k])


def judged(
    tensors: Tensor, *, previous: Tensor | None = None, matrix: bool = True,
    members: list[int] | None = None,
) -> JudgedHeads:  # fmt: skip
    members = list(range(len(tensors))) if members is None else members
    reference = middle(tensors[members]) if previous is None else previous
    off = tensors - reference
    return judge_heads(
        DenseEvidence(
            ("head.weight",), (SIZE,), (matrix,), (previous is not None,),
            torch.ones(1, len(tensors), dtype=torch.bool),
            (tensors @ tensors.mT)[None], (off @ off.mT)[None],
        ),
        members,
    )  # fmt: skip


def codes(found: JudgedHeads, k: int) -> list[str]:
    return [finding.code for finding in found.verdicts[k].findings]


@pytest.mark.parametrize("previous", [None, 3.0 * START])
def test_honest_heads_are_benign_at_their_full_weight(previous: Tensor | None) -> None:
    found = judged(heads([honest(k) for k in range(N)]), previous=previous)
    assert {v.verdict for v in found.verdicts} == {"benign"}
    assert {v.factor for v in found.verdicts} == {1.0}
    assert found.unrelated == ()


def test_a_layers_weight_and_bias_have_one_size() -> None:
    """A bias of a few numbers varies more than its weight does: ten times the median is nothing
    where the weight is ten times larger still."""
    moves = torch.stack([honest(k) for k in range(N)])
    biases = torch.full((N, 1), 0.01, dtype=torch.float64)
    biases[0] = 0.1
    products = torch.stack([moves @ moves.mT, biases @ biases.mT])
    holders = torch.ones(2, N, dtype=torch.bool)
    for names, verdict in (
        (("head.weight", "head.bias"), "benign"),
        (("a.weight", "b.bias"), "suspicious"),
    ):
        evidence = DenseEvidence(names, (SIZE, 1), (True, False), (True, True), holders, products,
                                 products)  # fmt: skip
        assert judge_heads(evidence, range(N)).verdicts[0].verdict == verdict


def test_a_head_turned_around_is_contaminated() -> None:
    moves = [honest(k) for k in range(N)]
    moves[0] = -moves[0]
    found = judged(heads(moves), previous=3.0 * START)
    assert (found.verdicts[0].verdict, codes(found, 0)) == ("contaminated", ["head_against"])
    assert found.verdicts[0].factor == 1.0  # of an allowed size, should it be merged all the same
    assert {v.verdict for v in found.verdicts[1:]} == {"benign"}


# The others' cosines to one another are 0.64, and to a client of this share of MOVED 0.8 times it.
@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (LINE * 0.8 * 1.05, "benign"),
        (LINE * 0.8 * 0.95, "suspicious"),
        (-LINE * 0.8 * 0.95, "suspicious"),
        (-LINE * 0.8 * 1.05, "contaminated"),
    ],
)
def test_the_line_of_what_changed(share: float, verdict: str) -> None:
    moves = [honest(k) for k in range(N)]
    moves[0] = share * MOVED + (1 - share**2) ** 0.5 * OWN[0]
    assert judged(heads(moves), previous=3.0 * START).verdicts[0].verdict == verdict


def test_where_honest_heads_differ_as_much_nobody_is_named() -> None:
    """Clients of other labels: two move one way, two the other, the rest in between."""
    shares = [0.8, 0.7, 0.5, 0.3, 0.1, -0.2, -0.4, -0.6]
    moves = [s * MOVED + (1 - s**2) ** 0.5 * OWN[k] for k, s in enumerate(shares)]
    found = judged(heads(moves), previous=3.0 * START)
    assert {v.verdict for v in found.verdicts} == {"benign"}


def test_of_a_vector_the_direction_says_nothing() -> None:
    moves = [honest(k) for k in range(N)]
    moves[0] = -moves[0]
    found = judged(heads(moves), previous=3.0 * START, matrix=False)
    assert found.verdicts[0].verdict == "benign"


@pytest.mark.parametrize(("share", "verdict"), [(0.49, "benign"), (0.47, "contaminated")])
def test_a_head_of_another_start(share: float, verdict: str) -> None:
    """The others' heads have cosines of about 0.96; LINE of that is 0.434. The client's are
    0.9 times its share of the start: 0.442 and 0.423."""
    moves = [honest(k) for k in range(N)]
    moves[0] = moves[0] - (1 - share) * 3.0 * START + 3.0 * (1 - share**2) ** 0.5 * OWN[0]
    found = judged(heads(moves), previous=None)
    assert ("head_unlike" in codes(found, 0)) == (verdict == "contaminated"), found


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(1.4, "benign"), (3.2, "benign"), (3.6, "suspicious"), (4.9, "suspicious"),
     (5.3, "contaminated")],
)  # fmt: skip
def test_sizes_of_what_changed(times: float, verdict: str) -> None:
    """1.5 times the median is the cap; its third and fourth powers are 3.4 and 5.1."""
    moves = [honest(k) for k in range(N)]
    moves[0] = honest(0, times)
    found = judged(heads(moves), previous=3.0 * START).verdicts[0]
    assert found.verdict == verdict
    assert found.factor == pytest.approx(min(1.0, 1.5 / times))


def test_heads_that_each_began_at_random_have_nothing_in_common() -> None:
    drawn = torch.randn(N, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert judged(drawn).unrelated == ("head.weight",)
    assert judged(drawn, previous=drawn[0] * 0).unrelated == ()  # a common start all the same
    assert judged(drawn, matrix=False).unrelated == ()


@pytest.mark.parametrize(("common", "unrelated"), [(0.21, True), (0.222, False)])
def test_three_deviations_of_chance_are_something_in_common(common: float, unrelated: bool) -> None:
    """A cosine by chance deviates by 1 / 64 here; three of that are 0.047, the square of 0.217."""
    moves = [common * MOVED + (1 - common**2) ** 0.5 * OWN[k] for k in range(N)]
    assert bool(judged(torch.stack(moves)).unrelated) == unrelated


def test_where_most_are_the_same_another_one_counts_for_nothing() -> None:
    moves = [0 * MOVED for _ in range(N)]
    moves[0] = honest(0)
    found = judged(heads(moves))
    assert (found.verdicts[0].verdict, found.verdicts[0].factor) == ("suspicious", 0.0)
    assert {v.verdict for v in found.verdicts[1:]} == {"benign"}


def test_two_members_judge_nobody() -> None:
    moves = [honest(k) for k in range(N)]
    moves[0] = 100 * moves[0]
    found = judged(heads(moves), members=[1, 2])
    assert {v.verdict for v in found.verdicts} == {"benign"}


def test_the_middle_of_an_even_number_is_a_mean() -> None:
    assert middle(torch.tensor([[1.0], [9.0], [3.0], [2.0]])).tolist() == [2.5]
    assert middle(torch.tensor([[1.0], [9.0], [3.0]])).tolist() == [3.0]


def test_a_bounded_mean_moves_by_the_factors_share() -> None:
    values, reference = torch.tensor([[2.0], [6.0]]).double(), torch.tensor([1.0]).double()
    assert bounded_mean(values, [0.5, 0.5], [1.0, 1.0], reference).tolist() == [4.0]
    assert bounded_mean(values, [0.5, 0.5], [1.0, 0.2], reference).tolist() == [2.0]
    # half of the clients have none, which counts as 0
    assert bounded_mean(values, [0.25, 0.25], [1.0, 0.2], reference).tolist() == [1.0]
