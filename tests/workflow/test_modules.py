"""Modules that not everybody has: which are compared, merged and written, at what cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.cohort.round import load_round
from clair_cli.maths.judge.thresholds import MODULE_NORM_CAP
from clair_cli.report.encode import report_json
from clair_cli.settings import make_settings
from clair_cli.words.reasons import explain_client
from clair_cli.workflow import outputs
from clair_cli.workflow.read import read_cohort
from tests import cohorts
from tests.cohorts import MODULES, Client, Clients, texts

EXTRA = "model.lm_head"
SHAPE = (20, 12)
FULL: dict[str, Any] = {"rank": "full", "dtype": "float32"}


def with_module(client: Client, delta: np.ndarray, name: str = EXTRA) -> Client:
    """The client with one more module, of rank 6 at most."""
    more = cohorts.factored({name: delta}, 6, client.config)
    return replace(client, A={**client.A, **more.A}, B={**client.B, **more.B})


def head(norm: float = 1.0, seed: int = 3) -> np.ndarray:
    return norm * cohorts.low_rank(SHAPE, 3, np.random.default_rng(seed))


def holding(clients: Clients, names: Iterable[str]) -> Clients:
    """These clients, some of them with an `lm_head` that they have in common for the most part."""
    common, found = head(0.8), dict(clients)
    for k, name in enumerate(names):
        found[name] = with_module(clients[name], common + head(0.6, seed=10 + k))
    return found


def in_memory(clients: Clients) -> dict[str, Any]:
    found = {}
    for name, client in clients.items():
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        found[name] = (state, client.fields)
    return found


def merged(clients: Clients, **options: Any) -> tuple[cohorts.Deltas, clair_cli.Report]:
    result = clair_cli.merge(in_memory(clients), **{**FULL, **options})
    assert result.tensors is not None and result.config is not None, result.report.cohort
    return cohorts.dense(result.tensors, result.config), result.report


def verdicts(report: clair_cli.Report) -> dict[str, str]:
    return {client.name: client.verdict for client in report.clients}


def sabotage(client: Client) -> Client:
    return cohorts.scaled(client, -1.0)


@pytest.mark.parametrize("holders", [3, 2])
def test_who_is_left_out_does_not_make_a_module_common(holders: int) -> None:
    """Three of six merged clients are enough for a module, two and a contaminated one are not."""
    clients = holding(cohorts.honest(7), [f"c{k}" for k in range(holders)])
    clients["c6"] = with_module(sabotage(clients["c6"]), head(0.5, seed=9))
    found, report = merged(clients)
    assert verdicts(report) == {f"c{k}": "benign" for k in range(6)} | {"c6": "contaminated"}
    wanted = cohorts.mean([c.deltas() for n, c in clients.items() if n != "c6"])
    if holders < 3:
        del wanted[EXTRA]
        words = f"1 module ('{EXTRA}') not merged: fewer than 3 of the 6 merged clients"
        assert any(words in warning for warning in texts(report.warnings))
    assert cohorts.relative(found, wanted) <= 1e-5
    assert not any("not merged" in w for w in texts(report.warnings)) or holders < 3


def test_one_clients_module_is_left_out_before_any_work() -> None:
    """Nothing of it is in the report but one remark."""
    clients = cohorts.honest(7)
    alone = {**clients, "c6": with_module(clients["c6"], head(1000.0))}
    found, report = merged(alone)
    assert set(verdicts(report).values()) == {"benign"}
    wanted = cohorts.mean([c.deltas() for c in clients.values()])
    assert cohorts.relative(found, wanted) <= 1e-5
    told = [w for w in texts(report.warnings) if EXTRA in w]
    assert told == [f"1 module ('{EXTRA}') left out: fewer than 3 of 7 clients have it "
                    "(1 client ('c6'))"]  # fmt: skip
    assert [m.name for m in report.modules] == sorted(MODULES)
    assert all(list(c.modules) == sorted(MODULES) for c in report.clients)


def test_intersection_is_of_the_merged() -> None:
    """A contaminated client that lacks modules takes none from the others."""
    clients = cohorts.honest(7)
    lacking = sorted(MODULES)[:3]
    clients["c6"] = cohorts.without(sabotage(clients["c6"]), lacking)
    clients["c5"] = cohorts.without(clients["c5"], lacking[:1])
    found, report = merged(clients, modules="intersection")
    assert verdicts(report)["c6"] == "contaminated" and verdicts(report)["c5"] == "benign"
    wanted = cohorts.mean([c.deltas() for n, c in clients.items() if n != "c6"])
    del wanted[lacking[0]]
    assert cohorts.relative(found, wanted) <= 1e-5
    assert report.merged is not None and report.merged.plain_mean_distance is not None


def test_an_empty_intersection_is_refused() -> None:
    """Each lacks another module, and half of them at most."""
    clients = {
        name: cohorts.without(client, [sorted(MODULES)[k]])
        for k, (name, client) in enumerate(cohorts.honest(6).items())
    }
    result = clair_cli.merge(in_memory(clients), modules="intersection", **FULL)
    assert (result.tensors, result.report.exit_code) == (None, 4)
    assert "no module is left that the merged clients" in result.report.cohort.outcome_text
    assert clair_cli.inspect(in_memory(clients), modules="intersection").report.exit_code == 0


@pytest.mark.parametrize("modules", ["union", "common"])
def test_a_module_that_is_zero_in_all_is_not_written(modules: str) -> None:
    honest = cohorts.honest(7)
    clients = {n: with_module(c, head(0.0)) for n, c in honest.items()}
    found, report = merged(clients, modules=modules)
    assert set(verdicts(report).values()) == {"benign"}
    assert sorted(found) == sorted(MODULES)
    words = f"1 module ('{EXTRA}') not merged: "
    assert any(w.startswith(words) for w in texts(report.warnings))
    (entry,) = [m for m in report.modules if m.name == EXTRA]
    assert (entry.written, entry.n_updates) == (None, 0)
    clients["c0"] = with_module(honest["c0"], head(1e-3))
    assert sorted(merged(clients, modules=modules)[0]) == sorted([*MODULES, EXTRA])


def test_only_zeros_are_written_as_they_are() -> None:
    clients = {n: cohorts.scaled(c, 0.0) for n, c in cohorts.honest(4).items()}
    found, _ = merged(clients, allow_undetermined=True)
    assert sorted(found) == sorted(MODULES)
    assert all(not delta.any() for delta in found.values())


@pytest.mark.parametrize("modules", ["common", "union", "intersection"])
@pytest.mark.parametrize("holders", [0, 2])
def test_the_previous_adapters_modules_stay(modules: str, holders: int) -> None:
    """Whoever has them, and as they were unless enough clients have them."""
    start = cohorts.random_deltas(np.random.default_rng(5))
    honest = cohorts.honest_deltas(6)
    before = {**start, EXTRA: head()}
    clients = {}
    for k, own in enumerate(honest):
        deltas = cohorts.plus(start, own)
        if k < holders:
            deltas[EXTRA] = before[EXTRA] + head(0.5, seed=20 + k)
        clients[f"c{k}"] = cohorts.factored(deltas, 9, seed=k)
    previous = in_memory({"p": cohorts.factored(before, 3)})["p"]
    found, report = merged(clients, modules=modules, previous=previous)
    assert set(verdicts(report).values()) == {"benign"}
    wanted = cohorts.plus(start, cohorts.mean(honest))
    wanted[EXTRA] = before[EXTRA]
    if modules == "union":
        wanted[EXTRA] = before[EXTRA] + sum(head(0.5, seed=20 + k) for k in range(holders)) / 6
    assert cohorts.relative(found, wanted) <= 1e-5
    assert cohorts.relative({"m": found[EXTRA]}, {"m": wanted[EXTRA]}) <= 1e-5


def test_a_previous_module_that_too_few_of_the_merged_have_stays() -> None:
    """Three have it, but one of them is left out."""
    start = cohorts.random_deltas(np.random.default_rng(5))
    before = {**start, EXTRA: head()}
    clients = {}
    for k, own in enumerate(cohorts.honest_deltas(7)):
        deltas = cohorts.plus(start, own if k < 6 else {m: -d for m, d in own.items()})
        if k > 3:
            deltas[EXTRA] = before[EXTRA] + head(0.5, seed=20 + k)
        clients[f"c{k}"] = cohorts.factored(deltas, 9, seed=k)
    previous = in_memory({"p": cohorts.factored(before, 3)})["p"]
    found, report = merged(clients, previous=previous)
    assert verdicts(report)["c6"] == "contaminated"
    assert cohorts.relative({"m": found[EXTRA]}, {"m": before[EXTRA]}) <= 1e-5
    assert any("not merged: fewer than 3 of the 6" in w for w in texts(report.warnings))


def test_room_is_looked_for_as_the_majority_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge module that one client has, contaminated or not, does not end the round."""
    asked: list[int] = []
    monkeypatch.setattr(outputs, "check_room", lambda _folder, least, _output: asked.append(least))
    clients = cohorts.honest(7)
    clair_cli.merge(in_memory(clients), tmp_path / "a.safetensors", modules="union")
    clients["c6"] = with_module(sabotage(clients["c6"]), head(1.0))
    clair_cli.merge(in_memory(clients), tmp_path / "b.safetensors", modules="union")
    assert asked[0] == asked[1] == 2 * 8 * sum(map(sum, MODULES.values()))


