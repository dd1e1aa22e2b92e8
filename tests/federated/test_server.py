"""`Server`: rounds of tiny clients without any framework."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.errors import OutputError, UsageError
from clair_cli.federated import Result, Server
from tests.federated.clients import HEAD, MODULES, PREFIX, State, config, deltas, fresh, trained

SIX = range(6)
FLIPPED = (3, 5)


def cohort(server: Server, seed: int = 0, *, ranks: tuple[int, ...] = (4,) * 6) -> dict[int, State]:
    """A round of six clients who start from what they are sent; two flip what they trained."""
    return {
        k: trained(
            server.adapter_for(k), 10 * seed + k, rank=ranks[k], sign=-1 if k in FLIPPED else 1
        )
        for k in SIX
    }


def verdicts(result: Result) -> dict[str, str]:
    return {client.name: client.verdict for client in result.report.clients}


def left_out(result: Result) -> set[int]:
    return {int(c.name) for c in result.report.clients if c.weight == 0}


def rejected(result: Result, name: str) -> str:
    (client,) = (c for c in result.report.clients if c.name == name)
    assert client.verdict == "rejected" and client.weight == 0
    return client.reasons[0].text


def test_three_rounds_leave_both_attackers_out_of_each() -> None:
    server = Server(config())
    for n in range(3):
        result = server.aggregate(cohort(server, n))
        assert (result.outcome, result.round, left_out(result)) == ("use", n + 1, set(FLIPPED))
    assert [record.outcome for record in server.history] == ["judged"] * 3
    assert server.history[-1].verdicts["3"] == "contaminated"
    assert server.history[-1].sha256 == result.report.merged.sha256  # type: ignore[union-attr]


def test_the_merge_is_the_one_of_the_python_function() -> None:
    server = Server(config())
    first = cohort(server)
    one = server.aggregate(first)
    options: dict[str, Any] = {"rank": "same", "keep_alpha": True, "max_weight": 0.25}
    twin = clair_cli.merge({str(k): (s, config()) for k, s in first.items()}, fresh=True, **options)
    assert one.tensors is not None and twin.tensors is not None
    assert all((one.tensors[key] == t.numpy()).all() for key, t in twin.tensors.items())
    second = cohort(server, 1)
    two = server.aggregate(second)
    twin = clair_cli.merge(
        {str(k): (s, config()) for k, s in second.items()},
        previous=(twin.tensors, twin.config), **options,
    )  # fmt: skip
    assert two.tensors is not None and twin.tensors is not None
    assert all((two.tensors[key] == t.numpy()).all() for key, t in twin.tensors.items())
    assert two.report.clients == twin.report.clients


def test_without_what_it_remembers_the_later_rounds_would_be_lost_or_wrong() -> None:
    """The task's share of what is sent is in every reply: with no previous adapter, all agree."""
    server = Server(config())
    for n in range(3):
        server.aggregate(cohort(server, n))
    replies = {str(k): (s, config()) for k, s in cohort(server, 3).items()}
    assert clair_cli.merge(replies, fresh=True).report.with_verdict("contaminated") == ()
    assert left_out(server.aggregate({k: s for k, (s, _) in replies.items()})) == set(FLIPPED)


# what is sent


MIXED = (8, 4, 8, 4, 16, 8)


def mixed_server() -> Server:
    return Server({k: config(rank) for k, rank in enumerate(MIXED)})


def test_clients_of_mixed_ranks_get_the_bank_cut_to_their_own() -> None:
    server = mixed_server()
    for n in range(3):
        result = server.aggregate(cohort(server, n, ranks=MIXED))
        assert (result.outcome, left_out(result)) == ("use", set(FLIPPED))
        assert result.report.merged is not None and result.report.merged.rank == 16
        assert [c.ranks for c in result.report.clients] == [(r,) for r in MIXED]
        assert [c.scales for c in result.report.clients] == [(2.0,)] * 6
    sent = [server.adapter_for(k) for k in SIX]
    for rank, state in zip(MIXED, sent, strict=True):
        assert state is not None
        assert {t.shape[0] for key, t in state.items() if "lora_A" in key} == {rank}
        whole = deltas(sent[4])["l0.q"]  # type: ignore[arg-type]
        left, values, right = np.linalg.svd(whole)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert np.allclose(deltas(state)["l0.q"], best, atol=1e-5)
    assert result.config is not None and result.config["r"] == 8  # most of the merged have it
    assert result.tensors is not None
    assert result.tensors[f"{PREFIX}l0.q.lora_A.weight"].shape == (8, 16)


