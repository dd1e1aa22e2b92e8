"""`clair refine` against dense arithmetic, and its estimate of the gain against planted truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import cohorts
from tests.cohorts import MODULES, Array, Deltas, clair, factored

FULL = ("--rank", "full", "--dtype", "float32")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refined(clients: cohorts.Clients, *args: object) -> tuple[dict[str, Deltas], dict[str, Any]]:
    """Refine a cohort saved in float64; the written adapters, dense, and the report."""
    cohorts.save(Path("clients"), clients, dtype="F64")
    result = clair("refine", "clients", "-o", "refined", "--force", *FULL, *args)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    folders = [p for p in Path("refined").iterdir() if p.is_dir()]
    report = cohorts.read_report(Path("refined/report.json"))
    assert {c["name"] for c in report["refined"]["clients"]} == {p.name for p in folders}
    return {p.name: cohorts.read_dense(p) for p in folders}, report


def leading(matrices: list[Array], dim: int) -> Array:
    return np.linalg.svd(np.hstack(matrices), full_matrices=False)[0][:, :dim]


def refined_densely(
    deltas: list[Deltas], side: str, dims: dict[str, int], weights: list[float] | None = None
) -> list[Deltas]:
    """Dbar + P(D_k - Dbar), P on the leading directions of the unit-norm updates."""
    average = cohorts.mean(deltas, weights)
    result: list[Deltas] = [{} for _ in deltas]
    for m in MODULES:
        units = [d[m] / np.linalg.norm(d[m]) for d in deltas]
        U, V = leading(units, dims[m]), leading([u.T for u in units], dims[m])
        for k, d in enumerate(deltas):
            inside = d[m] - average[m]
            inside = U @ U.T @ inside if side != "input" else inside
            inside = inside @ V @ V.T if side != "output" else inside
            result[k][m] = average[m] + inside
    return result


def dims_of_mean(deltas: list[Deltas], weights: list[float] | None = None) -> dict[str, int]:
    """Directions that hold 90 % of the mean's energy."""
    dims = {}
    for m, d in cohorts.mean(deltas, weights).items():
        energy = np.cumsum(np.linalg.svd(d, compute_uv=False) ** 2)
        dims[m] = int(np.sum(energy < 0.9 * energy[-1])) + 1
    return dims


def error2(found: Deltas, truth: Deltas) -> float:
    return float(sum(np.linalg.norm(found[m] - truth[m]) ** 2 for m in truth))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_formula_where_sharing_is_in_the_direction(work: Path, weighted: bool) -> None:
    clients = {**cohorts.honest(6), "odd": cohorts.unrelated()}
    # unequal, but too much alike to tell noise from differences, so the formula applies
    counts = {name: 100.0 + 8 * k for k, name in enumerate(clients)}
    Path("w.json").write_text(json.dumps(counts))
    found, report = refined(clients, *(("--weights", "w.json") if weighted else ()))
    honest = [n for n in clients if n != "odd"]
    deltas = [clients[n].deltas() for n in honest]
    weights = [counts[n] for n in honest] if weighted else None
    assert report["refined"]["side"] == "both" and "matrix" in report["refined"]["why"]
    assert report["refined"]["noise_from"] == "not identifiable"
    wanted = refined_densely(deltas, "both", dims_of_mean(deltas, weights), weights)
    assert found.keys() == set(honest)
    for name, one, local in zip(honest, wanted, deltas, strict=True):
        assert cohorts.relative(found[name], one) <= 1e-6
        (entry,) = (c for c in report["refined"]["clients"] if c["name"] == name)
        assert entry["changed"] == pytest.approx(cohorts.relative(one, local), rel=1e-6)
        assert not entry["kept_local"]


# Clients that share the output subspace only, as in the paper's own model


def planted(
    n_clients: int, *, noise: float, apart: float = 0.0, side: str = "output", seed: int = 0
) -> tuple[list[Deltas], list[Deltas]]:
    """Truth and what each client has of it: U C_k, its own part off U, and noise per entry."""
    rng = np.random.default_rng(seed)
    dim = 3
    shared = {m: cohorts.orthonormal(s[side == "input"], dim, rng) for m, s in MODULES.items()}
    truth, local = [], []
    for _ in range(n_clients):
        mine: Deltas = {}
        for m, shape in MODULES.items():
            other = shape[side == "output"]
            core = shared[m] @ rng.standard_normal((dim, other)) / other**0.5
            mine[m] = core if side == "output" else core.T
            mine[m] = mine[m] + apart * cohorts.low_rank(shape, 2, rng)
        truth.append(mine)
        local.append({m: d + noise * rng.standard_normal(d.shape) for m, d in mine.items()})
    return truth, local


def as_clients(deltas: list[Deltas]) -> cohorts.Clients:
    """They, and three who share nothing: without such a contrast a shared side proves nothing."""
    clients = {f"c{k}": factored(d, 16, seed=k) for k, d in enumerate(deltas)}
    return clients | {f"odd{k}": cohorts.unrelated(60 + k) for k in range(3)}


@pytest.mark.parametrize("side", ["output", "input"])
def test_the_formula_on_one_side(work: Path, side: str) -> None:
    _, local = planted(8, noise=0.02, side=side, seed=1)
    found, report = refined(as_clients(local))
    assert (report["refined"]["side"], report["cohort"]["stacking"]) == (side, side)
    dims = dims_of_mean(local)
    assert set(dims.values()) == {3}
    assert found.keys() == {f"c{k}" for k in range(8)}
    for k, wanted in enumerate(refined_densely(local, side, dims)):
        assert cohorts.relative(found[f"c{k}"], wanted) <= 1e-6