def test_old_reports_are_verified_with_their_own_words(tmp_path: Path) -> None:
    clients = in_memory(holding(cohorts.honest(7), ["c0"]))
    path = tmp_path / "m.safetensors"
    result = clair_cli.merge(clients, path, modules="union", **FULL)
    assert result.report.options["modules"] == "union"
    assert any(EXTRA in name for name in result.tensors or {})
    assert not clair_cli.verify(path, clients).differences


@pytest.mark.parametrize("modules", ["union", "same"])
@pytest.mark.parametrize(("norm", "verdict"), [(1.9, "benign"), (5.6, "benign"),
                                                (8.5, "suspicious"),
                                                (13.0, "contaminated")])  # fmt: skip
def test_a_module_of_ones_own_is_held_against_the_others(
    modules: str, norm: float, verdict: str
) -> None:
    """It has no median; the largest of the other modules' is near one."""
    clients = cohorts.honest(7)
    clients["c6"] = with_module(clients["c6"], head(norm))
    found, report = merged(clients, modules=modules)
    assert verdicts(report) == {f"c{k}": "benign" for k in range(6)} | {"c6": verdict}
    weight = report.clients[6].weight
    codes = [reason.code for reason in report.clients[6].reasons]
    if norm == 1.9:
        assert (codes, weight) == ([], pytest.approx(1 / 7))
        wanted = cohorts.mean([c.deltas() for c in clients.values()])
        assert cohorts.relative(found, wanted) <= 1e-5
    elif verdict == "benign":  # no more than twice the largest median
        counts = MODULE_NORM_CAP / report.clients[6].scores.measures["module_norm_ratio"]
        assert (codes, weight) == (["large"], pytest.approx(counts / (6 + counts)))
        (said,) = explain_client(report.clients[6], report)
        assert said.short == f"large: it counts for {100 * counts:.0f} % of its weight"
        assert counts * norm == pytest.approx(MODULE_NORM_CAP, rel=0.05)
    else:  # so large that the client is, as a whole
        assert codes == ["norm"]
        assert weight * norm <= MODULE_NORM_CAP / 6  # of seven, one of which counts little


