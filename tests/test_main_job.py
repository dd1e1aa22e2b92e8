"""Odd but readable cohorts: whatever one client brings, the round ends with an honest report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import cohorts
from tests.cohorts import Client, clair, factored


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(
    clients: cohorts.Clients, *args: object, dtype: str = "F32"
) -> tuple[Any, dict[str, Any]]:
    """Exit code 0, and the result next to its report; the cohort has six honest clients."""
    cohorts.save(Path("clients"), clients, dtype=dtype)
    options = ("--rank", "full", "--dtype", "float32", "--force", *args)
    result = clair("merge", "clients", "-o", "m.safetensors", *options)
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return cohorts.read_dense(Path("m.safetensors")), cohorts.read_report(Path("m.report.json"))


def honest_mean(n_clients: int = 6) -> cohorts.Deltas:
    return cohorts.mean([c.deltas() for c in cohorts.honest(n_clients).values()])


def one_tensor(client: Client, change: Callable[[np.ndarray], np.ndarray]) -> Client:
    module = next(iter(client.B))
    return replace(client, B={**client.B, module: change(client.B[module])})


LAST = cohorts.honest(7)["c6"]
ODD: dict[str, tuple[Client, str, str]] = {
    "alpha of a million": (
        replace(LAST, config={**LAST.config, "lora_alpha": 1e6}), "contaminated", "norm"),
    "alpha boost of one module": (
        replace(LAST, config={**LAST.config, "alpha_pattern": {"layers.1.mlp.up": 1e4}}),
        "contaminated", "norm"),
    "1e30": (cohorts.scaled(LAST, 1e30), "contaminated", "norm"),
    "subnormal numbers": (cohorts.scaled(LAST, 1e-41), "suspicious", "no_update"),
    "all zero": (cohorts.scaled(LAST, 0.0), "suspicious", "no_update"),
    "alpha of zero": (
        replace(LAST, config={**LAST.config, "lora_alpha": 0}), "suspicious", "no_update"),
    "infinity": (
        one_tensor(LAST, lambda b: np.where(b == b.max(), np.inf, b)), "rejected", "rejected"),
    "rank of the config is another": (
        replace(LAST, config={**LAST.config, "r": 5}), "rejected", "rejected"),
    "dora": (replace(LAST, config={**LAST.config, "use_dora": True}), "rejected", "rejected"),
    "kasa": (replace(LAST, config={**LAST.config, "kasa_config": {"x": 1}}), "rejected",
             "rejected"),
    "another base model": (
        replace(LAST, config={**LAST.config, "base_model_name_or_path": "org/other"}),
        "rejected", "rejected"),
    "fan_in_fan_out": (
        replace(LAST, config={**LAST.config, "fan_in_fan_out": True}), "rejected", "rejected"),
    "no module in common": (
        Client({f"x.{m}": a for m, a in LAST.A.items()}, {f"x.{m}": b for m, b in LAST.B.items()},
               LAST.config), "rejected", "rejected"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_client(work: Path, kind: str) -> None:
    client, verdict, code = ODD[kind]
    found, report = merged({**cohorts.honest(4), "odd": client})
    assert cohorts.verdicts(report) == {
        **dict.fromkeys(cohorts.honest(4), "benign"), "odd": verdict,
    }  # fmt: skip
    assert code in cohorts.codes(report, "odd"), cohorts.reasons(report, "odd")
    found = {m: d for m, d in found.items() if m in cohorts.MODULES}
    if verdict == "suspicious":  # at its own, tiny weight in the mean
        shares = {c["name"]: c["weight"] for c in report["clients"]}
        wanted = {m: (1 - shares["odd"]) * d for m, d in honest_mean(4).items()}
        assert cohorts.relative(found, wanted) <= 1e-5
    else:
        assert cohorts.relative(found, honest_mean(4)) <= 1e-5


@pytest.mark.parametrize(
    ("clients", "text"),
    [
        (cohorts.with_nan(LAST), "q_proj"),
        (cohorts.wider(LAST), "(24, 18)"),
        (replace(LAST, config={**LAST.config, "r": 5}), "rank 5"),
        (replace(LAST, config={**LAST.config, "use_dora": True}), "DoRA"),
        (
            replace(LAST, config={**LAST.config, "base_model_name_or_path": "org/other"}),
            "org/other",
        ),
    ],
    ids=["nan", "shape", "rank", "dora", "base"],
)
def test_a_rejection_names_what_is_wrong(work: Path, clients: Client, text: str) -> None:
    _, report = merged({**cohorts.honest(4), "odd": clients})
    assert text in cohorts.reasons(report, "odd")


def test_a_rejection_says_what_to_do(work: Path) -> None:
    cohorts.save(Path("clients"), cohorts.honest(3))
    Path("clients/plain.safetensors").write_bytes(cohorts.client_bytes(LAST))
    cohorts.save_peft(Path("clients/pickled"), LAST)
    Path("clients/pickled/adapter_model.safetensors").unlink()
    Path("clients/pickled/adapter_model.bin").write_bytes(b"\x80\x04never opened")
    result = clair("inspect", "clients", "--json")
    report = cohorts.check_report(result.stdout)
    assert result.exit_code == 3
    assert "--assume-alpha" in cohorts.reasons(report, "plain")
    assert "pickle" in cohorts.reasons(report, "pickled")


def test_plain_and_rslora_clients_together(work: Path) -> None:
    deltas = cohorts.honest_deltas(6)
    clients = {
        f"c{k}": factored(d, 6 + k, {"use_rslora": k % 2 == 1, "lora_alpha": 5 + k}, k)
        for k, d in enumerate(deltas)
    }
    found, report = merged(clients, dtype="F64")
    assert cohorts.relative(found, cohorts.mean(deltas)) <= 1e-6
    assert set(cohorts.verdicts(report).values()) == {"benign"}
    scales = [(5 + k) / (6 + k) ** (0.5 if k % 2 else 1) for k in range(6)]
    assert [c["scales"] for c in report["clients"]] == [[pytest.approx(s)] for s in scales]
    assert [c["ranks"] for c in report["clients"]] == [[6 + k] for k in range(6)]


def test_one_client_as_folder_and_as_file_has_one_vote(work: Path) -> None:
    clients = cohorts.honest(6)
    cohorts.save(Path("clients"), {"c2": clients["c2"]}, "file")
    found, report = merged(clients)
    verdicts = cohorts.verdicts(report)
    assert sorted(verdicts) == ["c0", "c1", "c2", "c2.safetensors", "c3", "c4", "c5"]
    assert sorted([verdicts["c2"], verdicts["c2.safetensors"]]) == ["benign", "duplicate"]
    assert cohorts.relative(found, honest_mean()) <= 1e-5


def test_a_module_that_one_client_alone_has(work: Path) -> None:
    clients = cohorts.honest(6)
    rng = np.random.default_rng(0)
    head = factored({"head": 0.5 * cohorts.low_rank((10, 12), 4, rng)}, 6)
    c5 = clients["c5"]
    clients["c5"] = Client({**c5.A, **head.A}, {**c5.B, **head.B}, c5.config)
    found, report = merged(clients, "--modules", "union")
    wanted = cohorts.mean([c.deltas() for c in clients.values()])
    assert cohorts.relative(found, wanted) <= 1e-5
    (entry,) = (m for m in report["modules"] if m["name"] == "head")
    assert (entry["n_updates"], entry["absent"]) == (1, ["c0", "c1", "c2", "c3", "c4"])


def test_names_that_attack_terminals_are_escaped(work: Path) -> None:
    name = "odd\x1b[31m[b]\n::error::"
    clients = {**cohorts.honest(5), name: cohorts.unrelated()}
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", "m.safetensors")
    assert result.exit_code == 0 and "\x1b" not in result.stderr
    assert not any(line.startswith("::") for line in result.stderr.splitlines())
    assert cohorts.left_out(cohorts.read_report(Path("m.report.json"))) == {name}


def test_many_modules_of_many_shapes_and_clients(work: Path) -> None:
    """Batches by shape keep their names; a module in which nobody has an update is not written."""
    rng = np.random.default_rng(1)
    shapes = {f"b.{i}": (6 + i % 4, 17 - i % 3) for i in range(24)}
    common = {m: cohorts.low_rank(s, 2, rng) for m, s in shapes.items()}
    clients = {}
    for k in range(9):
        own = {m: cohorts.low_rank(s, 2, rng) for m, s in shapes.items()}
        deltas = {m: 0.6 * common[m] + 0.8 * own[m] for m in shapes}
        deltas["b.7"] = np.zeros(shapes["b.7"])
        clients[f"c{k}"] = factored(deltas, 4, seed=k)
    found, report = merged(clients)
    wanted = cohorts.mean([c.deltas() for c in clients.values()])
    assert not wanted.pop("b.7").any()
    assert cohorts.relative(found, wanted) <= 1e-5
    assert set(cohorts.verdicts(report).values()) == {"benign"}
    assert "b.7" not in report["merged"]["module_error_by_rank"]
