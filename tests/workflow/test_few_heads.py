"""Who counts in the heads: too few to be judged, copies, and clients that are condemned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.api import MergeResult
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.structure import Structure
from clair_cli.workflow.judge import _voters
from tests import cohorts
from tests.cohorts import PREFIX, texts
from tests.workflow.test_heads import (
    HEAD,
    MODULE,
    START,
    Heads,
    codes,
    honest_heads,
    mean,
    merged,
    relabelled,
    verdict,
    with_heads,
)

LORA_BIAS = f"{PREFIX}{MODULE}.lora_B.bias"
OF_LORA_B = {"modules_to_save": None, "lora_bias": True}


def with_a_huge_one(n: int) -> Heads:
    """Honest heads, but for the last client's."""
    heads = honest_heads(n)
    heads[f"c{n - 1}"] = {key: np.full_like(v, 1e30) for key, v in heads[f"c{n - 1}"].items()}
    return heads


def codes_of(result: MergeResult) -> set[str]:
    return {remark.code for remark in result.report.warnings}


@pytest.mark.parametrize(("n_holders", "is_there"), [(2, False), (3, True)])
def test_a_head_that_two_have_can_not_be_judged(n_holders: int, is_there: bool) -> None:
    heads = {k: v for k, v in honest_heads(3).items() if int(k[1:]) >= 3 - n_holders}
    result = merged(heads, 3)
    assert (result.report.exit_code, HEAD in result.tensors) == (0, is_there)
    assert ("heads_not_merged" in codes_of(result)) != is_there
    assert HEAD not in merged({k: with_a_huge_one(3)[k] for k in ("c1", "c2")}, 3).tensors


@pytest.mark.parametrize(("n_holders", "is_read"), [(3, False), (4, True)])
def test_what_fewer_than_half_have_is_not_even_compared(n_holders: int, is_read: bool) -> None:
    """A few clients may send thousands of tensors, each a table of all pairs of clients."""
    heads = {k: v for k, v in honest_heads(8).items() if int(k[1:]) < n_holders}
    result = merged(heads, 8)
    assert HEAD not in result.tensors
    assert bool(result.report.clients[0].heads) == is_read


def test_a_head_that_two_have_in_common_is_carried_over() -> None:
    heads = {k: honest_heads(1)["c0"] for k in ("c1", "c2")}
    assert np.allclose(merged(heads, 3).tensors[HEAD].numpy(), mean(heads, HEAD), atol=1e-6)


def test_of_two_clients_the_trusted_one_has_the_head() -> None:
    heads = with_a_huge_one(2)
    result = merged(heads, 2, trust=["c0"])
    assert result.report.exit_code == 0
    assert np.allclose(result.tensors[HEAD].numpy(), heads["c0"][HEAD], atol=1e-6)
    (text,) = (t for t in texts(result.report.warnings) if "trusted clients' alone" in t)
    assert text.startswith("2 tensors beside the LoRA ('score.bias', 'score.weight')")
    assert HEAD not in merged({"c1": heads["c1"]}, 2, trust=["c0"]).tensors


@pytest.mark.parametrize("modules", ["common", "union"])
@pytest.mark.parametrize(("n_holders", "is_there"), [(1, False), (3, False), (4, True)])
def test_a_bias_of_lora_b_that_few_have_is_not_merged(
    modules: Any, n_holders: int, is_there: bool
) -> None:
    """Colluders who all send one: it would be the same in all who have it."""
    heads = {f"c{k}": {LORA_BIAS: np.full(24, 1e30)} for k in range(n_holders)}
    result = merged(heads, 6, config=OF_LORA_B, modules=modules)
    assert (LORA_BIAS in result.tensors) == is_there


def test_a_bounded_bias_of_lora_b_counts_absent_ones_as_zero() -> None:
    """Four of six have one; one of them differs, and counts as the others do."""
    heads = {f"c{k}": {LORA_BIAS: np.ones(24)} for k in range(4)}
    heads["c3"] = {LORA_BIAS: np.full(24, 9.0)}
    result = merged(heads, 6, config=OF_LORA_B)
    assert verdict(result, "c3") == "suspicious"
    scaling = result.config["lora_alpha"] / result.config["r"]
    assert np.allclose(result.tensors[LORA_BIAS].numpy() * scaling, 2.0 * 4 / 6)


def test_where_most_heads_are_still_zero_another_one_blocks_nobody() -> None:
    heads: Heads = {f"c{k}": {HEAD: np.zeros((3, 64))} for k in range(6)}
    heads["c5"] = {HEAD: np.ones((3, 64))}
    result = merged(heads, 6)
    assert (result.report.exit_code, verdict(result, "c5")) == (0, "suspicious")
    assert not result.tensors[HEAD].numpy().any()


def test_a_condemned_head_of_three_leaves_too_few() -> None:
    result = merged(with_a_huge_one(3), 3)
    assert (result.report.exit_code, result.report.cohort.outcome) == (5, "undetermined")
    assert "head_norm" in codes(result, "c2")


def test_a_duplicate_stays_one_whatever_its_head() -> None:
    clients = {**cohorts.honest(6), "copy": cohorts.honest(6)["c0"]}
    bad = relabelled(honest_heads(6)["c0"])
    heads = {**honest_heads(6), "c0": bad, "copy": bad}
    result = clair_cli.merge(with_heads(clients, heads))
    assert {verdict(result, "c0"), verdict(result, "copy")} == {"duplicate", "contaminated"}


@pytest.mark.parametrize(("outcome", "voters"), [("judged", (0, 2)), ("undetermined", (0, 1, 2))])
def test_copies_have_one_voice_in_what_is_usual(outcome: str, voters: tuple[int, ...]) -> None:
    structure = Structure(duplicates={4: 0}, empty=(), copies={3: 2}, distinct=(0, 1, 2))
    judgement = Judgement(outcome, "", "", "", structure, None, (0, 2, 3), None, ())
    assert _voters(judgement) == voters


def test_heads_of_condemned_clients_move_nothing() -> None:
    """The reference of a bounded client is the median of those that are merged."""
    clients, heads = cohorts.honest(6), honest_heads(6)
    heads["c5"] = {key: START[key] + 2.5 * (v - START[key]) for key, v in heads["c5"].items()}
    alone = clair_cli.merge(with_heads(clients, heads))
    assert alone.report.merged is not None
    assert alone.report.merged.heads[0].bounded
    for k in range(3):
        clients[f"x{k}"] = cohorts.unrelated(seed=70 + k)
        heads[f"x{k}"] = {key: v + 1.0 for key, v in honest_heads(1)["c0"].items()}
    result = clair_cli.merge(with_heads(clients, heads))
    assert {verdict(result, f"x{k}") for k in range(3)} == {"contaminated"}
    assert np.array_equal(result.tensors[HEAD].numpy(), alone.tensors[HEAD].numpy())


@pytest.mark.parametrize(
    ("dtypes", "written"),
    [(["float16"], "float16"), (["float64"], "float32"), (["float16", "bfloat16"], "float32")],
)
def test_the_dtype_that_a_head_is_written_in(dtypes: list[str], written: str) -> None:
    clients = with_heads(cohorts.honest(6), honest_heads(6))
    for k, (state, _) in enumerate(clients.values()):
        state[HEAD] = state[HEAD].to(getattr(torch, dtypes[k % len(dtypes)]))
    assert clair_cli.merge(clients).tensors[HEAD].dtype == getattr(torch, written)
