"""Heads, biases and token rows beside the LoRA: averaged, judged, dropped, refused, written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.api import MergeResult
from clair_cli.words.reasons import explain_client
from tests import cohorts
from tests.cohorts import PREFIX, Array, Clients, clair, texts

HEAD, BIAS = f"{PREFIX}score.weight", f"{PREFIX}score.bias"
MODULE = next(iter(cohorts.MODULES))
ROWS = f"{PREFIX}model.embed.token_adapter.trainable_tokens_delta"
BEFORE = np.random.default_rng(9)
START = {HEAD: BEFORE.normal(size=(3, 64)), BIAS: np.zeros(3)}
MOVED = {HEAD: BEFORE.normal(size=(3, 64)), BIAS: BEFORE.normal(size=3)}
Heads = dict[str, dict[str, Array]]


def honest_heads(n: int, spread: float = 0.5) -> Heads:
    """Each client's head: a common start, something common learnt, and something of its own."""
    rng = np.random.default_rng(3)
    return {
        f"c{k}": {
            key: START[key] + 0.2 * MOVED[key] + 0.2 * spread * rng.normal(size=START[key].shape)
            for key in START
        }
        for k in range(n)
    }


def with_heads(
    clients: Clients, heads: Mapping[str, Mapping[str, Array]], **config: Any
) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Clients in memory; config fields are for those that have a head."""
    found = {}
    for name, client in clients.items():
        own = heads.get(name, {})
        state = {cohorts.peft_names("A", m): a for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): b for m, b in client.B.items()}
        tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in {**state, **own}.items()}
        fields = {"modules_to_save": ["score"], **config} if own else {}
        found[name] = (tensors, {**client.fields, "task_type": "SEQ_CLS", **fields})
    return found


def merged(own: Mapping[str, Mapping[str, Array]], n: int = 6, **options: Any) -> MergeResult:
    config = options.pop("config", {})
    return clair_cli.merge(with_heads(cohorts.honest(n), own, **config), **options)


def mean(heads: Heads, key: str, names: list[str] | None = None) -> Array:
    own = [h[key].astype(np.float32) for c, h in heads.items() if names is None or c in names]
    result: Array = np.mean(own, axis=0, dtype=np.float64)
    return result


def codes(result: MergeResult, name: str) -> set[str]:
    (client,) = (c for c in result.report.clients if c.name == name)
    return {reason.code for reason in client.reasons}


def verdict(result: MergeResult, name: str) -> str:
    (client,) = (c for c in result.report.clients if c.name == name)
    return client.verdict


def test_heads_are_averaged_and_the_config_names_them() -> None:
    heads = honest_heads(6)
    result = merged(heads)
    for key in START:
        assert np.allclose(result.tensors[key].numpy(), mean(heads, key), rtol=0, atol=3e-7)
    assert result.config["modules_to_save"] == ["score"]
    assert result.report.merged is not None
    found = result.report.merged.heads
    assert [(h.name, h.shape, h.n_clients, h.equal, h.bounded) for h in found] == [
        ("score.bias", (3,), 6, False, False),
        ("score.weight", (3, 64), 6, False, False),
    ]
    assert result.report.clients[0].heads["score.weight"].whole_similarity > 0.9


def test_weights_and_left_out_clients_count_in_the_head_too() -> None:
    heads = honest_heads(6)
    clients = {**cohorts.honest(6), "c5": cohorts.unrelated()}
    weights = {f"c{k}": k + 1.0 for k in range(6)}
    result = clair_cli.merge(with_heads(clients, heads), weights=weights)
    assert verdict(result, "c5") == "contaminated"
    wanted = sum((k + 1) * heads[f"c{k}"][HEAD] for k in range(5)) / 15
    assert np.allclose(result.tensors[HEAD].numpy(), wanted, atol=1e-6)


def test_a_client_without_a_head_counts_only_in_the_lora() -> None:
    heads = honest_heads(6)
    del heads["c2"]
    result = merged(heads)
    assert verdict(result, "c2") == "benign"
    assert np.allclose(result.tensors[HEAD].numpy(), mean(heads, HEAD), atol=1e-7)
    assert result.report.merged is not None
    assert result.report.merged.heads[1].n_clients == 5


@pytest.mark.parametrize(("n_holders", "is_there"), [(3, False), (4, True)])
def test_few_clients_with_a_head_do_not_decide_it(n_holders: int, is_there: bool) -> None:
    heads = {k: v for k, v in honest_heads(6).items() if int(k[1:]) < n_holders}
    result = merged(heads)
    assert (HEAD in result.tensors) == is_there
    said = any("not merged: too few of the 6" in t for t in texts(result.report.warnings))
    assert said != is_there


def flipped(head: dict[str, Array]) -> dict[str, Array]:
    return {key: 2 * START[key] - value for key, value in head.items()}


def turned(head: dict[str, Array]) -> dict[str, Array]:
    return {key: -value for key, value in head.items()}


def scaled(head: dict[str, Array]) -> dict[str, Array]:
    return {key: START[key] + 10 * (value - START[key]) for key, value in head.items()}


def relabelled(head: dict[str, Array]) -> dict[str, Array]:
    return {key: np.roll(value, 1, axis=0) for key, value in head.items()}


def start() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter of the round before: a LoRA of its own, and the heads' common start."""
    (client,) = cohorts.honest(1, seed=8).values()
    return with_heads({"c0": cohorts.scaled(client, 0.1)}, {"c0": START})["c0"]


