"""Any matrix that clients estimate will do: least squares of ten sites, three shuffled."""

import torch

import clair_cli

torch.manual_seed(0)
sites, shuffled = [f"site-{k}" for k in range(10)], {"site-2", "site-5", "site-8"}
U, V = (torch.linalg.qr(torch.randn(n, 3)).Q for n in (40, 24))  # shared, and known to nobody
truth, local = {}, {}
for site in sites:
    truth[site] = U @ (5 * torch.eye(3) + 2 * torch.randn(3, 3)) @ V.T
    X = torch.randn(100, 24)
    Y = X @ truth[site].T + 2 * torch.randn(100, 40)
    if site in shuffled:
        Y = Y[torch.randperm(100)]
    local[site] = torch.linalg.lstsq(X, Y).solution.T  # all that leaves the site

A, B = "regression.lora_A.weight", "regression.lora_B.weight"  # an adapter is B @ A
config = {"peft_type": "LORA", "r": 24, "lora_alpha": 24, "target_modules": ["regression"]}
clients = {site: ({A: torch.eye(24), B: matrix}, config) for site, matrix in local.items()}
noise = 2 / (100 - 24 - 1) ** 0.5  # standard deviation of an entry of `local`
refined = clair_cli.refine(clients, rank="full", noise=noise)

for site, (tensors, _) in refined.adapters.items():
    guesses = local[site], tensors[B] @ tensors[A]
    errors = [float((guess - truth[site]).square().mean()) for guess in guesses]
    print(site, "mean squared error: local {:.4f}, refined {:.4f}".format(*errors))
print("left out:", *(client.name for client in refined.report.with_verdict("contaminated")))
