"""What each option of `clair merge` does to the merged update, against dense arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from clair_cli import UsageError
from tests import cohorts
from tests.cohorts import MODULES, Deltas, clair, factored, texts

FULL = ("--rank", "full", "--dtype", "float32")
SERVING = (8, 16, 32, 64, 128, 256, 320, 512)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(*args: object, out: str = "m.safetensors") -> tuple[Deltas, dict[str, Any]]:
    """Merge `clients` and read everything back."""
    result = clair("merge", "clients", "-o", out, "--force", *args)
    assert result.exit_code == 0, result.stderr
    stem = out.removesuffix(".safetensors")
    where = (
        Path(f"{stem}.report.json") if out.endswith(".safetensors") else Path(out, "report.json")
    )
    return cohorts.read_dense(Path(out)), cohorts.read_report(where)


def deltas_of(clients: cohorts.Clients, *names: str) -> list[Deltas]:
    return [clients[name].deltas() for name in names]


# Who takes part, and with which weight


WEIGHTS = {"c0": 10, "c1": 250, "c2": 33.5, "c3": 1, "c4": 77, "odd": 5000}


@pytest.mark.parametrize(
    "form",
    ["json", "csv", "csv with a heading", "semicolons", "decimal commas", "tabs with a heading"],
)
def test_weights_give_the_weighted_mean(work: Path, form: str) -> None:
    clients = {**cohorts.honest(5), "odd": cohorts.unrelated()}
    cohorts.save(Path("clients"), clients)
    mark = {"semicolons": ";", "decimal commas": ";", "tabs with a heading": "\t"}.get(form, ",")
    lines = [f"{name}{mark}{weight}" for name, weight in WEIGHTS.items()]
    text = json.dumps(WEIGHTS) if form == "json" else "\n".join(lines)
    text = text.replace(".", ",") if form == "decimal commas" else text
    Path("w").write_text(f"client{mark}samples\n{text}" if form.endswith("heading") else text)
    found, report = merged("--weights", "w", *FULL)
    good = [n for n in clients if n != "odd"]
    wanted = cohorts.mean(deltas_of(clients, *good), [WEIGHTS[n] for n in good])
    assert cohorts.relative(found, wanted) <= 1e-5
    shares = {c["name"]: c["weight"] for c in report["clients"]}
    total = sum(WEIGHTS[n] for n in good)
    assert shares == pytest.approx({n: WEIGHTS[n] / total if n in good else 0 for n in clients})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.pop("c1"), "'c1'"),
        (lambda w: w.update(c9=1), "'c9'"),
        (lambda w: w.update(c1=0), "'c1'"),
        (lambda w: w.update(c1=-2), "'c1'"),
        (lambda w: w.update(c1="many"), "'c1'"),
        (lambda w: w.update(c1=True), "'c1'"),
    ],
    ids=["missing", "unknown", "zero", "negative", "text", "bool"],
)
def test_weights_that_do_not_fit_are_an_error(
    work: Path, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    cohorts.save(Path("clients"), cohorts.honest(3))
    weights: dict[str, Any] = {"c0": 1, "c1": 2, "c2": 3}
    change(weights)
    Path("w.json").write_text(json.dumps(weights))
    result = clair("merge", "clients", "-o", "m.safetensors", "--weights", "w.json")
    assert result.exit_code == 2 and text in result.stderr
    assert not Path("m.safetensors").exists() and not Path("m.report.json").exists()
    with pytest.raises(UsageError, match=text):
        clair_cli.merge("clients", weights=weights)


def test_excluded_clients_are_not_read_and_may_have_a_weight(work: Path) -> None:
    clients = cohorts.honest(5)
    cohorts.save(Path("clients"), clients)
    Path("clients/c1/adapter_model.safetensors").write_bytes(b"not even a header")
    Path("w.json").write_text(json.dumps({"c0": 1, "c2": 1, "c3": 1, "c4": 5}))
    args = ("--exclude", "c1", "--strict", *FULL)
    found, report = merged("--weights", "w.json", *args)
    wanted = cohorts.mean(deltas_of(clients, "c0", "c2", "c3", "c4"), [1, 1, 1, 5])
    assert cohorts.relative(found, wanted) <= 1e-5
    assert "c1" not in cohorts.verdicts(report) and report["options"]["exclude"] == ["c1"]
    Path("w.json").write_text(json.dumps({"c0": 1, "c1": 9, "c2": 1, "c3": 1, "c4": 5}))
    assert cohorts.relative(merged("--weights", "w.json", *args)[0], wanted) <= 1e-5


def test_two_clients_merge_when_allowed(work: Path) -> None:
    clients = cohorts.honest(2)
    cohorts.save(Path("clients"), clients, "mixed")
    found, report = merged("--allow-undetermined", *FULL)
    assert cohorts.relative(found, cohorts.mean(deltas_of(clients, "c0", "c1"))) <= 1e-5
    assert set(cohorts.verdicts(report).values()) == {"undetermined"}
    assert [c["weight"] for c in report["clients"]] == [0.5, 0.5]


# Modules


LACKING = "model.layers.1.mlp.down"


@pytest.mark.parametrize("modules", ["common", "union", "intersection", "same"])
def test_modules(work: Path, modules: str) -> None:
    clients = cohorts.honest(6)
    clients["c2"] = cohorts.without(clients["c2"], [LACKING])
    cohorts.save(Path("clients"), clients)
    found, report = merged("--modules", modules, *FULL)
    deltas = [c.deltas() for n, c in clients.items() if modules != "same" or n != "c2"]
    wanted = cohorts.mean(deltas)
    if modules == "intersection":
        del wanted[LACKING]
    assert cohorts.relative(found, wanted) <= 1e-5
    entry = {m["name"]: m for m in report["modules"]}.get(LACKING)
    verdict = cohorts.verdicts(report)["c2"]
    if modules in ("common", "union"):
        assert entry is not None and entry["absent"] == ["c2"] and entry["n_updates"] == 5
        assert verdict == "benign"
    elif modules == "intersection":
        assert entry is not None and entry["written"] is None and verdict == "benign"
        assert any(
            f"'{LACKING}') not merged: not all of the 6" in w for w in texts(report["warnings"])
        )
    else:
        assert verdict == "rejected" and "lacks" in cohorts.reasons(report, "c2")
    listed = cohorts.read_config(Path("m.safetensors"))["target_modules"]
    matching = {m for m in MODULES if any(m == t or m.endswith(f".{t}") for t in listed)}
    assert matching == set(wanted)


# Config


@pytest.mark.parametrize("alpha", ["9", "rank"])
def test_assume_alpha(work: Path, alpha: str) -> None:
    clients = cohorts.honest(4)
    Path("clients").mkdir()
    for name, client in clients.items():
        Path(f"clients/{name}.safetensors").write_bytes(cohorts.client_bytes(client))
    refused = clair("merge", "clients", "-o", "m.safetensors")
    assert (
        refused.exit_code == 4
        and "--assume-alpha" in refused.stderr + Path("m.report.json").read_text()
    )
    found, report = merged("--assume-alpha", alpha, *FULL)
    factor = (6 if alpha == "rank" else 9) / 12  # the clients were made with alpha 12
    wanted = {
        m: factor * d for m, d in cohorts.mean([c.deltas() for c in clients.values()]).items()
    }
    assert cohorts.relative(found, wanted) <= 1e-5
    assert report["clients"][0]["scales"] == [1.0 if alpha == "rank" else 1.5]


# Rank, and what it costs


@cache
def large_cohort(n_clients: int = 5, rank: int = 12) -> cohorts.Clients:
    """Modules wide enough that three serving ranks lose something."""
    rng = np.random.default_rng(2)
    shapes = {"h.0.q": (64, 56), "h.0.k": (56, 64), "h.1.q": (64, 56), "h.1.k": (56, 64)}
    common = {m: cohorts.low_rank(s, 3, rng) for m, s in shapes.items()}
    clients = {}
    for k in range(n_clients):
        own = {m: cohorts.low_rank(s, rank - 3, rng) for m, s in shapes.items()}
        deltas = {m: 0.6**0.5 * common[m] + 0.4**0.5 * own[m] for m in shapes}
        clients[f"c{k}"] = factored(deltas, rank, seed=k)
    return clients


def truncation(deltas: Deltas, rank: int) -> tuple[float, dict[str, float]]:
    """Relative error of cutting every module to a rank: in all, and per module."""
    tails, norms = {}, {}
    for m, d in deltas.items():
        values = np.linalg.svd(d, compute_uv=False)
        tails[m], norms[m] = np.linalg.norm(values[rank:]), np.linalg.norm(values)
    whole = math.hypot(*tails.values()) / math.hypot(*norms.values())
    return whole, {m: tails[m] / norms[m] for m in tails}


def test_error_at_every_serving_rank(work: Path) -> None:
    clients = large_cohort()
    cohorts.save(Path("clients"), clients, dtype="F64")
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    found, report = merged("--dtype", "float32")
    full = max(np.linalg.matrix_rank(d, tol=1e-9) for d in exact.values())
    assert report["merged"]["full_rank"] == full == 48
    by_rank, by_module = report["merged"]["error_by_rank"], report["merged"]["module_error_by_rank"]
    assert {int(r) for r in by_rank} == {*SERVING, full}
    for rank in (*SERVING, full):
        whole, each = truncation(exact, rank)
        assert by_rank[str(rank)] == pytest.approx(whole, abs=1e-9)
        found_each = {m: by_module[m][str(rank)] for m in exact}
        assert found_each == pytest.approx(each, abs=1e-9)
    wanted = min(r for r in SERVING if truncation(exact, r)[0] <= 0.1)
    assert report["merged"]["rank"] == wanted == cohorts.read_config(Path("m.safetensors"))["r"]
    assert report["merged"]["error"] == pytest.approx(cohorts.relative(found, exact), rel=1e-4)


@pytest.mark.parametrize("target", [0.3, 0.1, 0.02, 1e-4])
def test_error_target_sets_the_rank(work: Path, target: float) -> None:
    clients = large_cohort()
    cohorts.save(Path("clients"), clients)
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    found, report = merged("--error-target", target, "--dtype", "float32")
    rank = min(r for r in SERVING if truncation(exact, r)[0] <= target)
    assert report["merged"]["rank"] == rank
    assert cohorts.relative(found, exact) <= target
    tensors, _ = cohorts.read_safetensors(Path("m.safetensors"))
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {rank}
    assert {t.shape[1] for n, t in tensors.items() if "lora_B" in n} == {rank}


@pytest.mark.parametrize("rank", [1, 5, 16, 60])
def test_a_given_rank_is_the_best_of_that_rank(work: Path, rank: int) -> None:
    clients = large_cohort()
    cohorts.save(Path("clients"), clients)
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    found, report = merged("--rank", rank, "--dtype", "float32")
    assert cohorts.relative(found, exact) == pytest.approx(truncation(exact, rank)[0], abs=2e-6)
    assert cohorts.read_config(Path("m.safetensors"))["r"] == report["merged"]["rank"] == rank


def test_rank_same_is_the_most_common_one(work: Path) -> None:
    deltas = cohorts.honest_deltas(5)
    ranks = (6, 6, 6, 9, 7)
    clients = {f"c{k}": factored(d, r) for k, (d, r) in enumerate(zip(deltas, ranks, strict=True))}
    cohorts.save(Path("clients"), clients)
    found, report = merged("--rank", "same", "--dtype", "float32")
    assert report["merged"]["rank"] == 6
    exact = cohorts.mean(deltas)
    assert cohorts.relative(found, exact) == pytest.approx(truncation(exact, 6)[0], abs=2e-6)


def test_rank_and_alpha_are_not_those_of_who_has_the_most_modules() -> None:
    import torch

    def client(modules: int, rank: int) -> Any:
        one = {"lora_A.weight": torch.randn(rank, 8), "lora_B.weight": torch.randn(8, rank)}
        state = {f"l.{m}.{key}": value for m in range(modules) for key, value in one.items()}
        return state, {"r": rank, "lora_alpha": 3 * rank}

    clients = {"a": client(2, 4), "b": client(2, 4), "c": client(26, 5)}
    result = clair_cli.merge(clients, rank="same", keep_alpha=True, allow_undetermined=True)
    assert result.report.merged is not None
    assert (result.report.merged.rank, result.report.merged.alpha) == (4, 12)


def test_a_warning_when_the_largest_serving_rank_misses_the_target() -> None:
    import torch

    g = torch.Generator().manual_seed(0)
    state = {"m.lora_A.weight": torch.randn(560, 561, generator=g),
             "m.lora_B.weight": torch.randn(562, 560, generator=g)}  # fmt: skip
    result = clair_cli.merge(
        {"one": (state, {"r": 560, "lora_alpha": 560})}, allow_undetermined=True, error_target=1e-6
    )
    merged = result.report.merged
    assert merged is not None and merged.rank == 512 and merged.error > 1e-3
    assert any("512" in w and "--error-target" in w for w in texts(result.report.warnings))


@pytest.mark.parametrize("rslora", [False, True])
def test_keep_alpha(work: Path, rslora: bool) -> None:
    config = {"lora_alpha": 17, "use_rslora": rslora}
    deltas = cohorts.honest_deltas(4)
    clients = {f"c{k}": factored(d, 6, config, k) for k, d in enumerate(deltas)}
    cohorts.save(Path("clients"), clients)
    found, report = merged("--keep-alpha", "--rank", "full", "--dtype", "float32")
    written = cohorts.read_config(Path("m.safetensors"))
    assert (written["lora_alpha"], written["use_rslora"]) == (17, rslora)
    assert report["merged"]["scaling"] == pytest.approx(17 / (15**0.5 if rslora else 15))
    assert cohorts.relative(found, cohorts.mean(deltas)) <= 1e-5


# Dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_reported_error_includes_rounding(work: Path, dtype: str) -> None:
    clients = cohorts.honest(5)
    cohorts.save(Path("clients"), clients, dtype="F64")
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    found, report = merged("--rank", "full", "--dtype", dtype)
    error = report["merged"]["error"]
    assert error == pytest.approx(cohorts.relative(found, exact), rel=1e-4)
    low, high = {"float32": (1e-9, 1e-6), "bfloat16": (1e-4, 5e-3), "float16": (1e-5, 6e-4)}[dtype]
    assert low < error < high and report["merged"]["dtype"] == dtype
    assert report["merged"]["error_by_rank"]["16"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(["F32"], "float32"), (["BF16"], "bfloat16"), (["F16"], "float16"), (["F64"], "float32"),
     (["BF16", "F16"], "float32"), (["BF16", "F32"], "float32"),
     (["F32", "BF16", "BF16", "BF16"], "bfloat16"), (["F64", "F16", "F16", "F16"], "float16"),
     (["F32", "F16", "BF16", "BF16"], "float32"), (["BF16", "F64", "F64", "F64"], "float32")],
)  # fmt: skip
def test_dtype_auto_is_that_of_most_clients(work: Path, stored: list[str], wanted: str) -> None:
    for k, (name, client) in enumerate(cohorts.honest(4).items()):
        cohorts.save(Path("clients"), {name: client}, dtype=stored[k % len(stored)])
    _, report = merged()
    assert report["merged"]["dtype"] == wanted
    notes = [note for note in texts(report["warnings"]) if "dtypes differ" in note]
    assert len(notes) == (len(set(stored)) > 1) and all(f"{wanted} written" in n for n in notes)
    data = Path("m.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__")
    short = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[wanted]
    assert {entry["dtype"] for entry in header.values()} == {short}


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [(["float16"], "float16"), (["float16", "bfloat16"], "float32"),
     (["bfloat16", "float32"], "float32"), (["float16", "float64"], "float64")],
)  # fmt: skip
def test_one_clients_dtype_is_the_widest_of_its_modules(dtypes: list[str], widest: str) -> None:
    from clair_cli.workflow.plan import _widest

    assert _widest(set(dtypes)) == widest


def test_dtype_auto_widens_where_float16_overflows(work: Path) -> None:
    deltas = [{m: 1e11 * d for m, d in one.items()} for one in cohorts.honest_deltas(4)]
    # Each factor fits float16; a scale in the config makes the update too large for it.
    clients = {f"c{k}": factored(d, 6, {"lora_alpha": 6e11}, k) for k, d in enumerate(deltas)}
    cohorts.save(Path("clients"), clients, dtype="F16")
    found, report = merged("--rank", "full")
    assert report["merged"]["dtype"] == "float32"
    assert cohorts.relative(found, cohorts.mean(deltas)) <= 2e-2
    assert clair("merge", "clients", "-o", "n.safetensors", "--dtype", "float16").exit_code == 6
    assert not Path("n.safetensors").exists() and not Path("n.report.json").exists()


# Later rounds


def second_round() -> tuple[Deltas, cohorts.Clients, cohorts.Clients]:
    """The adapter everybody went on from, the updates alone, and the clients as they come."""
    updates = {f"c{k}": d for k, d in enumerate(cohorts.honest_deltas(6))}
    updates["flip"] = {m: -d for m, d in cohorts.honest_deltas(7)[6].items()}
    updates["odd"] = cohorts.unrelated().deltas()
    start = cohorts.random_deltas(np.random.default_rng(9), norm=4.0)
    alone = {n: factored(d, 6, seed=3) for n, d in updates.items()}
    on_top = {
        n: factored(cohorts.plus(start, d), 9, seed=k) for k, (n, d) in enumerate(updates.items())
    }
    return start, alone, on_top


@pytest.mark.parametrize("form", ["folder", "file"])
def test_previous(work: Path, form: str) -> None:
    start, alone, clients = second_round()
    cohorts.save(Path("clients"), clients, "mixed", "F64")
    previous = "before" if form == "folder" else "before.safetensors"
    layout = "peft" if form == "folder" else "header"
    cohorts.save(work, {"before": factored(start, 3)}, layout, "F64")
    found, report = merged("--previous", previous, *FULL)
    assert cohorts.left_out(report) == {"flip", "odd"}
    honest = [d for n, c in alone.items() for d in [c.deltas()] if n not in ("flip", "odd")]
    assert cohorts.relative(found, cohorts.plus(start, cohorts.mean(honest))) <= 1e-6
    assert not any("--previous" in w for w in texts(report["warnings"]))

    cohorts.save(Path("alone"), alone, "mixed", "F64")
    first = cohorts.check_report(clair("inspect", "alone", "--json").stdout)
    assert cohorts.verdicts(first) == cohorts.verdicts(report)
    for before, after in zip(first["clients"], report["clients"], strict=True):
        for key, value in before["scores"].items():
            assert after["scores"][key] == pytest.approx(value, rel=1e-6, abs=1e-6), key


def test_previous_may_be_links(work: Path) -> None:
    """As in a download cache: a link that one names oneself is no stranger's."""
    before = cohorts.honest(8)["c7"]
    cohorts.save(Path("clients"), cohorts.on_top(cohorts.honest(6), before.deltas()))
    cohorts.save_peft(Path("store"), before)
    Path("cache").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        Path("cache", name).symlink_to(f"../store/{name}")
    wanted = merged("--previous", "store", *FULL)[0]
    for given in ("cache", "cache/adapter_model.safetensors"):
        found = merged("--previous", given, *FULL)[0]
        assert cohorts.relative(found, wanted) == 0


