"""Limits on a whole cohort: number of clients, bytes of all weights files. Opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from clair_cli.cohort.model import Candidate
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.stores import status_of
from clair_cli.text import quoted

# Files this many times as large as the median one go first, so that one client's size alone
# never stops the others' round.
OUT_OF_PROPORTION = 4


def check_cohort_size(
    shown: str, candidates: Sequence[Candidate], limits: Limits
) -> list[Candidate]:
    """Refuse a cohort that is too large in all.

    Args:
        shown: the folder as the user would write it.
        candidates: the clients to be read.

    Returns:
        The candidates. If their files hold more than `limits.max_total_bytes`, those out of all
        proportion carry a refusal.

    Raises:
        InputRefused: too many clients, or too many bytes even without the largest files.
    """
    if len(candidates) > limits.max_clients:
        raise InputRefused(
            f"{quoted(shown)} holds {len(candidates):,} clients, above the limit of "
            f"{limits.max_clients:,}",
            hint=remedy("clients"),
        )
    sizes = {c.entry: _size(c) for c in candidates if c.refusal is None}
    sizes = {entry: size for entry, size in sizes.items() if size <= limits.max_file_bytes}
    total = sum(sizes.values())
    if total <= limits.max_total_bytes:
        return list(candidates)
    typical = max(1, median_low(sizes.values()))
    large = {e: size for e, size in sizes.items() if size > OUT_OF_PROPORTION * typical}
    allowed = f"above the limit of {limits.max_total_bytes:,} for all clients together"
    if total - sum(large.values()) > limits.max_total_bytes:
        raise InputRefused(
            f"the weights files in {quoted(shown)} have {total:,} bytes, {allowed}",
            hint=remedy("total"),
        )
    return [
        replace(c, refusal=_too_large(large[c.entry], typical, total, allowed, c.shown))
        if c.entry in large
        else c
        for c in candidates
    ]


def _size(candidate: Candidate) -> int:
    try:
        return status_of(candidate.weights, follow=True).st_size
    except OSError:
        return 0  # the reader says what is wrong


def _too_large(size: int, typical: int, total: int, allowed: str, shown: str) -> RejectedClient:
    return RejectedClient(
        f"file has {size:,} bytes, {size / typical:.3g} x the median client's, and all files have "
        f"{total:,}, {allowed}",
        path=shown,
        found=f"{size:,} bytes",
        expected=f"at most {OUT_OF_PROPORTION} x {typical:,} bytes",
        hint=remedy("total"),
    )
