"""Heads that few clients have: what can't be judged has no part in the merge, whatever its size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clair_cli.api import MergeResult
from tests.cohorts import PREFIX, texts
from tests.workflow.test_heads import HEAD, MODULE, Heads, honest_heads, mean, merged, verdict

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
