"""Who is left out, and with which reason: through `clair inspect --json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.cohorts import Client, clair, factored


def inspected(
    tmp_path: Path, clients: cohorts.Clients, *args: object
) -> tuple[int, dict[str, Any]]:
    """Exit code and report; the JSON on stdout follows the schema."""
    folder = cohorts.save(tmp_path / "clients", clients, "mixed")
    result = clair("inspect", folder, "--json", *args)
    return result.exit_code, cohorts.check_report(result.stdout)


def late(factor: float) -> Client:
    """A client like the honest ones (it is the last of a longer cohort), times a factor."""
    return factored({m: factor * d for m, d in cohorts.honest_deltas(13)[12].items()}, 6, seed=99)


def one_module(client: Client, other: Client) -> Client:
    """Honest but in one module."""
    module = next(iter(client.A))
    return Client(
        {**client.A, module: other.A[module]}, {**client.B, module: other.B[module]}, client.config
    )


# What is added to honest clients: the verdict and the code of a reason of each.
FINDINGS: dict[str, tuple[list[Client], str, str]] = {
    "unrelated": ([cohorts.unrelated()], "contaminated", "unlike_the_others"),
    "three unrelated": (
        [cohorts.unrelated(s) for s in (1, 2, 3)],
        "contaminated",
        "unlike_the_others",
    ),
    "sign flip": ([late(-1)], "contaminated", "opposite"),
    "ten times": ([late(10)], "contaminated", "norm"),
    "alpha times ten": (
        [Client(late(1).A, late(1).B, {"lora_alpha": 120})],
        "contaminated",
        "norm",
    ),
    "four times": ([late(4)], "suspicious", "norm"),
    "colluding pair": (cohorts.colluders(2), "contaminated", "in_a_group"),
    "colluding triple": (cohorts.colluders(3), "contaminated", "in_a_group"),
    "one module of six": ([one_module(late(1), cohorts.unrelated())], "suspicious", "odd_module"),
    "no update": ([cohorts.scaled(late(1), 0.0)], "suspicious", "no_update"),
    "almost no update": ([cohorts.scaled(late(1), 1e-6)], "suspicious", "no_update"),
    "nan": ([cohorts.with_nan(late(1))], "rejected", "rejected"),
    "wrong shape": ([cohorts.wider(late(1))], "rejected", "rejected"),
    "1e15 times": ([late(1e15)], "contaminated", "norm"),
}


@pytest.mark.parametrize("kind", FINDINGS)
def test_findings(tmp_path: Path, kind: str) -> None:
    bad, verdict, code = FINDINGS[kind]
    honest = cohorts.honest(8)
    named = {f"bad{k}": client for k, client in enumerate(bad)}
    exit_code, report = inspected(tmp_path, {**named, **honest})
    verdicts = cohorts.verdicts(report)
    assert verdicts == {**dict.fromkeys(honest, "benign"), **dict.fromkeys(named, verdict)}
    for name in named:
        assert code in cohorts.codes(report, name), cohorts.reasons(report, name)
    assert exit_code == (0 if verdict == "suspicious" else 3)
    assert report["cohort"]["outcome"] == "judged"


@pytest.mark.parametrize(("n_clients", "seed"), [(3, 1), (4, 2), (5, 3), (8, 4), (12, 5)])
def test_nobody_is_flagged_among_the_honest(tmp_path: Path, n_clients: int, seed: int) -> None:
    exit_code, report = inspected(tmp_path, cohorts.honest(n_clients, seed=seed))
    assert set(cohorts.verdicts(report).values()) == {"benign"}
    assert (exit_code, report["cohort"]["stacking"]) == (0, "matrix")
    assert report["cohort"]["contaminated_ratio"] == 0.0


def test_a_group_is_named_in_words_and_as_a_group(tmp_path: Path) -> None:
    triple = dict(zip(("x", "y", "z"), cohorts.colluders(3), strict=True))
    _, report = inspected(tmp_path, {**cohorts.honest(7), **triple})
    assert "y, z" in cohorts.reasons(report, "x")
    groups = {tuple(g["members"]): g["role"] for g in report["cohort"]["groups"]}
    assert groups == {tuple(f"c{k}" for k in range(7)): "collaborative", ("x", "y", "z"): "other"}
    assert report["cohort"]["contaminated_ratio"] == pytest.approx(0.3)
    assert report["cohort"]["decomposition"]["agrees"]
    assert report["cohort"]["decomposition"]["gap"] <= 1e-3


def test_the_similarity_matrix_is_the_mean_cosine(tmp_path: Path) -> None:
    import numpy as np

    clients = {**cohorts.honest(4), "odd": cohorts.unrelated()}
    _, report = inspected(tmp_path, clients)
    deltas = [clients[n].deltas() for n in report["cohort"]["names"]]
    for j, left in enumerate(deltas):
        for k, right in enumerate(deltas):
            cosines = [
                np.sum(left[m] * right[m]) / np.linalg.norm(left[m]) / np.linalg.norm(right[m])
                for m in left
            ]
            found = report["cohort"]["similarity"][j][k]
            assert found == pytest.approx(np.mean(cosines), abs=1e-5)
            if j != k:
                se = np.std(cosines, ddof=1) / len(cosines) ** 0.5
                assert report["cohort"]["similarity_se"][j][k] == pytest.approx(se, abs=1e-5)


# Duplicates


def copies(kind: str, original: Client) -> Client:
    return {
        "bytes": original,
        "other gauge": cohorts.regauged(original),
        "ten times": cohorts.scaled(original, 10.0),
        "other rank": factored(original.deltas(), 9),
    }[kind]


@pytest.mark.parametrize("kind", ["bytes", "other gauge", "ten times", "other rank"])
def test_a_copy_is_a_duplicate_with_one_vote(tmp_path: Path, kind: str) -> None:
    clients = cohorts.honest(7)
    clients["copy"] = copies(kind, clients["c3"])
    _, report = inspected(tmp_path, clients)
    verdicts = cohorts.verdicts(report)
    pair = [verdicts["c3"], verdicts["copy"]]
    assert pair.count("duplicate") == 1
    doubled = "c3" if verdicts["c3"] == "duplicate" else "copy"
    kept = "copy" if doubled == "c3" else "c3"
    assert cohorts.codes(report, doubled) == {"duplicate"}
    assert kept in cohorts.reasons(report, doubled)
    if kind == "ten times":
        large = cohorts.reasons(report, "copy")
        assert "times the median client's size" in large
    else:
        assert verdicts[kept] == "benign"
    weights = {c["name"]: c["weight"] for c in report["clients"]}
    assert weights[doubled] == 0.0
    assert all(v == "benign" for n, v in verdicts.items() if n not in ("c3", "copy"))


def test_a_copy_of_a_contaminated_client_says_so(tmp_path: Path) -> None:
    odd = cohorts.unrelated()
    clients = {**cohorts.honest(7), "odd": odd, "odd2": odd}
    exit_code, report = inspected(tmp_path, clients)
    verdicts = cohorts.verdicts(report)
    assert sorted([verdicts["odd"], verdicts["odd2"]]) == ["contaminated", "duplicate"]
    doubled = "odd" if verdicts["odd"] == "duplicate" else "odd2"
    assert "contaminated" in cohorts.reasons(report, doubled)
    assert exit_code == 3


def test_the_opposite_of_a_client_is_no_duplicate(tmp_path: Path) -> None:
    clients = cohorts.honest(7)
    clients["minus"] = cohorts.scaled(cohorts.regauged(clients["c3"]), -1.0)
    _, report = inspected(tmp_path, clients)
    assert cohorts.verdicts(report)["minus"] == "contaminated"
    assert cohorts.verdicts(report)["c3"] == "benign"
    assert "opposite" in cohorts.codes(report, "minus")


def test_a_crowd_of_copies_has_one_vote(tmp_path: Path) -> None:
    odd = cohorts.unrelated()
    crowd = {f"s{k}": cohorts.regauged(odd, seed=k) for k in range(8)}
    _, report = inspected(tmp_path, {**cohorts.honest(5), **crowd})
    verdicts = cohorts.verdicts(report)
    assert all(verdicts[f"c{k}"] == "benign" for k in range(5))
    crowd_verdicts = [verdicts[name] for name in crowd]
    assert crowd_verdicts.count("duplicate") == 7 and "benign" not in crowd_verdicts


def test_copies_that_leave_fewer_than_three_clients_are_undetermined(tmp_path: Path) -> None:
    clients = cohorts.honest(2)
    crowd = {f"s{k}": cohorts.regauged(clients["c0"], seed=k) for k in range(4)}
    exit_code, report = inspected(tmp_path, {**clients, **crowd})
    assert (exit_code, report["cohort"]["outcome"]) == (5, "undetermined")
    assert "6 clients, but 2 different updates" in report["cohort"]["outcome_text"]


# Whole cohorts without a verdict


def test_one_and_two_clients(tmp_path: Path) -> None:
    texts = {1: "1 client: nothing to compare with", 2: "2 clients: can't tell which is wrong"}
    for n, text in texts.items():
        exit_code, report = inspected(tmp_path / str(n), cohorts.honest(n))
        assert (exit_code, report["cohort"]["outcome_text"]) == (5, text)
        assert set(cohorts.verdicts(report).values()) == {"undetermined"}
        assert report["cohort"]["remedy"]


def test_nothing_shared(tmp_path: Path) -> None:
    exit_code, report = inspected(tmp_path, {f"c{k}": cohorts.unrelated(k) for k in range(8)})
    assert (exit_code, report["cohort"]["outcome"]) == (5, "undetermined")
    assert set(cohorts.verdicts(report).values()) == {"undetermined"}


def test_two_groups_of_similar_size_are_both_named(tmp_path: Path) -> None:
    others = {f"x{k}": client for k, client in enumerate(cohorts.colluders(4))}
    exit_code, report = inspected(tmp_path, {**cohorts.honest(5), **others})
    assert exit_code == 5
    text = report["cohort"]["outcome_text"]
    assert "5 (c0" in text and "4 (x0" in text


def test_all_updates_zero(tmp_path: Path) -> None:
    clients = {n: cohorts.scaled(c, 0.0) for n, c in cohorts.honest(4).items()}
    exit_code, report = inspected(tmp_path, clients)
    assert (exit_code, report["cohort"]["outcome"]) == (5, "undetermined")
    assert "zero" in report["cohort"]["outcome_text"]


def test_an_honest_client_with_half_the_data_is_not_contaminated(tmp_path: Path) -> None:
    deltas = cohorts.honest_deltas(7)
    own = cohorts.unrelated(3).deltas()
    half = {m: 0.7 * d + 0.7 * own[m] for m, d in deltas[6].items()}
    clients = {f"c{k}": factored(d, 6) for k, d in enumerate(deltas[:6])}
    _, report = inspected(tmp_path, {**clients, "half": factored(half, 12)})
    assert cohorts.verdicts(report)["half"] in ("benign", "suspicious")