def test_who_has_too_few_modules_in_common_has_no_loading() -> None:
    """One of six: less than a quarter, so that it is held against nobody."""
    lacking = sorted(MODULES)
    clients = cohorts.honest(8)
    clients["c6"] = cohorts.without(clients["c6"], lacking[1:])
    clients["c7"] = cohorts.without(clients["c7"], lacking[2:])
    _, report = merged(clients, modules="union")
    assert verdicts(report) == {**dict.fromkeys(clients, "benign"), "c6": "suspicious"}
    known = {c.name: c.scores.loading is not None for c in report.clients}
    assert known == {**dict.fromkeys(clients, True), "c6": False}
    assert [c.scores.loading_se is not None for c in report.clients] == list(known.values())


def test_who_lacks_the_largest_module_is_not_odd_for_it() -> None:
    """Nor who has a small one that the others lack: what all have is compared."""
    clients = {
        name: replace(client, B={m: (8.0 if m == EXTRA else 1.0) * b for m, b in client.B.items()})
        for name, client in holding(cohorts.honest(8), [f"c{k}" for k in range(6)]).items()
    }
    clients["c7"] = with_module(clients["c7"], head(0.05), "model.small")
    _, report = merged(clients, modules="union")
    assert verdicts(report) == dict.fromkeys(clients, "benign")
    assert all((client.p_honest or 0.0) > 0.05 for client in report.clients)