def test_no_verdict_when_previous_looks_needed(work: Path) -> None:
    _, alone, clients = second_round()
    for name, cohort, wanted in (("alone", alone, False), ("clients", clients, True)):
        cohorts.save(Path(name), cohort)
        report = cohorts.check_report(clair("inspect", name, "--json").stdout)
        blocked = [w["code"] for w in report["warnings"] if w["class"] == "blocking"]
        assert blocked == (["same_start"] if wanted else [])
        assert ("--previous" in report["cohort"]["remedy"]) is wanted
        assert report["exit_code"] == (5 if wanted else 3)


def test_a_previous_adapter_of_other_shapes_is_an_error(work: Path) -> None:
    cohorts.save(Path("clients"), cohorts.honest(3))
    cohorts.save(work, {"before": cohorts.wider(cohorts.unrelated())})
    result = clair("merge", "clients", "-o", "m.safetensors", "--previous", "before")
    assert result.exit_code == 2 and "--previous" in result.stderr
    assert not Path("m.report.json").exists()


def test_a_module_that_only_the_previous_adapter_has_is_kept(work: Path) -> None:
    start, _, clients = second_round()
    short = {n: cohorts.without(c, [LACKING]) for n, c in clients.items()}
    cohorts.save(Path("clients"), short, dtype="F64")
    cohorts.save(work, {"before": factored(start, 3)}, dtype="F64")
    found, _ = merged("--previous", "before", *FULL)
    assert cohorts.relative({"m": found[LACKING]}, {"m": start[LACKING]}) <= 1e-6