@pytest.mark.parametrize("bad", [turned, scaled, relabelled])
def test_a_bad_head_with_an_honest_lora_is_named(bad: Any) -> None:
    heads = honest_heads(8)
    heads["c7"] = bad(heads["c7"])
    result = merged(heads, 8)
    assert verdict(result, "c7") == "contaminated"
    assert codes(result, "c7") & {"head_norm", "head_unlike", "head_against"}
    (client,) = (c for c in result.report.clients if c.name == "c7")
    for said in explain_client(client, result.report):  # in words, and not as the judge has it
        assert re.search("likeness to the others|times the median client's change", said.line)
    assert {verdict(result, f"c{k}") for k in range(7)} == {"benign"}
    assert np.allclose(
        result.tensors[HEAD].numpy(), mean(heads, HEAD, [f"c{k}" for k in range(7)]), atol=1e-6
    )


def merged_with_one_flipped(heads: Heads, **options: Any) -> MergeResult:
    """Eight clients beside the adapter they started from; the last one's head is turned around."""
    heads["c7"] = flipped(heads["c7"])
    state, config = start()
    before = cohorts.dense({k: v.numpy() for k, v in state.items() if "lora" in k}, config)
    clients = with_heads(cohorts.on_top(cohorts.honest(8), before), heads)
    return clair_cli.merge(clients, previous=(state, config), rank="full", **options)


def test_a_head_turned_around_shows_beside_the_previous_one() -> None:
    result = merged_with_one_flipped(honest_heads(8))
    assert (verdict(result, "c7"), codes(result, "c7")) == ("contaminated", {"head_against"})
    (client,) = (c for c in result.report.clients if c.name == "c7")
    (said,) = explain_client(client, result.report)
    assert said.number.startswith("score.weight: likeness to the others' -")


def test_a_trusted_client_keeps_its_place_and_its_share_of_the_head() -> None:
    heads = honest_heads(8)
    result = merged_with_one_flipped(heads, trust=["c7"])
    assert (verdict(result, "c7"), codes(result, "c7")) == (
        "suspicious", {"trusted", "head_against"},
    )  # fmt: skip
    assert np.allclose(result.tensors[HEAD].numpy(), mean(heads, HEAD), atol=1e-6)


def test_the_head_of_a_trusted_client_counts_as_no_larger_than_allowed() -> None:
    heads = honest_heads(8)
    heads["c7"] = scaled(heads["c7"])
    result = merged(heads, 8, trust=["c7"])
    assert {"trusted", "head_norm"} <= codes(result, "c7")
    middle = np.median([head[HEAD] for head in heads.values()], axis=0)
    moves = {name: np.linalg.norm(head[HEAD] - middle) for name, head in heads.items()}
    without = mean(heads, HEAD, [f"c{k}" for k in range(7)]) * 7 / 8 + middle / 8
    moved = 8 * np.linalg.norm(result.tensors[HEAD].numpy() - without)
    typical = np.median(list(moves.values()))
    assert 0.5 * typical < moved < 1.8 * typical < 0.5 * moves["c7"]


def test_what_slips_past_has_bounded_influence() -> None:
    """A head three times as far away as the median counts as one and a half times."""
    heads = honest_heads(9, spread=0.05)
    rng = np.random.default_rng(4)
    middle = np.median([heads[f"c{k}"][HEAD] for k in range(8)], axis=0)
    typical = np.median([np.linalg.norm(heads[f"c{k}"][HEAD] - middle) for k in range(8)])
    off = rng.normal(size=middle.shape)
    far = {**heads["c8"], HEAD: middle + 3 * typical * off / np.linalg.norm(off)}
    near = merged({**heads, "c8": {**heads["c8"], HEAD: middle}}, 9)
    result = merged({**heads, "c8": far}, 9)
    assert verdict(result, "c8") == "benign"
    moved = np.linalg.norm(result.tensors[HEAD].numpy() - near.tensors[HEAD].numpy())
    assert 1.3 * typical < 9 * moved < 1.8 * typical
    assert result.report.merged is not None
    assert [h.bounded for h in result.report.merged.heads] == [True, True]