def test_without_noise_the_gain_is_not_identifiable(work: Path) -> None:
    _, report = refined(cohorts.honest(5))
    assert report["refined"]["noise_from"] == "not identifiable"
    assert report["refined"]["noise"] is None and report["refined"]["heterogeneity"] is None
    for client in report["refined"]["clients"]:
        assert (client["gain"], client["local_error"], client["refined_error"]) == (None,) * 3
        assert not client["kept_local"]


@pytest.mark.parametrize("apart", [0.0, 1.2])
def test_a_known_noise_gives_the_gains_sign_and_size(work: Path, apart: float) -> None:
    sigma = 0.03
    truth, local = planted(10, noise=sigma, apart=apart)
    found, report = refined(as_clients(local), "--noise", sigma)
    section = report["refined"]
    assert (section["noise_from"], section["noise"]) == ("option", pytest.approx(sigma))
    assert section["side"] == "output"
    dense = refined_densely(local, "output", dims_of_mean(local))
    assert len(section["clients"]) == 10
    for client in section["clients"]:
        k = int(client["name"][1:])
        before, after = error2(local[k], truth[k]), error2(dense[k], truth[k])
        gain = 1 - after / before
        assert (gain > 0) == (apart == 0.0) == (client["gain"] > 0)
        assert client["kept_local"] is (apart > 0)
        assert client["local_error"] == pytest.approx(before, rel=0.2)
        assert client["refined_error"] == pytest.approx(after, rel=0.35)
        written = local[k] if client["kept_local"] else dense[k]
        assert cohorts.relative(found[client["name"]], written) <= 1e-6
        assert (client["changed"] == 0.0) == client["kept_local"]


def test_one_client_unlike_the_others_keeps_its_own_and_they_are_refined(work: Path) -> None:
    sigma = 0.03
    truth, local = planted(10, noise=sigma)
    rng = np.random.default_rng(5)
    for m in MODULES:  # off the subspace, and spread out like noise
        more = 2 * sigma * rng.standard_normal(MODULES[m])
        truth[0][m], local[0][m] = truth[0][m] + more, local[0][m] + more
    found, report = refined(as_clients(local), "--noise", sigma)
    for client in report["refined"]["clients"]:
        k = int(client["name"][1:])
        assert client["kept_local"] is (k == 0)
        assert (client["gain"] > 0.5) is (k != 0)
        ratio = error2(found[client["name"]], truth[k]) / error2(local[k], truth[k])
        assert ratio < 0.5 if k else ratio == pytest.approx(1.0, abs=1e-5)


def test_a_kept_adapter_is_the_clients_own_at_any_rank(work: Path) -> None:
    _, local = planted(6, noise=0.03, apart=1.2)
    cohorts.save(Path("clients"), as_clients(local))
    assert clair("refine", "clients", "-o", "refined", "--noise", 0.03).exit_code == 0
    report = cohorts.read_report(Path("refined/report.json"))
    for client in report["refined"]["clients"]:
        assert client["kept_local"]
        found = cohorts.read_dense(Path("refined", client["name"]))
        assert cohorts.relative(found, local[int(client["name"][1:])]) <= 1e-5


def write_counts(counts: list[int]) -> None:
    given = {f"c{k}": n for k, n in enumerate(counts)} | {f"odd{k}": 100 for k in range(3)}
    Path("w.json").write_text(json.dumps(given))


def test_unequal_sample_counts_identify_the_noise(work: Path) -> None:
    rng = np.random.default_rng(1)
    counts = [20, 40, 80, 160, 320, 640, 1000, 2000]
    truth, _ = planted(8, noise=0.0)
    local = [
        {m: d + 0.5 / n**0.5 * 0.3 * rng.standard_normal(d.shape) for m, d in one.items()}
        for one, n in zip(truth, counts, strict=True)
    ]
    write_counts(counts)
    _, report = refined(as_clients(local), "--weights", "w.json")
    assert report["refined"]["noise_from"] == "weights"
    gains = {c["name"]: c["gain"] for c in report["refined"]["clients"]}
    assert gains["c0"] > 0.3  # few samples, much noise


def test_counts_that_explain_no_distance_keep_everybody_local(work: Path) -> None:
    """Clients of more samples lie further apart: that is no noise."""
    counts = [20, 40, 80, 160, 320, 640, 1000, 2000]
    rng = np.random.default_rng(1)
    truth, _ = planted(8, noise=0.0)
    for n, one in zip(counts, truth, strict=True):
        for m in MODULES:
            one[m] = one[m] + 0.01 * (n / 20) ** 0.25 * rng.standard_normal(MODULES[m])
    write_counts(counts)
    _, report = refined(as_clients(truth), "--weights", "w.json")
    section = report["refined"]
    assert (section["noise_from"], section["noise"]) == ("weights", 0.0)
    assert section["heterogeneity"] > 0
    assert all(c["kept_local"] and c["gain"] == 0.0 for c in section["clients"])


def test_refined_folders_are_what_a_reader_expects(work: Path) -> None:
    _, report = refined(cohorts.honest(4))
    for client in report["refined"]["clients"]:
        folder = Path(client["path"])
        assert folder == Path("refined", client["name"])
        assert {p.name for p in folder.iterdir()} == {
            "adapter_model.safetensors", "adapter_config.json", "README.md",
        }  # fmt: skip
    again = clair("refine", "clients", "-o", "refined")
    assert again.exit_code in (2, 6)