def test_a_client_that_lacks_a_module_of_the_previous_adapter_leaves_it_as_it_was(
    work: Path,
) -> None:
    """Its update is zero there, by its weight."""
    start, alone, clients = second_round()
    names = sorted(n for n in clients if n not in ("flip", "odd"))
    short = {**clients, names[0]: cohorts.without(clients[names[0]], [LACKING])}
    cohorts.save(Path("clients"), short, dtype="F64")
    cohorts.save(work, {"before": factored(start, 3)}, dtype="F64")
    weights = {n: float(k + 1) for k, n in enumerate(sorted(clients))}
    Path("weights.json").write_text(json.dumps(weights))
    found, report = merged("--previous", "before", "--weights", "weights.json", *FULL)
    assert cohorts.left_out(report) == {"flip", "odd"}
    deltas = [dict(alone[n].deltas()) for n in names]
    deltas[0][LACKING] = 0.0 * deltas[0][LACKING]
    mean = cohorts.mean(deltas, [weights[n] for n in names])
    wanted = cohorts.plus(start, mean)
    assert cohorts.relative(found, wanted) <= 1e-6
    assert cohorts.relative({"m": found[LACKING]}, {"m": wanted[LACKING]}) <= 1e-6


def test_previous_in_memory_and_kept_by_intersection(work: Path) -> None:
    import torch

    start, alone, clients = second_round()
    cohorts.save(Path("clients"), clients, dtype="F64")
    before = factored(start, 3)
    state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in before.A.items()}
    state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in before.B.items()}
    result = clair_cli.merge(
        "clients", previous=(state, before.fields), rank="full", dtype="float32"
    )
    honest = [c.deltas() for n, c in alone.items() if n not in ("flip", "odd")]
    assert result.tensors is not None and result.config is not None
    found = cohorts.dense(result.tensors, result.config)
    assert cohorts.relative(found, cohorts.plus(start, cohorts.mean(honest))) <= 1e-6
