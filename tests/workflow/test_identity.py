"""The merge against dense arithmetic: identity, invariances, and the mean of the honest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import cohorts
from tests.cohorts import MODULES, Client, Deltas, clair, factored

EXACT = ("--rank", "full", "--dtype", "float32", "--allow-undetermined")


@dataclass(frozen=True)
class Case:
    """One way of saving one adapter."""

    config: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    dtype: str = "F32"
    names: cohorts.Names = cohorts.peft_names
    options: tuple[str, ...] = ()
    layout: str = "peft"


Q_RANKS = {m: 3 for m in MODULES if m.endswith("q_proj")}
CASES = {
    "plain": Case(),
    "odd alpha": Case({"lora_alpha": 7}),
    "negative alpha": Case({"lora_alpha": -4}),
    "rslora": Case({"use_rslora": True}),
    "alpha pattern": Case({"alpha_pattern": {r".*\.down": 40, "attn.q_proj": 3.5}}),
    "rank pattern": Case({"rank_pattern": {"q_proj": 3, "layers.1.mlp.up": 5}},
                         {**Q_RANKS, "model.layers.1.mlp.up": 5}),
    "both patterns, rslora": Case(
        {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 11}},
        Q_RANKS,
    ),
    "fan_in_fan_out": Case({"fan_in_fan_out": True}),
    "bfloat16": Case(dtype="BF16"),
    "float16": Case(dtype="F16"),
    "float64": Case(dtype="F64"),
    "adapter-named keys": Case(names=cohorts.adapter_names),
    "no prefix": Case(names=cohorts.bare_names),
    "keep alpha": Case({"lora_alpha": 5}, options=("--keep-alpha",)),
    "keep alpha, rslora": Case({"use_rslora": True}, options=("--keep-alpha",)),
    "config beside": Case(layout="file"),
    "config in the header": Case(layout="header"),
}  # fmt: skip


def client_of(case: Case, rank: int = 6) -> Client:
    rng = np.random.default_rng(3)
    config = {"r": rank, "lora_alpha": 2 * rank, **case.config}
    A, B = {}, {}
    for module, shape in MODULES.items():
        r = case.ranks.get(module, rank)
        A[module] = rng.standard_normal((r, shape[1]))
        B[module] = rng.standard_normal((shape[0], r))
    return Client(A, B, config)


def stored_delta(folder: Path, name: str) -> Deltas:
    """What the files of one client say, read without the package."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        return cohorts.read_dense(folder / name)
    tensors, metadata = cohorts.read_safetensors(file)
    beside = file.with_suffix(".json")
    text = beside.read_text() if beside.exists() else metadata["lora_adapter_metadata"]
    return cohorts.dense(tensors, cohorts.json.loads(text))


