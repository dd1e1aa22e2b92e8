"""From planted pairwise tables and planted factors to groups and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.maths.groups import alignment, coherent, coherent_groups
from clair_cli.maths.judge import Judgement
from clair_cli.maths.pair_levels import PairLevels, excess_table, over_modules
from clair_cli.maths.stack import Factors
from tests.planted import (
    SHAPES,
    aligned,
    codes,
    factor_all,
    judge_deltas,
    judge_factors,
    low_rank,
    orthonormal,
    planted,
    words,
)

RANK = 8  # of every `aligned` client
# Large enough that chance similarities stay far below those planted.
WIDE = ((96, 64), (64, 96), (96, 64), (64, 96), (96, 64), (64, 96))


def judged(deltas: Sequence[Tensor], rank: int = RANK, seed: int = 0) -> Judgement:
    result = judge_deltas(deltas, rank, seed)
    assert result.outcome == "judged", result.text
    return result


def verdicts_of(result: Judgement, bad: set[int]) -> None:
    """Every bad client contaminated, nobody else even suspicious."""
    expected = ["contaminated" if k in bad else "benign" for k in range(len(result.verdicts))]
    assert words(result) == expected
    assert result.members == tuple(k for k in range(len(expected)) if k not in bad)


# Not strict: which cohorts are hit changes with every threshold of the grouping.
STACKINGS = ["matrix", "output"]


# Planted tables


def table(
    blocks: Sequence[Sequence[int]],
    inside: Sequence[float],
    mixed: float = 0.0,
    *,
    n_modules: int = 8,
    noise: float = 0.02,
    seed: int = 0,
) -> PairLevels:
    """Levels of clients in blocks, with independent noise per module and pair."""
    rng = np.random.default_rng(seed)
    n = sum(len(b) for b in blocks)
    mean = np.full((n, n), mixed)
    for block, level in zip(blocks, inside, strict=True):
        mean[np.ix_(block, block)] = level
    error = rng.normal(0, noise, (n_modules, n, n))
    upper = np.triu(mean + error, 1)
    return PairLevels(torch.from_numpy(upper + upper.transpose(0, 2, 1) + np.eye(n)))


def test_levels_are_plain_means_over_pairs_and_modules() -> None:
    levels = table([[0, 1, 2], [3, 4]], [0.4, 0.2], noise=0.1, n_modules=5)
    values = levels._table
    between = values[:, :3, 3:].mean((1, 2))
    np.testing.assert_allclose(levels.between([0, 1, 2], [3, 4]), between)
    inside = (values[:, 0, 1] + values[:, 0, 2] + values[:, 1, 2]) / 3
    np.testing.assert_allclose(levels.within([0, 1, 2]), inside)
    level = levels.level([0, 1, 2])
    assert level.mean == pytest.approx(inside.mean())
    assert level.se == pytest.approx(inside.std(ddof=1) / 5**0.5)
    assert level.high - level.mean == pytest.approx(2 * level.se)
    assert level.mean - level.low == pytest.approx(2 * level.se)


def test_alignment_leaves_the_client_out() -> None:
    levels = table([[0, 1, 2, 3], [4]], [0.4, 0.0], noise=0.05)
    values = levels._table
    others = (values[:, 1, 2] + values[:, 1, 3] + values[:, 2, 3]) / 3
    own = values[:, 0, 1:4].mean(1)
    got = alignment(levels, 0, [0, 1, 2, 3])
    assert got.similarity == pytest.approx(own.mean())
    assert got.ratio == pytest.approx(own.mean() / others.mean())
    paired = own - got.ratio * others
    assert got.se == pytest.approx(paired.std(ddof=1) / 8**0.5 / others.mean())
    assert abs(alignment(levels, 4, [0, 1, 2, 3]).ratio) < 0.2


def test_missing_modules_are_left_out_of_the_means() -> None:
    value = torch.full((3, 2, 2), 0.5, dtype=torch.float64)
    value[0] = torch.nan
    value[1, 0, 1] = value[1, 1, 0] = 0.7
    levels = PairLevels(excess_table([value], [torch.zeros_like(value)]))
    level = levels.level([0, 1])
    assert level.mean == pytest.approx(0.6)
    assert level.se == pytest.approx(0.1)
    assert math.isnan(over_modules(np.array([np.nan])).mean)


def test_excess_is_zero_at_the_null_and_one_at_one() -> None:
    value = torch.tensor([[[1.0, 0.3], [0.3, 1.0]]], dtype=torch.float64)
    null = torch.full_like(value, 0.3)
    excess = excess_table([value], [null])
    assert excess[0, 0, 1] == 0.0
    assert excess[0, 0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("n_modules", [1, 6])
@pytest.mark.parametrize("seed", range(4))
def test_one_block_is_one_group(n_modules: int, seed: int) -> None:
    levels = table([range(9)], [0.2], n_modules=n_modules, seed=seed)
    assert coherent_groups(levels, range(9)) == [tuple(range(9))]


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_found_whatever_their_sizes(seed: int) -> None:
    blocks = [[0, 3, 5, 7, 9], [1, 2, 4], [6], [8]]
    groups = coherent_groups(table(blocks, [0.3, 0.25, 0, 0], seed=seed), range(10))
    assert groups[:2] == [(0, 3, 5, 7, 9), (1, 2, 4)]
    assert {k for g in groups[2:] for k in g} == {6, 8}


def test_blocks_that_share_a_part_are_apart_by_what_they_do_not_share() -> None:
    """A backdoor: 0.38 inside, 0.36 among the bad, 0.22 between (measured on adapters)."""
    levels = table([range(6), range(6, 10)], [0.38, 0.36], mixed=0.22)
    assert coherent_groups(levels, range(10)) == [tuple(range(6)), (6, 7, 8, 9)]
    assert not coherent(levels, [0, 1, 2], [6, 7, 8])
    assert coherent(levels, [0, 1, 2], [3, 4, 5])


def test_a_weak_client_belongs_and_an_unrelated_one_does_not() -> None:
    levels = table([range(6), [6], [7]], [0.3, 0.0, 0.0], mixed=0.0, noise=0.01)
    weak = levels._table.copy()
    weak[:, 6, :6] = weak[:, :6, 6] = 0.2
    weak[:, np.arange(8), np.arange(8)] = 1.0
    groups = coherent_groups(PairLevels(torch.from_numpy(weak)), range(8))
    assert groups[0] == (0, 1, 2, 3, 4, 5, 6)
    assert groups[1:] == [(7,)]


def test_groups_do_not_depend_on_the_order_of_clients() -> None:
    levels = table([range(6), range(6, 10)], [0.38, 0.36], mixed=0.22)
    order = [7, 2, 9, 0, 4, 1, 8, 6, 3, 5]
    assert coherent_groups(levels, order) == coherent_groups(levels, range(10))


def test_no_clients_make_no_group() -> None:
    levels = table([range(3)], [0.3])
    assert coherent_groups(levels, []) == []
    assert coherent_groups(levels, [2]) == [(2,)]


# Trained-like cohorts: clean


@pytest.mark.parametrize("n_clients", [4, 6, 9])
@pytest.mark.parametrize("cosine", [0.1, 0.2, 0.4])
def test_nobody_is_flagged_in_a_clean_cohort(n_clients: int, cosine: float) -> None:
    for seed in range(2):
        result = judged(aligned([cosine] * n_clients, seed=seed), seed=seed)
        assert result.structure.stacking == "matrix"
        verdicts_of(result, set())


def test_nobody_is_flagged_where_clients_share_unequally() -> None:
    cosines = [0.12 + 0.02 * k for k in range(8)]
    verdicts_of(judged(aligned(cosines, seed=3)), set())


def test_clean_cohorts_have_few_suspicions_and_no_accusation() -> None:
    found = {"benign": 0, "suspicious": 0, "contaminated": 0}
    for seed in range(12):
        for word in words(judged(aligned([0.3] * 10, seed=seed), seed=seed)):
            found[word] += 1
    assert found["contaminated"] == 0
    assert found["suspicious"] <= 4  # of 120


# Contaminated


@pytest.mark.parametrize(("n_good", "n_bad"), [(7, 3), (6, 6), (5, 7)])
@pytest.mark.parametrize("cosine", [0.1, 0.3])
def test_unrelated_clients_are_named(n_good: int, n_bad: int, cosine: float) -> None:
    deltas = aligned([cosine] * n_good + [0.0] * n_bad, shapes=WIDE, seed=1)
    result = judged(deltas)
    bad = set(range(n_good, n_good + n_bad))
    verdicts_of(result, bad)
    for k in bad:
        assert codes(result, k) <= {"unlike_the_others", "in_a_group", "opposite"}
        assert result.verdicts[k].influence == 0.0


def test_unrelated_clients_are_not_called_opposite() -> None:
    """In 12 cohorts with three unrelated clients each: nobody changed a sign."""
    for seed in range(12):
        result = judge_deltas(aligned([0.3] * 7 + [0.0] * 3, shapes=WIDE, seed=seed), RANK)
        for k in (7, 8, 9):
            assert "opposite" not in codes(result, k)


def test_nobody_is_opposite_in_the_output_stacking() -> None:
    """A similarity of column spaces has no sign."""
    for seed in range(6):
        result = judge_deltas(paper_model(12, 4, 5, seed=seed), 4)
        if result.structure.stacking == "output":
            for k in range(12):
                assert "opposite" not in codes(result, k)


@pytest.mark.parametrize("cosine", [0.1, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_colluders_are_named_as_a_group(cosine: float, seed: int) -> None:
    """Four of ten, as alike among themselves as the others are."""
    result = judged(aligned([cosine] * 10, [0] * 6 + [1] * 4, seed=seed))
    verdicts_of(result, {6, 7, 8, 9})
    assert result.structure.others == ((6, 7, 8, 9),)
    for k in range(6, 10):
        assert "in_a_group" in codes(result, k)
    assert "c7, c8, c9" in result.verdicts[6].findings[0].text


@pytest.mark.parametrize("size", [1.0, 0.3])
@pytest.mark.parametrize("n_bad", [1, 2])
def test_a_sign_flip_is_opposite(n_bad: int, size: float) -> None:
    deltas = aligned([0.2] * 9, seed=2)
    for module in deltas:
        module[9 - n_bad :] *= -size
    result = judged(deltas)
    verdicts_of(result, set(range(9 - n_bad, 9)))
    assert "opposite" in codes(result, 8)


def test_ten_times_the_norm_is_named() -> None:
    deltas = aligned([0.2] * 9, seed=2)
    for module in deltas:
        module[8] *= 10
    result = judged(deltas)
    verdicts_of(result, {8})
    assert codes(result, 8) == {"norm"}
    assert "norm 10 x the median" in result.verdicts[8].findings[0].text
    assert result.scores is not None
    assert result.scores[8]["norm_ratio"] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("size", [3.0, 0.25])
def test_a_norm_within_bounds_is_not_contaminated(size: float) -> None:
    deltas = aligned([0.2] * 9, seed=2)
    for module in deltas:
        module[8] *= size
    result = judged(deltas)
    assert words(result)[:8] == ["benign"] * 8
    assert words(result)[8] in ("benign", "suspicious")
    if size > 1:
        assert codes(result, 8) == {"norm"}
        assert result.verdicts[8].influence == pytest.approx(1 / 3, rel=0.01)


def test_duplicates_have_one_vote_in_any_gauge_and_size() -> None:
    deltas = aligned([0.2] * 6, seed=4)
    copied = [torch.cat([m, m[2:3], 10 * m[2:3]]) for m in deltas]
    result = judged(copied)
    assert words(result) == ["benign"] * 6 + ["duplicate"] * 2
    assert result.structure.duplicates == {6: 2, 7: 2}
    assert "c2" in result.verdicts[6].findings[0].text
    assert "norm" not in result.verdicts[6].findings[0].text
    assert "norm 10 x the median" in result.verdicts[7].findings[0].text
    assert all(v.influence == 0.0 for v in result.verdicts[6:])
    assert result.members == tuple(range(6))
    alone = judged(deltas)
    assert alone.scores is not None
    assert result.scores is not None
    for k in range(6):  # the copies change nobody's score
        assert result.scores[k].alignment.ratio == pytest.approx(
            alone.scores[k].alignment.ratio, abs=1e-9
        )


def test_a_copy_with_the_other_sign_is_opposite_and_no_duplicate() -> None:
    deltas = [torch.cat([m, -m[2:3]]) for m in aligned([0.2] * 8, seed=4)]
    result = judged(deltas)
    assert result.structure.duplicates == {}
    assert words(result)[8] == "contaminated"
    assert "opposite" in codes(result, 8)


@pytest.mark.parametrize("attack", ["copy", "difference"])
def test_one_client_made_of_others_does_not_hide_what_they_share(attack: str) -> None:
    """-D_2, or D_0 - D_1: it makes the matrix of cosines singular. The difference ties the
    two it is made of to itself, so that they may be doubted; nobody honest is left out."""
    deltas = aligned([0.1] * 9, shapes=WIDE, seed=1)
    made = [-m[2] if attack == "copy" else m[0] - m[1] for m in deltas]
    result = judged([torch.cat([m, d[None]]) for m, d in zip(deltas, made, strict=True)], 16)
    assert result.structure.stacking == "matrix"
    doubted = [] if attack == "copy" else [0, 1]
    honest = words(result)[:9]
    assert [w for k, w in enumerate(honest) if k not in doubted] == ["benign"] * (9 - len(doubted))
    assert all(honest[k] in ("benign", "suspicious") for k in doubted)
    assert words(result)[9] != "benign"


def test_copies_of_a_contaminated_client_say_so() -> None:
    deltas = [torch.cat([m, m[7:8]]) for m in aligned([0.2] * 7 + [0.0], seed=5)]
    result = judged(deltas)
    assert words(result) == ["benign"] * 7 + ["contaminated", "duplicate"]
    assert "which is contaminated" in result.verdicts[8].findings[0].text


def test_many_copies_of_one_attack_are_one_client() -> None:
    """Identical strong colluders would otherwise be the majority."""
    deltas = [torch.cat([m, *[m[6:7]] * 8]) for m in aligned([0.2] * 6 + [0.0], seed=6)]
    result = judged(deltas)
    assert words(result) == ["benign"] * 6 + ["contaminated"] + ["duplicate"] * 8


def test_a_zero_update_has_no_influence_and_disturbs_nobody() -> None:
    deltas = aligned([0.2] * 8, seed=2)
    for module in deltas:
        module[7] = 0.0
    result = judged(deltas)
    assert words(result) == ["benign"] * 7 + ["suspicious"]
    assert codes(result, 7) == {"no_update"}
    assert result.verdicts[7].influence == 0.0
    assert result.structure.empty == (7,)


def test_a_client_without_some_modules_is_judged_on_the_others() -> None:
    deltas = aligned([0.2] * 8, seed=2)
    modules = factor_all(deltas, RANK)
    for m in (0, 3):
        modules[m][5] = None
    result = judge_factors(modules, SHAPES)
    assert result.outcome == "judged"
    assert words(result) == ["benign"] * 8


def test_one_odd_module_is_named() -> None:
    g = torch.Generator().manual_seed(8)
    shapes = SHAPES * 2
    deltas = aligned([0.4] * 10, shapes=shapes, seed=7)
    deltas[4][3] = -deltas[4][3]
    clean = judged(aligned([0.4] * 10, shapes=shapes, seed=7))
    assert clean.verdicts[3].verdict == "benign"
    result = judged(deltas)
    assert words(result)[3] == "contaminated"
    assert codes(result, 3) == {"odd_module"}
    assert "unlike the others in m4" in result.verdicts[3].findings[0].text
    assert words(result).count("contaminated") == 1
    deltas[4][3] = low_rank(*shapes[4], RANK, g)
    unrelated = judged(deltas)
    assert unrelated.scores is not None
    assert unrelated.scores[3].odd_modules in ((4,), ())  # a weaker sign, never another module


def test_one_module_of_great_norm_is_named() -> None:
    deltas = aligned([0.2] * 9, shapes=SHAPES * 2, seed=2)
    deltas[5][4] *= 12
    result = judged(deltas)
    assert words(result)[4] == "contaminated"
    assert codes(result, 4) & {"module_norm", "norm"}


# Undetermined


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_of_similar_size_are_undetermined(seed: int) -> None:
    result = judge_deltas(aligned([0.3] * 10, [0] * 5 + [1] * 5, seed=seed), RANK)
    assert result.outcome == "undetermined"
    assert result.code == "two_groups"


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_is_shared_nobody_is_judged(seed: int) -> None:
    result = judge_deltas(aligned([0.0] * 8, seed=seed), RANK)
    assert result.outcome == "undetermined"
    assert result.code in ("nothing_shared", "little_shared")


def test_where_nothing_is_shared_abstaining_is_the_rule() -> None:
    judged_ones = [
        seed for seed in range(40)
        if judge_deltas(aligned([0.0] * 10, seed=seed), RANK, seed).outcome == "judged"
    ]  # fmt: skip
    assert len(judged_ones) <= 1


@pytest.mark.parametrize("n_clients", [1, 2])
def test_too_few_clients_are_undetermined(n_clients: int) -> None:
    result = judge_deltas(aligned([0.4] * n_clients), RANK)
    assert (result.outcome, result.code) == ("undetermined", "too_few")
    assert result.members == ()


def test_two_clients_and_their_copies_are_still_two() -> None:
    deltas = [torch.cat([m, m]) for m in aligned([0.4] * 2)]
    assert judge_deltas(deltas, RANK).code == "too_few"


def test_three_clients_are_enough() -> None:
    verdicts_of(judged(aligned([0.4] * 3)), set())


def test_no_updates_at_all_are_undetermined() -> None:
    deltas = [torch.zeros_like(m) for m in aligned([0.4] * 4)]
    result = judge_deltas(deltas, RANK)
    assert (result.outcome, result.code) == ("undetermined", "no_updates")


# The paper's model: only the output subspace is shared


def paper_model(
    n_clients: int, n_bad: int, n_modules: int, *, seed: int = 0, **kwargs: float
) -> list[Tensor]:
    problems = [
        planted(n_clients, n_bad, seed=1000 * seed + m, out=64, in_=48, **kwargs)  # type: ignore[arg-type]
        for m in range(n_modules)
    ]
    return [p.deltas for p in problems]


@pytest.mark.parametrize("decaying", [False, True])
@pytest.mark.parametrize("outlier_norm", [1.0, 10.0])
@pytest.mark.parametrize(("n_clients", "n_bad"), [(12, 0), (12, 3), (20, 8), (20, 12)])
def test_a_shared_output_subspace_is_found(
    n_clients: int, n_bad: int, outlier_norm: float, decaying: bool
) -> None:
    deltas = paper_model(n_clients, n_bad, 5, seed=2, decaying=decaying, outlier_norm=outlier_norm)
    result = judged(deltas, 4)
    assert result.structure.stacking == "output"
    verdicts_of(result, set(range(n_clients - n_bad, n_clients)))
    assert result.collaborative is not None
    assert result.collaborative.penalties.subspace_dims == (4,) * 5


def test_adapters_of_rank_one_are_judged_on_all_modules() -> None:
    """One column per client does not make the output stacking the matrix one."""
    g = torch.Generator().manual_seed(0)
    deltas = []
    for _ in range(5):
        shared = orthonormal(48, 1, g)
        own = [shared] * 7 + [orthonormal(48, 1, g) for _ in range(3)]
        rows = torch.randn(10, 1, 32, generator=g, dtype=torch.float64)
        deltas.append(torch.stack(own) @ rows)
    result = judged(deltas, 1)
    assert result.structure.stacking == "output"
    verdicts_of(result, {7, 8, 9})
    assert result.collaborative is not None
    assert result.collaborative.captured.shape == (5, 10)


def test_a_shared_input_subspace_is_found() -> None:
    deltas = [m.mT.contiguous() for m in paper_model(12, 3, 5, seed=2)]
    result = judged(deltas, 4)
    assert result.structure.stacking == "input"
    verdicts_of(result, {9, 10, 11})


def single_module_outcomes(n_clients: int, n_bad: int, seeds: Sequence[int]) -> list[str]:
    bad = set(range(n_clients - n_bad, n_clients))
    outcomes = []
    for seed in seeds:
        result = judge_deltas(paper_model(n_clients, n_bad, 1, seed=seed), 4, seed)
        accused = {k for k, word in enumerate(words(result)) if word == "contaminated"}
        if result.structure.stacking == "output":
            outcomes.append("right" if accused == bad else "wrong")
        else:
            outcomes.append("wrong" if result.outcome == "judged" else "abstained")
    return outcomes


@pytest.mark.parametrize(("n_clients", "n_bad"), [(12, 0), (12, 3), (20, 8)])
def test_a_single_module_of_the_papers_model_is_exact_in_the_output_stacking(
    n_clients: int, n_bad: int
) -> None:
    outcomes = single_module_outcomes(n_clients, n_bad, range(8))
    assert outcomes == ["right"] * 8


def test_no_cohort_of_the_papers_model_is_judged_wrongly() -> None:
    """Abstaining is allowed; naming benign clients for chance cosines is not."""
    wrong = 0
    for n_bad in (0, 4, 8):
        for n_modules in (1, 2):
            for seed in range(10):
                problems = [planted(20, n_bad, seed=100 * seed + m) for m in range(n_modules)]
                result = judge_deltas([p.deltas for p in problems], 4, seed)
                accused = {k for k, word in enumerate(words(result)) if word == "contaminated"}
                wrong += result.outcome == "judged" and accused != problems[0].contaminated
    assert wrong == 0


# Invariance


def number(value: float) -> float:
    return 1e9 if math.isnan(value) else value


def scores_of(result: Judgement) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    assert result.scores is not None
    return np.array([
        [
            number(x) for x in (
                s.alignment.similarity, s.alignment.ratio, s.alignment.se, s.captured,
                s.captured_ratio, s["norm_ratio"], s["module_norm_ratio"], s["core_distance"],
                s["effective_rank_ratio"], *s.module_similarity.tolist(),
            )
        ]
        for s in result.scores
    ])  # fmt: skip


def mixed_cohort(stacking: str) -> tuple[list[list[Factors]], Sequence[tuple[int, int]]]:
    """Benign, unrelated, opposite and large clients."""
    if stacking == "matrix":
        deltas = aligned([0.25] * 8 + [0.0] * 2, seed=9)
        for module in deltas:
            module[6] *= -1
            module[7] *= 20
        return factor_all(deltas, RANK, seed=9), SHAPES
    deltas = paper_model(11, 3, 5, seed=2)
    return factor_all(deltas, 4, seed=9), [(64, 48)] * 5


def turned(modules: list[list[Factors]], scale: float, seed: int) -> list[list[Factors]]:
    """Every client in another gauge of condition 1e2, and all times `scale`."""
    g = torch.Generator().manual_seed(seed)
    result: list[list[Factors]] = []
    for clients in modules:
        row: list[Factors] = []
        for factors in clients:
            assert factors is not None
            lora_A, lora_B, scaling = factors
            n = len(lora_A)
            left, _, right = torch.linalg.svd(torch.randn(n, n, generator=g, dtype=torch.float64))
            R = left * torch.logspace(0, -2, n, dtype=torch.float64) @ right
            row.append((torch.linalg.solve(R, lora_A), lora_B @ R, scaling * scale))
        result.append(row)
    return result


@pytest.mark.parametrize("stacking", STACKINGS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gauge_and_common_scale_change_no_score_and_no_verdict(stacking: str, scale: float) -> None:
    modules, shapes = mixed_cohort(stacking)
    before = judge_factors(modules, shapes)
    after = judge_factors(turned(modules, scale, seed=1), shapes)
    assert before.structure.stacking == after.structure.stacking == stacking
    np.testing.assert_allclose(scores_of(after), scores_of(before), atol=1e-6, rtol=1e-6)
    assert words(after) == words(before)
    assert set(words(before)) == {"benign", "contaminated"}
    for k in range(len(before.verdicts)):
        assert codes(after, k) == codes(before, k)
    assert before.scores is not None
    assert after.scores is not None
    for one, other in zip(before.scores, after.scores, strict=True):
        assert other["norm"] == pytest.approx(scale * one["norm"], rel=1e-9)


@pytest.mark.parametrize("stacking", STACKINGS)
@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_clients_changes_no_score_and_no_verdict(stacking: str, seed: int) -> None:
    modules, shapes = mixed_cohort(stacking)
    n = len(modules[0])
    order = np.random.default_rng(seed).permutation(n).tolist()
    names = [f"c{k}" for k in range(n)]
    before = judge_factors(modules, shapes, names)
    after = judge_factors(
        [[clients[k] for k in order] for clients in modules], shapes, [names[k] for k in order]
    )
    np.testing.assert_allclose(scores_of(after), scores_of(before)[order], atol=1e-6, rtol=1e-6)
    assert words(after) == [words(before)[k] for k in order]
    for position, k in enumerate(order):
        assert after.verdicts[position].findings[0:1] == before.verdicts[k].findings[0:1]


def test_names_are_words_only() -> None:
    modules, shapes = mixed_cohort("matrix")
    before = judge_factors(modules, shapes)
    after = judge_factors(modules, shapes, [f"z{9 - k}" for k in range(10)])
    assert words(after) == words(before)
    np.testing.assert_array_equal(scores_of(after), scores_of(before))


def test_cores_are_asked_for_in_the_output_stacking() -> None:
    from clair_cli.maths.evidence import concatenate, gather
    from clair_cli.maths.grams import grams
    from clair_cli.maths.judge import judge, needs_cores
    from clair_cli.maths.stack import stack_factors
    from clair_cli.maths.structure import find_structure

    modules, shapes = mixed_cohort("output")
    evidence = concatenate([gather(grams(stack_factors(modules, shapes[0])))], range(5))
    assert needs_cores(find_structure(evidence)) == "output"
    with pytest.raises(ValueError, match="needs the cores"):
        judge(evidence, [f"c{k}" for k in range(11)], [f"m{m}" for m in range(5)])


# NaN


def test_nan_is_never_benign() -> None:
    """Whatever score is not a number, the rule must not read it as fine."""
    from dataclasses import replace

    from clair_cli.maths.verdicts import decide

    result = judged(aligned([0.3] * 8, seed=1))
    assert result.scores is not None
    fine = result.scores[0]
    assert decide(fine, True, "", True, ("m",) * 6).verdict == "benign"
    nan = float("nan")
    broken = [
        replace(fine, alignment=replace(fine.alignment, ratio=nan)),
        replace(fine, alignment=replace(fine.alignment, ratio=nan, se=nan)),
        replace(fine, alignment=replace(fine.alignment, ratio=0.2), separation=nan),
        replace(fine, values={**fine.values, "norm_ratio": nan}),
        replace(fine, values={**fine.values, "module_norm_ratio": nan}),
    ]
    for scores in broken:
        for kept in (True, False):
            got = decide(scores, kept, "", True, ("m",) * 6)
            assert got.verdict != "benign"
            assert 0.0 <= got.influence <= 1.0


def test_a_client_alone_in_its_modules_is_not_benign() -> None:
    """It has no module in common with anybody: its similarity is not a number."""
    deltas = aligned([0.3] * 9, shapes=SHAPES * 2, seed=1)
    modules = factor_all(deltas, RANK)
    for m in range(12):
        for k in range(9):
            if (k == 8) != (m >= 10):
                modules[m][k] = None
    result = judge_factors(modules, SHAPES * 2)
    assert result.outcome != "judged" or words(result)[8] != "benign"
    assert words(result)[:8] == ["benign"] * 8


def test_the_decomposition_decides_who_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its low-rank part nobody is benign; with it the outliers are not kept."""
    from dataclasses import replace

    from clair_cli.maths import collaborate

    deltas = aligned([0.3] * 7 + [0.0] * 3, seed=2)
    real = judged(deltas)
    assert words(real) == ["benign"] * 7 + ["contaminated"] * 3
    assert real.collaborative is not None
    assert real.collaborative.kept == tuple(range(7))
    assert min(real.collaborative.solution.block_norms[7:].tolist()) > 0.0

    solve = collaborate.solve_stable

    def emptied(*args: Any, **options: Any) -> Any:
        solution = solve(*args, **options)
        return replace(solution, low_rank=torch.zeros_like(solution.low_rank))

    monkeypatch.setattr(collaborate, "solve_stable", emptied)
    assert "benign" not in words(judged(deltas))