def test_a_mixed_round_adds_what_each_has_added_to_its_own_start() -> None:
    """bank + mean of (reply - start), exactly: the rest of the bank that a client of low rank never
    had is not taken away."""
    server = mixed_server()
    server.aggregate(cohort(server, ranks=MIXED))
    starts = {k: server.adapter_for(k) for k in SIX}
    bank = deltas(starts[4])  # type: ignore[arg-type]
    replies = cohort(server, 1, ranks=MIXED)
    server.aggregate(replies)
    after = deltas(server.adapter_for(4))  # type: ignore[arg-type]
    for module in MODULES:
        moved = [
            deltas(replies[k])[module] - deltas(starts[k])[module]  # type: ignore[arg-type]
            for k in SIX
            if k not in FLIPPED
        ]
        expected = bank[module] + np.mean(moved, axis=0)
        values = np.linalg.svd(expected, compute_uv=False)
        error = np.linalg.norm(after[module] - expected)
        assert error <= np.linalg.norm(values[16:]) + 1e-4


def test_a_client_of_higher_rank_than_the_bank_can_train_all_of_it() -> None:
    server = Server({**{k: config(4) for k in SIX}, 9: config(8)})
    server.aggregate(cohort(server))
    late = server.adapter_for(9)
    assert late is not None
    for m, (out, in_) in MODULES.items():
        lora_A = late[f"{PREFIX}{m}.lora_A.weight"]
        lora_B = late[f"{PREFIX}{m}.lora_B.weight"]
        assert (lora_A.shape, lora_B.shape) == ((8, in_), (out, 8))
        assert np.abs(lora_A).sum(1).min() > 0 and not lora_B[:, 4:].any()


def test_another_alpha_gets_the_same_update() -> None:
    server = Server({**{k: config(4) for k in SIX}, 9: config(4, alpha=12)})
    server.aggregate(cohort(server))
    one, other = server.adapter_for(0), server.adapter_for(9)
    assert one is not None and other is not None
    assert all(np.allclose(deltas(one)[m], deltas(other, 3.0)[m], atol=1e-5) for m in MODULES)


def test_a_late_client_counts_from_what_it_was_sent() -> None:
    server = Server(config())
    server.aggregate(cohort(server))
    old = server.adapter_for(2)
    replies = cohort(server, 1)
    del replies[2]  # it is still training
    server.aggregate(replies)
    replies = {k: trained(server.adapter_for(k), 20 + k, sign=-1 if k in FLIPPED else 1)
               for k in SIX if k != 2}  # fmt: skip
    # made for it in the round before, and sent nothing since
    result = server.aggregate({**replies, 2: trained(old, 22)})
    assert verdicts(result)["2"] == "benign" and left_out(result) == set(FLIPPED)
    assert result.report.clients[2].ranks == (4,)


def test_a_start_that_is_no_longer_kept_rejects_its_client() -> None:
    server = Server(config())
    server.aggregate(cohort(server))
    old = server.adapter_for(7)
    for n in range(1, 5):
        assert old is not None
        kept = server.aggregate(
            {**cohort(server, n), 7: trained(old, 7)} if n < 4 else cohort(server, n)
        )
        if n < 4:
            assert verdicts(kept)["7"] != "rejected"
    result = server.aggregate({**cohort(server, 5), 7: trained(old, 7)})
    assert "round 1, which is no longer kept" in rejected(result, "7")
    assert left_out(result) == {*FLIPPED, 7}


def test_a_server_that_sends_the_result_itself_needs_not_ask_per_client() -> None:
    server, sent = Server(config()), None
    for n in range(3):
        replies = {k: trained(sent, 10 * n + k, sign=-1 if k in FLIPPED else 1) for k in SIX}
        result = server.aggregate(replies)
        assert left_out(result) == set(FLIPPED)
        sent = result.tensors


