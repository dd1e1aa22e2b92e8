"""From linear regression to a merged and refined model: any matrix that clients estimate will do.

    python -m benchmarks.theory.linear_regression [--json linear_regression.json]

Ten sites regress Y on X, each with a coefficient matrix of its own, W_k = U C_k V': the sites
share a small subspace, which nobody knows, and differ inside. Each sends its least-squares
matrix and nothing else. Three of them had their labels shuffled. `clair` takes the matrices as
adapters: a delta weight is lora_B @ lora_A, so lora_B is the matrix and lora_A the identity.

Shuffled labels show here because the sites share input directions, too. Where they share only
the outputs' (W_k = U C_k, C_k independent), shuffled labels still lie in the span of U, and so
does what is regressed on them: the subspace does not tell such a site from an honest one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import clair_cli

IN, OUT, DIM, SAMPLES, NOISE = 24, 40, 3, 100, 2.0
SITES, SHUFFLED = [f"site-{k}" for k in range(10)], ("site-2", "site-5", "site-8")
A, B = (f"base_model.model.regression.lora_{side}.weight" for side in "AB")
CONFIG = {"peft_type": "LORA", "r": IN, "lora_alpha": IN, "target_modules": ["regression"]}


def regress(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every site's true coefficients and its least squares, (OUT, IN) each."""
    torch.manual_seed(seed)
    U, V = torch.linalg.qr(torch.randn(OUT, DIM)).Q, torch.linalg.qr(torch.randn(IN, DIM)).Q
    truth, local = {}, {}
    for site in SITES:
        truth[site] = U @ (5.0 * torch.eye(DIM) + 2.0 * torch.randn(DIM, DIM)) @ V.T
        X = torch.randn(SAMPLES, IN)
        Y = X @ truth[site].T + NOISE * torch.randn(SAMPLES, OUT)
        if site in SHUFFLED:
            Y = Y[torch.randperm(SAMPLES)]
        local[site] = torch.linalg.lstsq(X, Y).solution.T
    return truth, local


def compare(seed: int) -> tuple[list[str], dict[str, float]]:
    """Sites found contaminated, and mean squared errors of the others' coefficients."""
    truth, local = regress(seed)
    clients = {site: ({A: torch.eye(IN), B: matrix}, CONFIG) for site, matrix in local.items()}
    noise = NOISE / (SAMPLES - IN - 1) ** 0.5  # standard deviation of a least-squares entry

    report = clair_cli.inspect(clients, fresh=True).report
    merged = clair_cli.merge(clients, rank="full", fresh=True)
    refined = clair_cli.refine(clients, rank="full", noise=noise, fresh=True)

    guesses = {
        "local": local,
        "mean": dict.fromkeys(SITES, sum(local.values()) / len(SITES)),
        "merged": dict.fromkeys(SITES, merged.tensors[B] @ merged.tensors[A]),
        "refined": {s: tensors[B] @ tensors[A] for s, (tensors, _) in refined.adapters.items()},
    }
    honest = [site for site in SITES if site not in SHUFFLED]
    errors = {
        rule: sum(float((of[s] - truth[s]).square().mean()) for s in honest) / len(honest)
        for rule, of in guesses.items()
    }
    return [client.name for client in report.with_verdict("contaminated")], errors


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds instead of ten")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("mean squared error of seven honest sites\nseed    local    mean  merged refined  found")
    for seed in range(3 if options.quick else 10):
        found, errors = compare(seed)
        rows.append({"seed": seed, "found": found, "mean_squared_error": errors})
        print(f"{seed:4} " + "".join(f"{e:8.4f}" for e in errors.values()), "", ", ".join(found))
    if options.json:
        text = json.dumps(rows, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
