"""What a server sends, and what it takes a reply for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.errors import UsageError
from clair_cli.federated import Server
from tests.federated.clients import HEAD, MODULES, PREFIX, State, config, deltas, fresh, trained
from tests.federated.rounds import (
    FLIPPED,
    MIXED,
    SIX,
    as_torch,
    cohort,
    kohya,
    left_out,
    mixed_server,
    rejected,
    verdicts,
)


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


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_a_mixed_round_adds_what_each_has_added_to_its_own_start(late: bool, alpha: float) -> None:
    """bank + mean of (reply - start), exactly: the rest of the bank that a client of low rank never
    had is not taken away; nor is what came after the start of a late one."""
    server = Server({k: config(rank, alpha * rank) for k, rank in enumerate(MIXED)})

    def replies(n: int, starts: dict[int, State | None]) -> dict[int, State]:
        return {
            k: trained(starts[k], 10 * n + k, rank=MIXED[k], scaling=alpha,
                       sign=-1 if k in FLIPPED else 1)
            for k in starts
        }  # fmt: skip

    starts = {k: server.adapter_for(k) for k in SIX}
    server.aggregate(replies(0, starts))
    starts = {k: server.adapter_for(k) for k in SIX}
    if late:  # client 2 answers a round later than the others
        result = server.aggregate(replies(1, {k: s for k, s in starts.items() if k != 2}))
        assert left_out(result) == set(FLIPPED)
        starts = {k: starts[k] if k == 2 else server.adapter_for(k) for k in SIX}
    bank = deltas(server.adapter_for(4), alpha)  # type: ignore[arg-type]
    sent = replies(2, starts)
    assert left_out(server.aggregate(sent)) == set(FLIPPED)
    after = deltas(server.adapter_for(4), alpha)  # type: ignore[arg-type]
    for module in MODULES:
        moved = [
            deltas(sent[k], alpha)[module] - deltas(starts[k], alpha)[module]  # type: ignore[arg-type]
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
    """The last four are kept."""
    server = Server(config())
    server.aggregate(cohort(server))
    old = server.adapter_for(7)
    assert old is not None
    for n in range(1, 5):
        late = server.aggregate({**cohort(server, n), 7: trained(old, 7)})
        assert verdicts(late)["7"] != "rejected"
    result = server.aggregate({**cohort(server, 5), 7: trained(old, 7)})
    assert "round 1, which is no longer kept" in rejected(result, "7")
    assert left_out(result) == {*FLIPPED, 7}


def with_head(state: State, value: float, seed: int) -> State:
    noise = np.random.default_rng(seed).normal(size=(3, 16)) * 0.01
    return {**state, HEAD: (value + noise).astype(np.float32)}


def test_a_late_head_counts_from_what_it_was_sent() -> None:
    """All move the head by 1 a round; the late client from 1 to 2, when the others are at 3."""
    server = Server({**config(), "modules_to_save": ["score"]})
    for n in range(3):
        replies = cohort(server, n)
        states = {k: with_head(s, n + 1.0, 10 * n + k) for k, s in replies.items()}
        if n == 0:
            server.aggregate(states)
            late = with_head(trained(server.adapter_for(2), 77), 2.0, 77)
            continue
        del states[2]
        server._state.sent["2"] = 1  # nothing was sent to it since
        result = server.aggregate(states if n == 1 else {**states, 2: late})
    assert verdicts(result)["2"] == "benign" and result.tensors is not None
    assert np.allclose(result.tensors[HEAD], 3.0, atol=0.05)


def test_heads_of_mixed_ranks_are_averaged_in_every_round() -> None:
    fields = {"modules_to_save": ["score"]}
    server = Server({k: {**config(r), **fields} for k, r in enumerate(MIXED)})
    for n in range(2):
        replies = cohort(server, n, ranks=MIXED)
        states = {k: with_head(s, n + 1.0, 10 * n + k) for k, s in replies.items()}
        result = server.aggregate(states)
        assert result.tensors is not None and left_out(result) == set(FLIPPED)
        assert np.allclose(result.tensors[HEAD], n + 1.0, atol=0.05)


def test_a_start_with_a_head_alone_is_no_fresh_one() -> None:
    server = Server({**config(), "modules_to_save": ["score"]})
    start = with_head(fresh(), 1.0, 0)
    server.start_from(start)
    sent = server.adapter_for(0)
    assert sent is not None and (sent[HEAD] == start[HEAD]).all()


def test_a_mixed_round_is_reported_and_written_as_the_clients_sent_it() -> None:
    server = mixed_server()
    for n in range(2):
        states = {k: as_torch(s, torch.bfloat16) for k, s in sent_as_numpy(server, n).items()}
        result = server.aggregate(states)
        assert result.report.merged is not None and result.report.merged.dtype == "bfloat16"
    plain = clair_cli.inspect({str(k): (s, config(MIXED[k])) for k, s in states.items()}).report
    assert [c.sha256 for c in result.report.clients] == [c.sha256 for c in plain.clients]
    for own, as_sent in zip(result.report.clients, plain.clients, strict=True):
        ranks = {name: scores.rank for name, scores in own.modules.items()}
        assert ranks == {name: scores.rank for name, scores in as_sent.modules.items()}


def sent_as_numpy(server: Server, n: int) -> dict[int, State]:
    found = {}
    for k in SIX:
        state = server.adapter_for(k)
        start = None if state is None else {key: t.float().numpy() for key, t in state.items()}
        sign = -1.0 if k in FLIPPED else 1.0
        found[k] = trained(start, 10 * n + k, rank=MIXED[k], sign=sign)
    return found


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
