"""The scores that need the evidence and the set alone. A new one is a file and a line here.

Each function takes all evidence and the set's members and returns one number per client,
(n_clients,), NaN where it does not exist. All of them reach the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from clair_cli.maths.evidence import Evidence
from clair_cli.maths.place_scores import core_distance, effective_rank_ratio
from clair_cli.maths.size_scores import module_norm_ratio, norm, norm_ratio

ClientScore = Callable[[Evidence, Sequence[int]], Tensor]

CLIENT_SCORES: dict[str, ClientScore] = {
    "norm": norm,
    "norm_ratio": norm_ratio,
    "module_norm_ratio": module_norm_ratio,
    "core_distance": core_distance,
    "effective_rank_ratio": effective_rank_ratio,
}