def test_a_start_that_is_no_fresh_adapter() -> None:
    start = trained(None, 99)
    server = Server(config())
    server.start_from(start)
    sent = server.adapter_for(0)
    assert sent is not None
    assert all(np.allclose(deltas(sent)[m], deltas(start)[m], atol=1e-5) for m in MODULES)
    assert left_out(server.aggregate(cohort(server))) == set(FLIPPED)
    with pytest.raises(UsageError, match="before the first merge"):
        server.start_from(start)


def test_a_start_without_an_update_is_fresh() -> None:
    server = Server(config())
    server.start_from(fresh())
    assert server.adapter_for(0) is None
    with pytest.raises(UsageError, match="rank 8"):
        server.start_from(fresh(8))


# what comes


def as_torch(state: State, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array).to(dtype) for key, array in state.items()}


def test_arrays_are_of_the_kind_that_came() -> None:
    server = Server(config())
    one = server.aggregate(cohort(server)).tensors
    other = Server(config()).aggregate(
        {k: as_torch(s) for k, s in cohort(Server(config())).items()}
    )
    assert one is not None and other.tensors is not None
    assert all(isinstance(array, np.ndarray) for array in one.values())
    assert all((other.tensors[key].numpy() == array).all() for key, array in one.items())


def test_bfloat16_stays_in_torch_and_is_float32_in_numpy() -> None:
    server = Server(config())
    states = {k: as_torch(s, torch.bfloat16) for k, s in cohort(server).items()}
    tensors = server.aggregate(states).tensors
    assert tensors is not None and {t.dtype for t in tensors.values()} == {torch.bfloat16}
    server._state.kind = "numpy"
    sent = server.adapter_for(0)
    assert sent is not None and {a.dtype for a in sent.values()} == {np.dtype("float32")}


def test_heads_are_averaged_and_sent() -> None:
    server = Server({**config(), "modules_to_save": ["score"]})
    states: dict[int, State] = {}
    for k, state in cohort(server).items():
        noise = np.random.default_rng(k).normal(size=(3, 16)) * 0.01
        states[k] = {**state, HEAD: (1.0 + noise).astype(np.float32)}
    result = server.aggregate(states)
    assert result.tensors is not None and result.config is not None
    expected = np.mean([states[k][HEAD] for k in SIX if k not in FLIPPED], axis=0)
    assert np.allclose(result.tensors[HEAD], expected, atol=0.02)
    sent = server.adapter_for(9)  # who joins late
    assert sent is not None and (sent[HEAD] == result.tensors[HEAD]).all()


BAD_WEIGHTS = [0, -1, math.nan, math.inf, True, "8", None, 10**400, [1.0]]


@pytest.mark.parametrize("weight", BAD_WEIGHTS, ids=lambda w: str(w)[:6])
def test_a_weight_that_is_no_number_above_0_rejects_its_client(weight: Any) -> None:
    server = Server(config())
    result = server.aggregate(cohort(server), dict.fromkeys(SIX, 100) | {1: weight})
    assert "expected a finite number above 0" in rejected(result, "1")
    assert result.outcome == "use" and left_out(result) == {1, *FLIPPED}


def test_a_missing_weight_rejects_its_client_and_a_further_one_does_not_matter() -> None:
    server = Server(config())
    weights = {k: 100 for k in SIX if k != 0} | {"gone": 5}
    assert "missing" in rejected(server.aggregate(cohort(server), weights), "0")


def test_a_boast_is_capped() -> None:
    server = Server(config(), max_weight=0.4)
    result = server.aggregate(cohort(server), dict.fromkeys(SIX, 100) | {1: 1e12})
    shares = {c.name: c.weight for c in result.report.clients}
    assert shares["1"] == pytest.approx(0.4) and shares["0"] == pytest.approx(0.2)
    assert result.report.cohort.weights is not None
    assert result.report.cohort.weights.capped == ("1",)


def test_a_cap_below_an_equal_share_gives_equal_ones() -> None:
    """Four are merged: 0.25 is all that a cap can hold, and nobody's boast counts below."""
    for cap in (0.25, 0.2, 0.1):
        server = Server(config(), max_weight=cap)
        result = server.aggregate(cohort(server), {k: 10.0**k for k in SIX})
        assert sorted(c.weight for c in result.report.clients) == [0, 0] + [0.25] * 4
    assert Server(config()).aggregate(cohort(server)).outcome == "use"


