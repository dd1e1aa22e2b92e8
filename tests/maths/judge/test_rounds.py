"""What several rounds show of one client: never more than three, and only where they agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clair_cli.maths.judge.rounds import ROUNDS_ALIKE, Seen, mean_over_rounds, over_rounds
from clair_cli.maths.judge.thresholds import LINE

BAR = 2.5


def variance_of(weights: np.ndarray, errors: np.ndarray) -> float:
    """Of a mean of rounds whose errors have the correlation ROUNDS_ALIKE, by the matrix."""
    alike = np.full((len(errors), len(errors)), ROUNDS_ALIKE)
    np.fill_diagonal(alike, 1.0)
    spread = weights * errors
    return float(spread @ alike @ spread)


@pytest.mark.parametrize(
    ("n", "worth"), [(1, 1.0), (2, 1.5), (4, 2.0), (10, 2.5), (10_000, 2.9994)]
)
def test_rounds_of_one_error_are_worth_less_than_three(n: int, worth: float) -> None:
    loading, se = mean_over_rounds([0.8] * n, [0.1] * n)
    assert loading == pytest.approx(0.8) and 0.01 / se**2 == pytest.approx(worth, rel=1e-4)


def test_the_weights_are_the_best_that_are_not_negative() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        errors = rng.uniform(0.1, 0.6, size=rng.integers(2, 7))
        values = rng.normal(1.0, 0.2, size=len(errors))
        loading, se = mean_over_rounds(list(values), list(errors))
        assert se <= errors.min() * (1 + 1e-12)
        assert se >= errors.min() * math.sqrt(ROUNDS_ALIKE)
        assert values.min() - 1e-9 <= loading <= values.max() + 1e-9
        own = [mean_over_rounds([float(i == k) for i in range(len(errors))], list(errors))[0]
               for k in range(len(errors))]  # fmt: skip
        assert min(own) >= 0.0 and sum(own) == pytest.approx(1.0)
        assert se**2 == pytest.approx(variance_of(np.array(own), errors))
        for _ in range(50):
            other = rng.dirichlet(np.full(len(errors), 0.7))
            assert variance_of(other, errors) >= se**2 * (1 - 1e-9)


@pytest.mark.parametrize(("error", "counts"), [(0.29, True), (0.31, False)])
def test_a_round_with_three_times_the_error_says_nothing(error: float, counts: bool) -> None:
    loading, se = mean_over_rounds([1.0, 0.0], [0.1, error])
    assert (loading < 1.0) == (se < 0.1 - 1e-12) == counts


def over(last: Seen, *earlier: Seen, alone: str = "open"):  # type: ignore[no-untyped-def]
    return over_rounds(last, earlier, bar=BAR, degrees=20.0, alone=alone)


def test_however_precise_earlier_rounds_are_they_count_as_the_last_one_at_most() -> None:
    last = Seen(1.0, 0.2, "benign")
    sure = over(last, *[Seen(1.0, 0.001, "benign")] * 1000)
    alike = over(last, *[Seen(1.0, 0.2, "benign")] * 1000)
    assert sure.rounds == 1000 and sure.se == alike.se
    assert 0.2 / math.sqrt(3) < sure.se < 0.2 / math.sqrt(2.99)


def test_power_and_probability_are_those_of_the_sum() -> None:
    found = over(Seen(0.7, 0.2, "benign"), Seen(0.9, 0.2, "benign"))
    assert (found.loading, found.se) == pytest.approx((0.8, 0.2 / math.sqrt(1.5)))
    normal = 0.5 * math.erfc(-(LINE / found.se - BAR) / math.sqrt(2))
    assert found.power == pytest.approx(normal)
    assert 0.97 < found.p_line < 0.99


@pytest.mark.parametrize(
    ("loading", "agrees"), [(0.76, True), (0.75, False), (1.24, True), (1.25, False)]
)
def test_a_round_that_sees_another_loading_contradicts_the_earlier_ones(
    loading: float, agrees: bool
) -> None:
    """Student's t with 20 degrees of freedom at 0.95 is 1.725, and the error 0.1414."""
    assert over(Seen(loading, 0.1, "benign"), Seen(1.0, 0.1, "benign")).agrees == agrees


@pytest.mark.parametrize("before", ["contaminated", "minority"])
def test_who_was_accused_before_gains_nothing_by_it(before: str) -> None:
    earlier = [Seen(0.9, 0.1, "benign"), Seen(0.9, 0.1, before)]
    assert not over(Seen(0.9, 0.1, "benign"), *earlier).agrees
    assert over(Seen(0.2, 0.1, "contaminated"), Seen(0.2, 0.1, before)).agrees


@pytest.mark.parametrize(
    ("loading", "se"),
    [(math.nan, 0.1), (0.9, math.nan), (math.inf, 0.1), (0.9, 0.0), (0.9, -1.0), (0.9, 1e-300),
     (1e300, 1e300)],
)  # fmt: skip
def test_numbers_that_are_none_are_no_evidence(loading: float, se: float) -> None:
    odd, plain = Seen(loading, se, "benign"), Seen(1.0, 0.1, "benign")
    assert over(plain, odd) is None and over(odd, plain) is None and over(plain) is None
    assert over(plain, odd, plain).rounds == 1


def test_the_standard_error_is_that_of_errors_so_alike() -> None:
    rng = np.random.default_rng(1)
    errors = np.array([0.3, 0.2, 0.25, 0.5])
    common, own = rng.standard_normal((20_000, 1)), rng.standard_normal((20_000, 4))
    drawn = errors * (ROUNDS_ALIKE**0.5 * common + (1 - ROUNDS_ALIKE) ** 0.5 * own)
    _, se = mean_over_rounds([0.0] * 4, list(errors))
    found = [mean_over_rounds(list(row), list(errors))[0] for row in drawn[:4000]]
    assert np.std(found) == pytest.approx(se, rel=0.04)
