"""From planted factors to verdicts: trained-like cohorts, clean and contaminated."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from clair_cli.maths.judge.factor import Loadings
from clair_cli.maths.judge.judge import _one_vote
from clair_cli.maths.judge.outcome import some_names
from clair_cli.maths.judge.sizes import Sizes
from clair_cli.maths.judge.thresholds import LINE, MODULE_NORM_CAP, NORM_CAP
from clair_cli.maths.judge.verdicts import Verdict, decide
from tests.planted import (
    RANK,
    SHAPES,
    WIDE,
    aligned,
    codes,
    factor_all,
    judge_deltas,
    judge_factors,
    judged,
    low_rank,
    paper_model,
    verdicts_of,
    words,
)

# Trained-like cohorts: clean


@pytest.mark.parametrize("n_clients", [4, 6, 9])
@pytest.mark.parametrize("cosine", [0.1, 0.2, 0.4])
def test_nobody_is_flagged_in_a_clean_cohort(n_clients: int, cosine: float) -> None:
    result = judged(aligned([cosine] * n_clients, seed=10 * n_clients), seed=n_clients)
    assert result.structure.stacking == "matrix"
    verdicts_of(result, set())


def test_nobody_is_flagged_where_clients_share_unequally() -> None:
    cosines = [0.12 + 0.02 * k for k in range(8)]
    verdicts_of(judged(aligned(cosines, seed=3)), set())


def test_clean_cohorts_have_few_suspicions_and_no_accusation() -> None:
    found = {"benign": 0, "suspicious": 0, "contaminated": 0}
    for seed in range(6):
        for word in words(judged(aligned([0.3] * 10, seed=seed), seed=seed)):
            found[word] += 1
    assert found["contaminated"] == 0
    assert found["suspicious"] <= 2  # of 60


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
    """In six cohorts with three unrelated clients each: nobody changed a sign."""
    for seed in range(6):
        result = judge_deltas(aligned([0.3] * 7 + [0.0] * 3, shapes=WIDE, seed=seed), RANK)
        for k in (7, 8, 9):
            assert "opposite" not in codes(result, k)


def test_nobody_is_opposite_in_the_output_stacking() -> None:
    """A similarity of column spaces has no sign."""
    for seed in range(3):
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
    if size > 1:  # three times the learning rate is no attack
        assert codes(result, 8) == {"large"}
        assert result.verdicts[8].influence == pytest.approx(NORM_CAP / size, rel=0.01)


def test_duplicates_have_one_vote_in_any_gauge_and_size() -> None:
    deltas = aligned([0.2] * 6, seed=4)
    copied = [torch.cat([m, m[2:3], 10 * m[2:3]]) for m in deltas]
    result = judged(copied)
    assert words(result) == ["benign"] * 6 + ["duplicate"] * 2
    assert result.structure.duplicates == {6: 2, 7: 2}
    assert "c2" in result.verdicts[6].findings[0].text
    assert "the median" not in result.verdicts[6].findings[0].text
    assert "10 times the median client's size" in result.verdicts[7].findings[0].text
    assert all(v.influence == 0.0 for v in result.verdicts[6:])
    assert result.members == tuple(range(6))
    alone = judged(deltas)
    assert alone.scores is not None
    assert result.scores is not None
    for k in range(6):  # the copies change nobody's score
        assert result.scores[k].loading == pytest.approx(alone.scores[k].loading, abs=1e-9)


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


@pytest.mark.parametrize(("n_copies", "more"), [(9, ""), (10, " and 1 more")])
def test_a_reason_names_some_and_counts_the_others(n_copies: int, more: str) -> None:
    """A thousand that are nearly the same would each name all the others."""
    others = some_names(f"c{k}" for k in range(n_copies - 1))
    assert others == "c0, c1, c2, c3, c4, c5, c6, c7" + more
    structure = SimpleNamespace(copies=dict.fromkeys(range(1, n_copies), 0), tied={})
    names = [f"c{k}" for k in range(n_copies)]
    verdicts = _one_vote(structure, [Verdict("benign", (), 1.0)] * n_copies, names)  # type: ignore[arg-type]
    assert verdicts[n_copies - 1].findings[0].text == (
        f"nearly the same as {others}; together they count as one client"
    )


def test_a_zero_delta_weight_has_no_influence_and_disturbs_nobody() -> None:
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
    assert words(result)[3] == "suspicious"  # honest data may want that of one module
    assert codes(result, 3) == {"odd_module"}
    assert result.verdicts[3].influence == pytest.approx(LINE, rel=0.01)
    assert "unlike the others in m4" in result.verdicts[3].findings[0].text
    assert words(result).count("benign") == 9
    deltas[4][3] = low_rank(*shapes[4], RANK, g)
    unrelated = judged(deltas)
    assert unrelated.scores is not None
    assert unrelated.scores[3].odd_modules in ((4,), ())  # a weaker sign, never another module


def test_one_module_of_great_norm_is_named() -> None:
    deltas = aligned([0.2] * 9, shapes=SHAPES * 2, seed=2)
    deltas[5][4] *= 1.05 * MODULE_NORM_CAP**4
    result = judged(deltas)
    assert words(result)[4] == "contaminated"
    assert codes(result, 4) & {"module_norm", "norm"}


# Undetermined


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_of_similar_size_are_undetermined(seed: int) -> None:
    result = judge_deltas(aligned([0.3] * 10, [0] * 5 + [1] * 5, seed=seed), RANK)
    assert result.outcome == "undetermined"
    assert result.code == "two_groups"


@pytest.mark.parametrize("n_clients", [8, 10])
def test_where_nothing_is_shared_nobody_is_judged(n_clients: int) -> None:
    for seed in range(13):
        result = judge_deltas(aligned([0.0] * n_clients, seed=seed), RANK, seed)
        assert result.outcome == "undetermined", seed
        assert result.code in ("nothing_shared", "little_shared")


@pytest.mark.parametrize("n_clients", [1, 2])
def test_too_few_clients_are_undetermined(n_clients: int) -> None:
    result = judge_deltas(aligned([0.4] * n_clients), RANK)
    assert (result.outcome, result.code) == ("undetermined", "too_few")
    assert result.members == ()


def test_two_clients_and_their_copies_are_still_two() -> None:
    deltas = [torch.cat([m, m]) for m in aligned([0.4] * 2)]
    result = judge_deltas(deltas, RANK)
    assert result.code == "too_few"
    assert result.text == "4 clients, but 2 different updates: can't tell which is wrong"
    assert judge_deltas(aligned([0.4] * 2), RANK).text == "2 clients: can't tell which is wrong"


@pytest.mark.parametrize("n_bad", [0, 1, 2])
def test_it_is_known_of_everybody_whether_somebody_else_is_below(n_bad: int) -> None:
    modules = aligned([0.4] * 7 + [0.0] * n_bad)
    # who sent no update is not below
    scores = judged([torch.cat([m, torch.zeros_like(m[:1])]) for m in modules]).scores
    assert scores is not None
    assert [one.has_below for one in scores] == [n_bad > 0] * 7 + [n_bad > 1] * n_bad + [n_bad > 0]


def test_three_clients_are_enough() -> None:
    verdicts_of(judged(aligned([0.4] * 3)), set())


def test_no_updates_at_all_are_undetermined() -> None:
    deltas = [torch.zeros_like(m) for m in aligned([0.4] * 4)]
    result = judge_deltas(deltas, RANK)
    assert (result.outcome, result.code) == ("undetermined", "no_updates")


# NaN


def test_nan_is_never_benign() -> None:
    """Whatever score is not a number, the rule must not read it as fine."""

    result = judged(aligned([0.3] * 8, seed=1))
    assert result.scores is not None
    fine, nan = result.scores[0], float("nan")
    one = torch.ones(1, dtype=torch.float64)
    sizes = Sizes(one, one, NORM_CAP, MODULE_NORM_CAP)
    assert decide(fine, sizes, 0, "", ("m",) * 6).verdict == "benign"
    ones = torch.ones(4).double()
    held = Loadings(nan * ones, ones, 12.0, 1.0)
    assert all(held.is_below(k) for k in range(4))
    assert not any(held.is_above(k) for k in range(4))
    for broken in (Sizes(nan * one, one, 1.5, 2.0), Sizes(nan * one, nan * one, 1.5, 2.0)):
        values = {**fine.values, "norm_ratio": nan, "module_norm_ratio": float(broken.module[0])}
        scores = replace(fine, values=values, over=broken.over(0))
        got = decide(scores, broken, 0, "", ("m",) * 6)
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


def test_the_decomposition_agrees() -> None:
    deltas = aligned([0.3] * 7 + [0.0] * 3, seed=2)
    real = judged(deltas)
    assert words(real) == ["benign"] * 7 + ["contaminated"] * 3
    assert real.collaborative is not None
    assert real.collaborative.kept == tuple(range(7))
    assert min(real.collaborative.solution.block_norms[7:].tolist()) > 0.0


@pytest.mark.parametrize("seed", range(6))
def test_two_unrelated_pairs_of_four_are_no_cohort(seed: int) -> None:
    """Much alike inside, nothing across."""
    result = judge_deltas(aligned([0.9] * 4, [0, 0, 1, 1], shapes=WIDE, seed=seed), RANK)
    assert result.outcome == "undetermined"
