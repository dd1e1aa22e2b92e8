"""What strangers may send a server: it never raises, and the round goes on."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.errors import UsageError
from clair_cli.federated import Server
from tests.federated.clients import HEAD, PREFIX, State, config, trained
from tests.federated.rounds import (
    FLIPPED,
    MIXED,
    SIX,
    as_torch,
    cohort,
    kohya,
    left_out,
    left_out_names,
    mixed_server,
    rejected,
    verdicts,
)


def test_arrays_are_of_the_kind_that_came() -> None:
    server = Server(config())
    one = server.aggregate(cohort(server)).tensors
    other = Server(config()).aggregate(
        {k: as_torch(s) for k, s in cohort(Server(config())).items()}
    )
    assert one is not None and other.tensors is not None
    assert all(isinstance(array, np.ndarray) for array in one.values())
    assert all((other.tensors[key].numpy() == array).all() for key, array in one.items())


class Packed:
    """An array as a framework holds it: `numpy()` unpacks it."""

    def __init__(self, array: np.ndarray | None) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        if self.array is None:
            raise MemoryError("too large \x1b")
        return self.array


def test_packed_arrays_are_unpacked_and_who_sent_what_cannot_be_is_rejected() -> None:
    """Beside an empty config of one's own, which is the server's."""
    plain, server = Server(config()), Server(config())
    states: dict[Any, Any] = {
        k: ({key: Packed(array) for key, array in s.items()}, {}) for k, s in cohort(server).items()
    }
    states["evil"] = {**states[0][0], f"{PREFIX}l1.q.lora_B.weight": Packed(None)}
    one, other = plain.aggregate(cohort(plain)).tensors, server.aggregate(states)
    assert one is not None and other.tensors is not None
    assert all((other.tensors[key] == array).all() for key, array in one.items())
    text = rejected(other, "evil")
    assert "l1.q.lora_B.weight' can't be unpacked: 'too large \\x1b'" in text
    start = {key: Packed(array) for key, array in trained(None, 1).items()}
    server = Server(config())
    server.start_from(start)
    assert server.adapter_for(0) is not None
    with pytest.raises(UsageError, match="can't be unpacked"):
        server.start_from({**start, f"{PREFIX}l1.q.lora_B.weight": Packed(None)})


def test_an_empty_config_of_ones_own_is_none_where_the_server_has_none() -> None:
    """The tensors of kohya say their scale."""
    server = Server()
    states = {k: (kohya(s), {}) for k, s in cohort(server).items()}
    assert left_out(server.aggregate(states)) == set(FLIPPED)


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
    weights = {k: 100 for k in SIX if k != 0} | {"gone": 5, 1: None}
    result = server.aggregate(cohort(server), weights)
    assert "missing" in rejected(result, "0") and "missing" in rejected(result, "1")


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


def test_a_client_may_bring_its_own_fields_alone() -> None:
    """The rest of its config is the server's."""
    whole, part = Server(config()), Server(config())
    fields = config(8)
    part_of = {"r": 8, "lora_alpha": fields["lora_alpha"]}
    for server, own in ((whole, fields), (part, part_of)):
        states: dict[Any, Any] = {**cohort(server), "own": (trained(None, 90, rank=8), own)}
        result = server.aggregate(states)
        assert result.merged["own"] > 0
    sent = [server.adapter_for("own") for server in (whole, part)]
    assert sent[0] is not None and sent[1] is not None
    assert all((sent[0][key] == sent[1][key]).all() for key in sent[0])


class Unreadable:
    """A config that can't be read."""

    def to_dict(self) -> dict[str, Any]:
        raise KeyError("r")


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strided ones are a prototype
        return torch.nested.nested_tensor([torch.ones(2)] * 2)


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
    "nested": {f"{PREFIX}l0.q.lora_A.weight": nested()},
    "config": (trained(None, 1), Unreadable()),
    "objects": {f"{PREFIX}l0.q.lora_A.weight": np.array([object()])},
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_rejected_by_name_and_the_round_goes_on(name: str) -> None:
    server = Server(config())
    for n in range(2):
        result = server.aggregate({**cohort(server, n), "evil": NONSENSE[name]})
        assert rejected(result, "evil")
        assert result.outcome == "use" and left_out_names(result) == {"3", "5", "evil"}


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