def test_heads_that_each_began_at_random_block_the_round() -> None:
    rng = np.random.default_rng(5)
    heads = {f"c{k}": {HEAD: rng.normal(size=(3, 64)), BIAS: np.zeros(3)} for k in range(6)}
    result = merged(heads)
    assert (result.report.exit_code, result.report.cohort.outcome) == (5, "undetermined")
    assert ("heads_unrelated", "blocking") in {(r.code, r.class_) for r in result.report.warnings}
    assert "--heads drop" in result.report.cohort.remedy
    assert merged(heads, heads="drop").report.exit_code == 0


def test_equal_heads_are_carried_over_and_said_once() -> None:
    heads = dict.fromkeys((f"c{k}" for k in range(6)), START)
    result = merged(heads)
    assert np.array_equal(result.tensors[HEAD].numpy(), START[HEAD].astype(np.float32))
    same = [t for t in texts(result.report.warnings) if "are the same in all clients" in t]
    assert same == [
        "2 tensors beside the LoRA ('score.bias', 'score.weight') are the same in all clients, and "
        "written as they are"
    ]


def test_another_label_set_is_rejected_by_name() -> None:
    heads = honest_heads(6)
    heads["c3"] = {HEAD: np.ones((5, 64)), BIAS: np.ones(5)}
    result = merged(heads)
    (client,) = (c for c in result.report.clients if c.name == "c3")
    assert client.verdict == "rejected"
    assert client.reasons[0].text == (
        "'score.bias' has shape (5,), 5 of 6 clients have shape (3,); it has another label set or "
        "vocabulary; --heads drop merges the LoRA alone"
    )
    assert verdict(merged(heads, heads="drop"), "c3") == "benign"


def test_without_a_majority_nothing_is_merged() -> None:
    heads = honest_heads(6)
    for name in ("c0", "c1", "c2"):
        heads[name] = {HEAD: np.ones((5, 64)), BIAS: np.ones(5)}
    result = merged(heads)
    assert result.report.exit_code == 4
    assert "no majority for the form of 'score.bias'" in result.report.cohort.outcome_text


def test_a_few_without_a_majority_lose_their_heads_only() -> None:
    heads = {"c0": honest_heads(1)["c0"], "c1": {HEAD: np.ones((5, 64)), BIAS: np.ones(5)}}
    result = merged(heads)
    assert result.report.exit_code == 0
    assert HEAD not in result.tensors


def test_heads_can_be_left_out_or_refused() -> None:
    heads = honest_heads(6)
    result = merged(heads, heads="drop")
    assert HEAD not in result.tensors
    assert result.config["modules_to_save"] is None
    del heads["c0"], heads["c1"], heads["c2"]
    result = merged(heads, heads="reject")
    assert {verdict(result, f"c{k}") for k in (3, 4, 5)} == {"rejected"}
    assert {verdict(result, f"c{k}") for k in (0, 1, 2)} == {"benign"}


def test_the_bias_of_lora_b_is_scaled_as_its_module() -> None:
    """A loader adds scaling * bias: alphas that differ, and a client without one, count."""
    key = f"{PREFIX}{MODULE}.lora_B.bias"
    rng = np.random.default_rng(6)
    base = rng.normal(size=24)
    heads = {f"c{k}": {key: base + 0.1 * rng.normal(size=24)} for k in range(5)}
    result = merged(heads, config={"modules_to_save": None, "lora_bias": True})
    written = result.tensors[key].numpy() * result.config["lora_alpha"] / result.config["r"]
    wanted = sum(2.0 * h[key] for h in heads.values()) / 6
    assert np.allclose(written, wanted, atol=1e-6)
    assert (result.config["lora_bias"], result.config["modules_to_save"]) == (True, None)


def test_token_rows_are_averaged_where_they_are_the_same_rows() -> None:
    rng = np.random.default_rng(7)
    base = rng.normal(size=(2, 16))
    heads = {f"c{k}": {ROWS: base + 0.1 * rng.normal(size=(2, 16))} for k in range(6)}
    clients = with_heads(cohorts.honest(6), heads, trainable_token_indices={"embed": [4, 9]})
    state, config = clients["c5"]
    clients["c5"] = (state, {**config, "trainable_token_indices": [4, 8]})
    result = clair_cli.merge(clients)
    assert verdict(result, "c5") == "rejected"
    assert np.allclose(
        result.tensors[ROWS].numpy(), mean(heads, ROWS, [f"c{k}" for k in range(5)]), atol=1e-6
    )
    assert result.config["trainable_token_indices"] == {"embed": [4, 9]}


