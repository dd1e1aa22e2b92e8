"""Numbers with their meaning: "18 % of what two of the others share", never "-0.00"."""

from __future__ import annotations

import math

LINE = 0.45  # of what two of the others share; who clearly has less is unlike them
LEAST_P = 0.001  # no probability is stated below it
_LEAST_OPPOSITE = -0.05  # of what two of the others share; above it nobody is called opposite
_NEARLY_NONE = 0.25  # of what two of the others share, from which on it is "little"


def percent(share: float) -> str:
    """A share in whole percent; what rounds to zero is 0, without a sign.

    >>> percent(0.131), percent(-0.004), percent(1e9), percent(float("nan"))
    ('13 %', '0 %', 'more than 1,000 %', 'unknown')
    """
    if math.isnan(share):
        return "unknown"
    if abs(share) > 10:
        return f"{'less than -' if share < 0 else 'more than '}1,000 %"
    return f"{round(100 * share) or 0} %"  # `or`: never -0


def loss(share: float) -> str:
    """A distance over a norm, as of what is lost, in percent of two digits; a tiny one is 0, a
    large one a factor.

    >>> loss(3.4e-8), loss(0.0714), loss(1.234), loss(25.0)
    ('0 %', '7.1 %', '123 %', '25 x')
    """
    if share >= 0.995:
        return f"{100 * share:.0f} %" if share < 10 else f"{share:.2g} x"
    return "0 %" if share < 5e-7 else f"{100 * share:.2g} %"


def share_of_two(loading: float | None) -> str:
    """A client's loading in words; "" if there is none.

    >>> print(share_of_two(0.18))
    18 % of what two of the others share
    >>> print(share_of_two(-0.19))
    the opposite of 19 % of what two of the others share
    >>> print(share_of_two(-0.02))
    nothing of what two of the others share
    """
    if loading is None:
        return ""
    what = "what two of the others share"
    if _is_nothing(loading):
        return f"nothing of {what}"
    return f"{'the opposite of ' if loading < 0 else ''}{percent(abs(loading))} of {what}"


def _is_nothing(loading: float) -> bool:
    """Whether a client shares nothing; a little below 0 is no opposite, but chance."""
    return percent(loading) == "0 %" or _LEAST_OPPOSITE < loading < 0


def give_or_take(loading: float | None, se: float | None) -> str:
    """A loading with its interval of two standard errors; "" without both.

    >>> print(give_or_take(0.38, 0.127))
    38 % of what two of the others share, give or take 25 %
    """
    if loading is None or se is None:
        return share_of_two(loading)
    width = percent(2 * se)
    return share_of_two(loading) + ("" if width == "0 %" else f", give or take {width}")


def little(loading: float | None) -> str:
    """How much that is: "nothing", "almost nothing" or "little"."""
    if loading is None or abs(loading) >= _NEARLY_NONE:
        return "little"
    return "nothing" if _is_nothing(loading) else "almost nothing"


def odds(p: float | None) -> str:
    """How many honest clients look at least as unlike the others; "" if it is not known.

    >>> print(odds(0.001))
    fewer than one honest client in a thousand looks so unlike them
    >>> print(odds(0.03))
    about one honest client in 33 looks so unlike them
    >>> print(odds(0.62))
    6 of 10 honest clients look at least as unlike them
    """
    if p is None or math.isnan(p):
        return ""
    if p <= LEAST_P:
        return "fewer than one honest client in a thousand looks so unlike them"
    if p < 0.25:
        return f"about one honest client in {_two_digits(1 / p)} looks so unlike them"
    if p >= 0.95:
        return "nearly every honest client looks at least as unlike them"
    return f"{round(10 * p)} of 10 honest clients look at least as unlike them"


def by_chance(p: float | None) -> str:
    """How often chance alone brings something about; "" if it is not known."""
    if p is None or math.isnan(p):
        return ""
    if p <= LEAST_P:
        return "by chance alone fewer than once in a thousand rounds"
    return f"by chance alone about once in {_two_digits(1 / p)} rounds"


def times(ratio: float | None, whom: str) -> str:
    """A size over the median's; "" if it is not known or nothing.

    >>> times(7.92, "the median client's"), times(0.0, "x"), times(1e12, "x")
    ("7.9 times the median client's", '', 'more than 1,000 times x')
    """
    if ratio is None or not ratio > 0:
        return ""
    if ratio > 1000:
        return f"more than 1,000 times {whom}"
    if ratio < 0.01:
        return f"less than a hundredth of {whom}"
    return f"{ratio:.1f} times {whom}" if 1 <= ratio < 10 else f"{ratio:.2g} times {whom}"


def probability(p: float) -> str:
    """A probability near 1 as a count of misses.

    >>> probability(0.9494), probability(0.998), probability(0.9999)
    ('949 times in 1,000', '998 times in 1,000', 'more than 999 times in 1,000')
    """
    if p > 0.9995:
        return "more than 999 times in 1,000"
    return f"{round(1000 * p)} times in 1,000"


def _two_digits(number: float) -> str:
    digits = max(0, math.floor(math.log10(max(number, 1))) - 1)
    return f"{round(number, -digits):,.0f}"
