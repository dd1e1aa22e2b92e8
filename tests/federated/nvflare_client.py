"""A client of NVFlare's simulator: honest, flipped (site-4, site-6), nonsense (7) or dying (8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import nvflare.client as flare

from tests.federated.clients import fresh, loss, trained

flare.init()
number = int(flare.get_site_name().rpartition("-")[2])
while flare.is_running():
    model = flare.receive()
    if number == 8:
        raise RuntimeError("it died")
    sent: dict[str, Any] = model.params or fresh()
    state = trained(sent, 10 * model.current_round + number, sign=-1.0 if number in (4, 6) else 1.0)
    metrics = {"loss": loss(state)}
    if number == 7:
        state = {"junk": np.full((2, 2), np.nan, np.float32)}
    params: dict[str, Any] = dict(state)
    if hasattr(next(iter(sent.values())), "data_ptr"):  # PyTorch's recipe wants its tensors
        import torch

        params = {key: torch.from_numpy(array) for key, array in state.items()}
    steps = {"NUM_STEPS_CURRENT_ROUND": 100}
    flare.send(flare.FLModel(params=params, metrics=metrics, meta=steps))