@pytest.mark.parametrize(
    ("name", "n_copies"),
    [*((name, 4) for name in CASES), *((name, 1) for name in list(CASES)[::4])],
)
def test_copies_of_one_client_give_it_back(tmp_path: Path, name: str, n_copies: int) -> None:
    case = CASES[name]
    clients = {f"c{k}": client_of(case) for k in range(n_copies)}
    folder = cohorts.save(tmp_path / "clients", clients, case.layout, case.dtype, case.names)
    out = tmp_path / ("merged.safetensors" if n_copies == 1 else "merged")
    result = clair("merge", folder, "-o", out, *EXACT, *case.options)
    assert result.exit_code == 0, result.stderr
    assert cohorts.relative(cohorts.read_dense(out), stored_delta(folder, "c0")) <= 1e-6
    config = cohorts.read_config(out)
    assert config["fan_in_fan_out"] is case.config.get("fan_in_fan_out", False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    if "--keep-alpha" in case.options:
        assert config["lora_alpha"] == case.config.get("lora_alpha", 12)
    else:
        assert config["lora_alpha"] == config["r"] and not config["use_rslora"]


def test_the_same_update_at_different_ranks_gives_it_back(tmp_path: Path) -> None:
    deltas = cohorts.honest_deltas(1)[0]
    clients = {f"c{r}": factored(deltas, r, {"lora_alpha": 3}, seed=r) for r in (6, 8, 16)}
    folder = cohorts.save(tmp_path / "clients", clients, "mixed", "F64")
    clair("merge", folder, "-o", tmp_path / "merged", *EXACT)
    assert cohorts.relative(cohorts.read_dense(tmp_path / "merged"), deltas) <= 1e-6


def test_tensor_names_follow_the_clients(tmp_path: Path) -> None:
    for names, prefix in ((cohorts.bare_names, ""), (cohorts.adapter_names, cohorts.PREFIX)):
        folder = cohorts.save(tmp_path / prefix / "clients", cohorts.honest(3), names=names)
        clair("merge", folder, "-o", tmp_path / prefix / "m.safetensors", *EXACT)
        tensors, metadata = cohorts.read_safetensors(tmp_path / prefix / "m.safetensors")
        wanted = {f"{prefix}{m}.lora_{side}.weight" for m in MODULES for side in "AB"}
        assert (set(tensors), metadata["format"]) == (wanted, "pt")


# Invariances


def contaminated_cohort() -> cohorts.Clients:
    """Seven honest clients, one unrelated, one flipped, one ten times too large."""
    clients = cohorts.honest(8)
    clients["c7"] = cohorts.scaled(clients["c7"], 10.0)
    flipped = cohorts.honest_deltas(9)[8]
    clients["flip"] = factored({m: -d for m, d in flipped.items()}, 6)
    return {**clients, "odd": cohorts.unrelated()}


def judged(tmp_path: Path, clients: cohorts.Clients, name: str) -> dict[str, Any]:
    """Report and dense merged update of a cohort, everything in float64 but the output."""
    folder = cohorts.save(tmp_path / name, clients, "mixed", "F64")
    out = tmp_path / f"{name}.safetensors"
    assert clair("merge", folder, "-o", out, *EXACT).exit_code == 0
    return {
        "report": cohorts.read_report(tmp_path / f"{name}.report.json"),
        "merged": cohorts.read_dense(out),
    }


def numbers(report: Mapping[str, Any], back: Mapping[str, str], scale: float) -> dict[str, Any]:
    """All scores by the clients' original names, absolute norms divided by `scale`."""
    found: dict[str, Any] = {}
    for client in report["clients"]:
        name = back.get(client["name"], client["name"])
        scores = dict(client["scores"])
        measures = {f"measures.{k}": v for k, v in scores.pop("measures").items()}
        for key, value in {**scores, **measures}.items():
            found[name, key] = value / scale if key == "measures.norm" else value
        for module, entry in client["modules"].items():
            found[name, module, "norm"] = entry["norm"] / scale
            for key in ("similarity", "chance"):
                found[name, module, key] = entry[key]
    names = [back.get(n, n) for n in report["cohort"]["names"]]
    for j, row in enumerate(report["cohort"]["similarity"]):
        for k, value in enumerate(row):
            found[names[j], names[k]] = value
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return judged(tmp_path_factory.mktemp("before"), contaminated_cohort(), "before")


@pytest.mark.parametrize("variant", ["gauge", "names", "scale 1e-3", "scale 1e3"])
def test_scores_and_verdicts_do_not_change_with(
    tmp_path: Path, before: dict[str, Any], variant: str
) -> None:
    clients = contaminated_cohort()
    scale, rename = 1.0, {name: name for name in clients}
    if variant == "gauge":
        clients = {n: cohorts.regauged(c, seed=k) for k, (n, c) in enumerate(clients.items())}
    elif variant == "names":
        rename = {name: f"x{31 * k % 11}" for k, name in enumerate(clients)}
    else:
        scale = float(variant.removeprefix("scale "))
        clients = {n: cohorts.scaled(c, scale) for n, c in clients.items()}
    after = judged(tmp_path, {rename[n]: c for n, c in reversed(clients.items())}, "after")

    back = {new: old for old, new in rename.items()}
    assert cohorts.left_out(before["report"]) == {"c7", "flip", "odd"}
    assert {back[n]: v for n, v in cohorts.verdicts(after["report"]).items()} == cohorts.verdicts(
        before["report"]
    )
    was, now = numbers(before["report"], {}, 1.0), numbers(after["report"], back, scale)
    assert was.keys() == now.keys()
    for key, value in was.items():
        assert now[key] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-6))
    merged = {m: d / scale for m, d in after["merged"].items()}
    assert cohorts.relative(merged, before["merged"]) <= 1e-6


