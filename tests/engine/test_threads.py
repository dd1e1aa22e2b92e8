"""Work on several threads: in order, not too far ahead, and stopped by the first error."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from clair_cli.engine.threads import available_threads, in_order, one_thread_each
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return item * item

    assert list(in_order(slow_first, range(20), threads)) == [i * i for i in range(20)]


def test_it_stays_a_few_items_ahead_of_what_is_taken() -> None:
    begun: list[int] = []
    results = in_order(lambda item: begun.append(item), range(100), 2)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 5
    results.close()


def test_an_error_comes_in_its_turn_and_ends_the_rest() -> None:
    begun: list[int] = []

    def third_fails(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("item 2")
        return item

    taken = []
    with pytest.raises(ValueError, match="item 2"):
        for result in in_order(third_fails, range(1000), 2):
            taken.append(result)
    assert taken == [0, 1]
    time.sleep(0.05)
    assert len(begun) < 20


def test_each_thread_computes_on_one_core() -> None:
    before = torch.get_num_threads()
    with one_thread_each():
        seen = set(in_order(lambda _: (torch.get_num_threads(), threading.get_ident()), "ab", 2))
    assert {number for number, _ in seen} == {1}
    assert threading.get_ident() not in {thread for _, thread in seen}
    assert torch.get_num_threads() == before


def test_there_is_a_core() -> None:
    assert available_threads() >= 1


def test_the_first_product_of_a_thread_is_computed_on_one_core_too() -> None:
    """MKL asks for torch's number of threads late: the bits of one in thirty differed."""
    g = torch.Generator().manual_seed(0)
    modules = [
        [(torch.randn(6, n, generator=g), torch.randn(24, 6, generator=g), 2.0) for _ in range(3)]
        for n in (40, 16, 40, 16, 24, 40)
    ]

    def work(module: int) -> tuple[int, bytes, bytes]:
        factors = modules[module]
        pair = grams(stack_factors([factors], (24, factors[0][0].shape[1])))
        return module, bytes(pair.A.numpy().data), bytes(pair.B.numpy().data)

    found = set()
    for _ in range(100):
        with one_thread_each():
            found.update(in_order(work, range(len(modules)), 2))
    assert len(found) == len(modules)