@pytest.mark.parametrize("layer", ["", "default.dense."])
def test_pefts_second_copy_of_a_heads_bias_is_not_another(layer: str) -> None:
    """Under `bias="all"`: of a head of two layers it has the adapter's name."""
    inner = layer.removeprefix("default.")
    heads = {
        name: {
            f"{PREFIX}score.{inner}weight": head[HEAD],
            f"{PREFIX}score.{inner}bias": head[BIAS],
            f"{PREFIX}score.modules_to_save.{layer}bias": head[BIAS],
            f"{PREFIX}score.original_module.{inner}bias": 0 * head[BIAS],
        }
        for name, head in honest_heads(6).items()
    }
    result = merged(heads, config={"bias": "all"})
    assert result.report.exit_code == 0
    assert {key for key in result.tensors if "score" in key} == {
        f"{PREFIX}score.{inner}weight", f"{PREFIX}score.{inner}bias"
    }  # fmt: skip


def test_whole_numbers_are_no_head() -> None:
    clients = with_heads(cohorts.honest(5), honest_heads(5))
    for state, _ in clients.values():
        state[f"{PREFIX}score.modules_to_save.default.num_batches_tracked"] = torch.tensor(7)
    result = clair_cli.merge(clients)
    assert sorted(k for k in result.tensors if "score" in k) == [BIAS, HEAD]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_heads_keep_their_dtype_unless_one_is_asked_for(dtype: str) -> None:
    result = merged(honest_heads(6), dtype=dtype)
    assert result.tensors[HEAD].dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)


def on_disk(folder: Path, heads: Heads) -> Path:
    for name, (state, config) in with_heads(cohorts.honest(len(heads)), heads).items():
        (folder / name).mkdir(parents=True)
        tensors = {key: value.numpy() for key, value in state.items()}
        (folder / name / "adapter_model.safetensors").write_bytes(
            cohorts.safetensors(tensors, "F32", {"format": "pt"})
        )
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_what_is_written_is_verified(tmp_path: Path, out: str) -> None:
    heads = honest_heads(6)
    clients, path = on_disk(tmp_path / "clients", heads), tmp_path / out
    result = clair("merge", clients, "-o", path)
    assert result.exit_code == 0, result.output
    assert "2 tensors beside the LoRA averaged" in result.output
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    found = cohorts.read_safetensors(file)[0]
    assert np.allclose(found[HEAD], mean(heads, HEAD), atol=1e-7)
    assert clair("verify", path, clients).exit_code == 0
    beside = path / "report.json" if path.is_dir() else path.with_suffix(".report.json")
    report = json.loads(beside.read_text())
    report["merged"]["heads"][1]["shape"] = [3, 65]
    beside.write_text(json.dumps(report))
    again = clair("verify", path)
    assert again.exit_code == 3
    assert "'score.weight' of shape (3, 64), the report says (3, 65)" in again.output


def test_every_refined_adapter_has_the_merged_head(tmp_path: Path) -> None:
    heads = honest_heads(6)
    clients, out = on_disk(tmp_path / "clients", heads), tmp_path / "out"
    assert clair("refine", clients, "-o", out).exit_code == 0
    for name in heads:
        found = cohorts.read_safetensors(out / name / "adapter_model.safetensors")[0]
        assert np.allclose(found[HEAD], mean(heads, HEAD), atol=1e-7)
    assert clair("verify", out, clients).exit_code == 0


def test_a_head_in_slices_is_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = honest_heads(6)
    heads["c5"] = {k: START[k] + 2.5 * (v - START[k]) for k, v in heads["c5"].items()}
    clients = on_disk(tmp_path / "clients", heads)
    assert clair("merge", clients, "-o", tmp_path / "a.safetensors").exit_code == 0
    monkeypatch.setattr("clair_cli.workflow.heads._NUMBERS", 100)
    assert clair("merge", clients, "-o", tmp_path / "b.safetensors").exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_formats_without_names_for_heads_say_so() -> None:
    clients = with_heads(
        {
            name: cohorts.Client(
                {f"unet.{m}": a for m, a in client.A.items()},
                {f"unet.{m}": b for m, b in client.B.items()},
                client.config,
            )
            for name, client in cohorts.honest(6).items()
        },
        honest_heads(6),
    )
    result = clair_cli.merge(clients, tensor_names="kohya")
    assert not any("score" in key for key in result.tensors)
    assert any("only PEFT's format has names" in t for t in texts(result.report.warnings))