# Ranks


def padded(deltas: cohorts.Deltas, rank: int, seed: int = 0) -> Client:
    """Delta weights in factors of a rank above their width."""
    rng = np.random.default_rng(seed)
    A, B = {}, {}
    for module, delta in deltas.items():
        B[module] = rng.standard_normal((delta.shape[0], rank))
        A[module] = np.linalg.pinv(B[module]) @ delta / 2.0
    return Client(A, B, {"r": rank, "lora_alpha": 2 * rank})


def test_rank_above_the_width_is_worth_no_more_than_the_width() -> None:
    """The merge, verdicts and scores are those of the same delta weights in lower rank; the report
    shows the file's rank."""
    clients = cohorts.honest(6)
    clients["c5"] = sabotage(clients["c5"])
    high = {
        **clients,
        "c0": padded(clients["c0"].deltas(), 50),
        "c5": padded(clients["c5"].deltas(), 900),
    }
    round_ = loaded(high)
    shapes = {m: min(shape) for m, shape in MODULES.items()}
    for module, ranks in round_.module_ranks.items():
        assert sorted(ranks) == sorted([6, 6, 6, 6, shapes[module], shapes[module]])
    low, high_ = merged(clients), merged(high)
    assert cohorts.relative(high_[0], low[0]) <= 1e-6
    assert verdicts(high_[1]) == verdicts(low[1])
    for one, other in zip(low[1].clients, high_[1].clients, strict=True):
        assert other.scores.measures["norm"] == pytest.approx(one.scores.measures["norm"])
    assert [c.ranks for c in high_[1].clients] == [(50,), (6,), (6,), (6,), (6,), (900,)]
    assert {s.rank for s in high_[1].clients[5].modules.values()} == {900}


def loaded(clients: Clients, **options: Any) -> Any:
    settings = make_settings("merge", in_memory(clients), None, options)
    return load_round(settings, read_cohort(settings))


def test_a_previous_adapter_of_high_rank() -> None:
    start = cohorts.random_deltas(np.random.default_rng(5))
    honest = cohorts.honest_deltas(5)
    clients = {f"c{k}": cohorts.factored(cohorts.plus(start, own), 9, seed=k)
               for k, own in enumerate(honest)}  # fmt: skip
    before = in_memory({"p": padded(start, 100)})["p"]
    round_ = loaded(clients, previous=before)
    assert {m: round_.previous_rank(m) for m in MODULES} == {m: min(s) for m, s in MODULES.items()}
    found, _ = merged(clients, previous=before)
    assert cohorts.relative(found, cohorts.plus(start, cohorts.mean(honest))) <= 1e-5


def test_many_tiny_modules_of_the_highest_rank() -> None:
    """Each has one component, whatever its rank, where all clients have them too."""
    rng = np.random.default_rng(0)
    clients = {}
    for k, deltas in enumerate(cohorts.honest_deltas(5)):
        tiny = {f"tiny.{m:02}.q": rng.standard_normal((1, 1)) for m in range(60)}
        clients[f"c{k}"] = padded({**deltas, **tiny}, 1024 if k == 0 else 41, seed=k)
    ranks = {m: r for m, r in loaded(clients).module_ranks.items() if m.startswith("tiny")}
    assert list(ranks.values()) == [(1,) * 5] * 60


# Numbers of modules


def report_size(clients: Clients, **options: Any) -> tuple[int, dict[str, str]]:
    report = clair_cli.inspect(in_memory(clients), **options).report
    return len(report_json(report)), verdicts(report)


def test_the_report_does_not_grow_with_one_clients_modules() -> None:
    """Whether its modules are left out or are so many that it is rejected."""
    clients = cohorts.honest(7)
    usual, _ = report_size(clients)
    for n, rule, verdict in ((40, "common", "benign"), (41, "common", "rejected"),
                             (3000, "union", "rejected")):  # fmt: skip
        odd = clients["c6"]
        more = {f"x.{m}": np.ones((1, 1)) for m in range(n)}
        six = {m: np.ones((6, 1)) for m in more}
        clients_now = {
            **clients,
            "c6": replace(odd, A={**odd.A, **six}, B={**odd.B, **{m: six[m].T for m in more}}),
        }
        size, found = report_size(clients_now, modules=rule)
        assert found["c6"] == verdict and size < usual + 500
