"""Clients that only show beside the direction that all take: sets of them, and single ones."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence, collected, gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.maths.judge import beside
from clair_cli.maths.judge.beside import find_beside
from clair_cli.maths.judge.judge import Judgement, judge
from clair_cli.maths.judge.signature import Signatures, signatures_of
from clair_cli.maths.judge.thresholds import LINE

WIDTH, RANK, MODULES = 64, 6, 10
GENERIC = 6.0


@functools.cache
def evidence(bad: tuple[int, ...], n: int = 10, seed: int = 0, victim: int = -1) -> Evidence:
    """Clients that share one strong output direction, and the honest ones a weak part beside it.

    Args:
        bad: clients that share another weak part with each other in its place, and use somewhat
            more of the strong direction.
        victim: a client whose update, all but the strong direction, the first bad one takes off
            its own.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    parts = []
    for _ in range(MODULES):
        u, v = normal(WIDTH, 1), normal(1, WIDTH)
        honest, other = ((normal(WIDTH, 2), normal(2, WIDTH)) for _ in range(2))
        clients, rests = [], []
        for k in range(n):
            common = other if k in bad else honest
            own = normal(WIDTH, RANK - 3), normal(RANK - 3, WIDTH)
            A = torch.cat([v + 0.2 * normal(1, WIDTH), common[1], own[1]])
            strong = GENERIC * (1.25 if k in bad else 1.0)
            B = torch.cat([strong * u, 1.2 * common[0], 1.4 * own[0]], dim=1)
            rests.append((A[1:], B[:, 1:]))
            clients.append((A, B))
        if victim >= 0:
            (A, B), (more_A, more_B) = clients[bad[0]], rests[victim]
            clients[bad[0]] = torch.cat([A, more_A]), torch.cat([B, -2.0 * more_B], dim=1)
        stacked = [(A, B, 1.0) for A, B in clients]
        parts.append(gather(grams(stack_factors([stacked], (WIDTH, WIDTH)))))
    return collected((([m], part) for m, part in enumerate(parts)), MODULES)


def judged(bad: tuple[int, ...], **how: int) -> Judgement:
    found = evidence(bad, **how)
    names = [f"c{k}" for k in range(found.norms.shape[1])]
    return judge(found, names, [str(m) for m in range(MODULES)])


def words(found: Judgement) -> str:
    return "".join(one.verdict[0] for one in found.verdicts)


def signatures(bad: tuple[int, ...]) -> Signatures:
    return signatures_of(evidence(bad))


def chance(found: Signatures, client: int) -> float:
    (p,) = found.lacks_beside(client, torch.ones(len(found.told), dtype=torch.bool))
    return p


def test_honest_clients_lack_nothing() -> None:
    assert words(judged(())) == "b" * 10
    assert min(chance(signatures(()), k) for k in range(10)) > 0.01


def test_a_single_client_is_suspicious_and_counts_for_less() -> None:
    found = judged((9,))
    assert words(found) == "b" * 9 + "s"
    assert [finding.code for finding in found.verdicts[9].findings] == ["odd_signature"]
    assert found.verdicts[9].confidence == "clear"
    assert found.verdicts[9].influence <= LINE


def test_two_that_share_something_are_found_together() -> None:
    assert words(judged((8, 9))) == "b" * 8 + "mm"
    one = find_beside(signatures((8, 9)), range(10))
    assert one is not None and one.members == (8, 9)


def test_a_trusted_client_is_in_none() -> None:
    assert find_beside(signatures((8, 9)), range(10), (9,)) is None


def test_without_such_numbers_nobody_is_found() -> None:
    bare = Signatures(
        signatures((8, 9)).profile, signatures((8, 9)).concentration,
        torch.ones(10, 10, dtype=torch.bool),
    )  # fmt: skip
    assert find_beside(bare, range(10)) is None
    assert bare.lacks_beside(9, torch.ones(10, dtype=torch.bool)) == ()


@pytest.mark.parametrize(("n", "found"), [(5, False), (6, True)])
def test_it_takes_four_others(n: int, found: bool) -> None:
    one = find_beside(signatures_of(evidence((0, 1), n=n)), range(n))
    assert (one is not None) == found


@pytest.mark.parametrize(("by", "found"), [(1.01, True), (0.99, False)])
def test_every_member_lacks_what_the_others_share(
    by: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = signatures((8, 9))
    outside = torch.arange(10) < 8
    p = max(own.lacks_beside(k, outside)[0] for k in (8, 9))
    monkeypatch.setattr(beside, "ERROR_RATE", (p * by) ** 2)
    assert (find_beside(own, range(10)) is not None) == found


def test_one_client_does_not_make_another_one_odd() -> None:
    """It takes twice the victim's update off its own."""
    framed = signatures_of(evidence((9,), victim=0))
    assert framed.beside is not None
    others = [float(framed.beside[0, k]) for k in range(1, 9)]
    assert float(framed.beside[0, 9]) < min(others) - 3.0  # and that does show in the pair
    assert chance(framed, 0) > 0.01
    assert words(judged((9,), victim=0))[0] == "b"


def test_what_is_taken_for_granted_is_the_spread_by_chance() -> None:
    own = signatures(())
    table = own.beside
    assert table is not None
    flat = 2.0 + 1e-3 * (table - table.nanmean())  # hardly any spread among the others
    flat[9, :9] = flat[:9, 9] = 1.9
    ones = torch.ones(10, dtype=torch.bool)
    told = [
        Signatures(own.profile, own.concentration, own.alike, flat, noise)
        .lacks_beside(9, ones)[0]
        for noise in (0.0, 1.0)
    ]  # fmt: skip
    assert told[0] < 1e-6 and told[1] > 0.1