# The mean of the honest


BAD: dict[str, list[Client]] = {
    "nobody": [],
    "unrelated": [cohorts.unrelated(s) for s in (1, 2, 3)],
    "nearly half unrelated": [cohorts.unrelated(s) for s in range(6)],
    "sign flip": [factored({m: -d for m, d in cohorts.honest_deltas(8)[7].items()}, 6)],
    "ten times": [factored({m: 10 * d for m, d in cohorts.honest_deltas(8)[7].items()}, 6)],
    "three colluders": cohorts.colluders(3),
    "nan and a wrong shape": [
        cohorts.with_nan(cohorts.unrelated(8)),
        cohorts.wider(cohorts.unrelated(9)),
    ],
    "all at once": [
        *cohorts.colluders(2),
        cohorts.unrelated(4),
        cohorts.with_nan(cohorts.unrelated()),
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_merge_is_the_mean_of_the_honest(tmp_path: Path, kind: str) -> None:
    honest = cohorts.honest(7, seed=4)
    bad = {f"bad{k}": client for k, client in enumerate(BAD[kind])}
    folder = cohorts.save(tmp_path / "clients", {**bad, **honest}, "mixed")
    out = tmp_path / "merged"
    result = clair("merge", folder, "-o", out, "--rank", "full", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    report = cohorts.read_report(out / "report.json")
    verdicts = cohorts.verdicts(report)
    assert {n for n, v in verdicts.items() if v in ("contaminated", "rejected")} == set(bad)
    truth = cohorts.mean([c.deltas() for c in honest.values()])
    merged = cohorts.read_dense(out)
    if kind == "nobody":
        assert cohorts.relative(merged, truth) <= 0.01
        assert report["merged"]["plain_mean_distance"] <= 0.01
    assert cohorts.relative(merged, truth) <= 0.05
    weights = {c["name"]: c["weight"] for c in report["clients"]}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert all(weights[name] == 0.0 for name in bad)


@pytest.mark.parametrize("n_bad", [7, 9])
def test_unrelated_clients_are_left_out_however_many_they_are(tmp_path: Path, n_bad: int) -> None:
    """They have no voice against those who agree; trusting one of these changes nothing."""
    honest = cohorts.honest(7, seed=4)
    bad = {f"bad{k}": cohorts.unrelated(k) for k in range(n_bad)}
    folder = cohorts.save(tmp_path / "clients", {**bad, **honest})
    call = ("merge", folder, "-o", tmp_path / "merged", "--rank", "full", "--dtype", "float32")
    for more in ((), ("--force", "--trust", "c2")):
        assert clair(*call, *more).exit_code == 0
        report = cohorts.read_report(tmp_path / "merged/report.json")
        assert cohorts.left_out(report) == set(bad)
    truth = cohorts.mean([c.deltas() for c in honest.values()])
    assert cohorts.relative(cohorts.read_dense(tmp_path / "merged"), truth) <= 0.05


def test_plain_mean_distance_is_the_distance_to_the_mean_of_all(tmp_path: Path) -> None:
    clients = {**cohorts.honest(4), "odd": cohorts.unrelated()}
    folder = cohorts.save(tmp_path / "clients", clients, dtype="F64")
    clair("merge", folder, "-o", tmp_path / "m.safetensors", *EXACT)
    report = cohorts.read_report(tmp_path / "m.report.json")
    everybody = cohorts.mean([c.deltas() for c in clients.values()])
    merged = cohorts.read_dense(tmp_path / "m.safetensors")
    distance = cohorts.relative(merged, everybody)
    assert report["merged"]["plain_mean_distance"] == pytest.approx(distance, rel=1e-5)
    norm = np.sqrt(sum(np.linalg.norm(d) ** 2 for d in merged.values()))
    assert report["merged"]["norm"] == pytest.approx(norm, rel=1e-6)