NONSENSE: dict[str, Any] = {
    "nothing": None,
    "no mapping": [1, 2],
    "empty": {},
    "no arrays": {"a": "b"},
    "other tensors": {"weight": np.ones((3, 3), np.float32)},
    "number keys": {0: np.ones((3, 3), np.float32)},
    "not finite": {
        **trained(None, 1), f"{PREFIX}l0.q.lora_A.weight": np.full((4, 16), np.nan, np.float32)
    },
    "other rank": trained(None, 1, rank=8),
    "one tensor missing": {
        k: a for k, a in trained(None, 1).items() if k != f"{PREFIX}l0.q.lora_B.weight"
    },
    "objects": {f"{PREFIX}l0.q.lora_A.weight": np.array([object()])},
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_rejected_by_name_and_the_round_goes_on(name: str) -> None:
    server = Server(config())
    for n in range(2):
        result = server.aggregate({**cohort(server, n), "evil": NONSENSE[name]})
        assert rejected(result, "evil")
        assert result.outcome == "use" and left_out_names(result) == {"3", "5", "evil"}


def left_out_names(result: Result) -> set[str]:
    return {c.name for c in result.report.clients if c.weight == 0}


def test_a_garbled_reply_changes_nothing_for_the_next_round() -> None:
    """What a client is sent has the form of its last usable reply."""
    server = mixed_server()
    server.aggregate(cohort(server, ranks=MIXED))
    before = server.adapter_for(1)
    states = cohort(server, 1, ranks=MIXED)
    key = f"{PREFIX}l0.q.lora_B.weight"
    result = server.aggregate({**states, 1: {**states[1], key: states[1][key][:-1]}})
    assert "shape" in rejected(result, "1") and left_out(result) == {1, *FLIPPED}
    after = server.adapter_for(1)
    assert before is not None and after is not None
    assert {k: a.shape for k, a in before.items()} == {k: a.shape for k, a in after.items()}


def test_a_client_may_bring_its_own_config() -> None:
    server = Server(config())
    for n in range(2):
        states: dict[Any, Any] = cohort(server, n)
        sent = server.adapter_for("own")
        states["own"] = (trained(sent if n else None, 90 + n, rank=8), config(8))
        states["none"] = (states[0], 3)
        result = server.aggregate(states)
        assert "config" in rejected(result, "none")
        assert verdicts(result)["own"] == "benign"
        assert left_out_names(result) == {"3", "5", "none"}
    sent = server.adapter_for("own")
    assert sent is not None and sent[f"{PREFIX}l0.q.lora_A.weight"].shape == (8, 16)


def kohya(state: State) -> State:
    found = {}
    for m in MODULES:
        name = f"lora_unet_{m.replace('.', '_')}"
        found[f"{name}.lora_down.weight"] = state[f"{PREFIX}{m}.lora_A.weight"]
        found[f"{name}.lora_up.weight"] = state[f"{PREFIX}{m}.lora_B.weight"]
        found[f"{name}.alpha"] = np.array(8.0, np.float32)
    return found


def from_kohya(state: State) -> State:
    found = {}
    for m in MODULES:
        name = f"lora_unet_{m.replace('.', '_')}"
        assert state[f"{name}.alpha"] == 8.0
        found[f"{PREFIX}{m}.lora_A.weight"] = state[f"{name}.lora_down.weight"]
        found[f"{PREFIX}{m}.lora_B.weight"] = state[f"{name}.lora_up.weight"]
    return found


def whole_model(state: State) -> State:
    """Names as `model.state_dict()` has them, with the adapter's."""
    return {key.replace(".weight", ".default.weight"): array for key, array in state.items()}


def from_whole_model(state: State) -> State:
    return {key.replace(".default.weight", ".weight"): array for key, array in state.items()}


def convolution(state: State) -> State:
    """One of the layers has a kernel."""
    found = dict(state)
    for key in (f"{PREFIX}l0.q.lora_A.weight", f"{PREFIX}l0.q.lora_B.weight"):
        shape = (-1, 4, 2, 2) if "lora_A" in key else (*state[key].shape, 1, 1)
        found[key] = state[key].reshape(shape)
    return found


def from_convolution(state: State) -> State:
    assert state[f"{PREFIX}l0.q.lora_A.weight"].ndim == 4
    return {key: array.reshape(len(array), -1) for key, array in state.items()}


@pytest.mark.parametrize(
    ("to", "back", "given", "ranks"),
    [
        (kohya, from_kohya, None, (4,) * 6),
        (whole_model, from_whole_model, config(), (4,) * 6),
        (convolution, from_convolution, {k: config(r) for k, r in enumerate(MIXED)}, MIXED),
    ],
)
def test_what_is_sent_has_the_names_and_shapes_that_came(
    to: Any, back: Any, given: Any, ranks: tuple[int, ...]
) -> None:
    server = Server(given)
    for n in range(2):
        sent = {k: server.adapter_for(k) for k in SIX}
        starts = {k: state and back(state) for k, state in sent.items()}
        states = {
            k: to(trained(starts[k], 10 * n + k, rank=ranks[k], sign=-1 if k in FLIPPED else 1))
            for k in SIX
        }
        result = server.aggregate(states)
        assert (result.outcome, left_out(result)) == ("use", set(FLIPPED))
        for k in SIX:
            again = server.adapter_for(k)
            assert again is not None
            assert {key: a.shape for key, a in again.items()} == {
                key: a.shape for key, a in states[k].items()
            }


def garbled(state: State, chance: random.Random) -> Any:
    """A reply with one thing wrong in it."""
    key = chance.choice(sorted(state))
    array = state[key]
    return chance.choice((
        {**state, key: array[:, :-1]},
        {**state, key: array[:-1]},
        {**state, key: array.T},
        {**state, key: array.astype(np.float64) * 1e30},
        {**state, key: array * 0},
        {**state, key: array.astype(complex)},
        {**state, key: np.full_like(array, np.inf)},
        {k: a * np.float32(1e18) for k, a in state.items()},
        {k: a for k, a in state.items() if k != key},
        {**state, HEAD: np.full((3, 4), 1e38, np.float32)},
        (state, config(4, alpha=0.0)),
        (state, {"r": 10**400, "lora_alpha": 8}),
        (state, config(16)),
        (trained(None, 1, rank=16), config(16)),
    ))  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_sent_nothing_raises(seed: int) -> None:
    chance = random.Random(seed)
    ranks = MIXED if seed % 2 else (4,) * 6
    server = Server({k: config(rank) for k, rank in enumerate(ranks)})
    weights = (1, 100, 1e308, 1e-320, 0, math.nan)
    for n in range(3):
        states: dict[int, Any] = cohort(server, n, ranks=ranks)
        for k in chance.sample(range(6), chance.choice((1, 2, 4))):
            states[k] = garbled(states[k], chance)
        result = server.aggregate(states, {k: chance.choice(weights) for k in SIX})
        assert len(result.report.clients) in (0, 6)
        assert (result.tensors is None) == (result.outcome == "keep")
        for k in SIX:
            sent = server.adapter_for(k)
            assert sent is None or all(np.isfinite(array).all() for array in sent.values())


def test_a_missing_module_is_no_update_there() -> None:
    server = Server(config())
    server.aggregate(cohort(server))
    states = cohort(server, 1)
    for side in "AB":
        del states[1][f"{PREFIX}l0.q.lora_{side}.weight"]
    result = server.aggregate(states)
    assert verdicts(result)["1"] == "benign" and left_out(result) == set(FLIPPED)


@pytest.mark.parametrize("states", [{}, {"a": None}, {"a": {}, "b": [], "c": 1}])
def test_a_lost_round_keeps_what_was_there(states: dict[str, Any]) -> None:
    server = Server(config())
    before = server.aggregate(cohort(server)).tensors
    lost = server.aggregate(states)
    assert (lost.outcome, lost.tensors, lost.config) == ("keep", None, None)
    assert lost.why and lost.report.exit_code == 4 and lost.report.cohort.outcome == "refused"
    sent = server.adapter_for(0)
    assert before is not None and sent is not None
    assert all((sent[key] == array).all() for key, array in before.items())
    assert left_out(server.aggregate(cohort(server, 2))) == set(FLIPPED)
    assert [record.outcome for record in server.history] == ["judged", "refused", "judged"]


def test_two_clients_are_undetermined_unless_one_is_trusted() -> None:
    two = {k: s for k, s in cohort(Server(config())).items() if k < 2}
    lost = Server(config()).aggregate(two)
    assert lost.outcome == "keep" and lost.report.exit_code == 5 and "2" in lost.why
    server = Server(config(), trust=[0, "not here"])
    used = server.aggregate(two)
    assert used.outcome == "use" and used.report.clients[0].trusted


def test_most_clients_of_another_shape_lose_the_round_and_not_the_server() -> None:
    """They outvote the adapter that they were sent: nobody in particular is to blame."""
    server = Server(config())
    server.aggregate(cohort(server))
    key = f"{PREFIX}l0.q.lora_A.weight"
    states = {k: {**s, key: np.ones((4, 17), np.float32)} for k, s in cohort(server, 1).items()}
    assert server.aggregate(states).outcome == "keep"
    assert left_out(server.aggregate(cohort(server, 2))) == set(FLIPPED)


def test_names_are_anything_that_has_a_text() -> None:
    server = Server(config())
    names = [2**63, "Zo\u00eb", ("a", 1), "1", 1, "\ud800x"]
    states = dict(zip(names, cohort(server).values(), strict=True))
    result = server.aggregate(states, dict.fromkeys(names, 5))  # type: ignore[misc]
    expected = {str(2**63), "Zo\u00eb", "('a', 1)", "'1'", "1", "\\ud800x"}
    assert {c.name for c in result.report.clients} == expected
    assert result.outcome == "use" and len(left_out_names(result)) == 2


def test_a_reply_that_began_elsewhere_loses_the_round() -> None:
    """Nobody uses what it was sent: then what they share is not theirs."""
    server = Server(config())
    for n in range(3):
        server.aggregate(cohort(server, n))
    cohort(server)  # they were sent it
    result = server.aggregate({k: trained(None, 30 + k) for k in SIX})
    assert result.outcome == "keep" and "--previous" in result.why


# the operator's own mistakes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"config": {}}, UsageError),
        ({"config": 3}, UsageError),
        ({"rank": 0}, UsageError),
        ({"rank": 4096}, UsageError),
        ({"max_weight": 0}, UsageError),
        ({"trust": "anna"}, UsageError),
        ({"dtype": "int8"}, UsageError),
        ({"previous": "x"}, TypeError),
        ({"output": "x"}, TypeError),
    ],
)
def test_a_wrong_argument_is_told_at_once(arguments: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        Server(**{"config": config(), **arguments})


# save and load


def test_a_saved_server_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    path = tmp_path / "server.safetensors"
    server = Server({k: config(r) for k, r in enumerate(MIXED)}, trust=[0], max_weight=0.3)
    server.aggregate(cohort(server, ranks=MIXED))
    replies = cohort(server, 1, ranks=MIXED)  # it remembers who was sent what
    server.save(path)
    again = Server.load(path)
    assert again.history == server.history and again.round == 1
    one, other = server.aggregate(replies), again.aggregate(replies)
    assert one.report == other.report
    assert one.tensors is not None and other.tensors is not None
    assert all((one.tensors[key] == array).all() for key, array in other.tensors.items())
    server.save(path)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_load_takes_other_arguments(tmp_path: Path) -> None:
    Server(config()).save(tmp_path / "s.safetensors")
    server = Server.load(tmp_path / "s.safetensors", max_weight=0.5)
    assert server._options["max_weight"] == 0.5


@pytest.mark.parametrize("content", [b"", b"no", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_server(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"s\.safetensors"):
        Server.load(tmp_path / "s.safetensors")


def test_what_no_file_can_hold_is_named(tmp_path: Path) -> None:
    server = Server(config(), trust_adapter=(trained(None, 1), config()))
    with pytest.raises(UsageError, match="trust_adapter"):
        server.save(tmp_path / "s.safetensors")
    with pytest.raises((OutputError, UsageError)):
        Server(config()).save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_server_imports_no_framework_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = Server(config())
    server.aggregate(cohort(server))
    assert capfd.readouterr() == ("", "")
    code = (
        "import sys, clair_cli, clair_cli.federated; assert 'torch' not in sys.modules;"
        " clair_cli.federated.Server; assert not {'flwr', 'nvflare', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
