"""The aggregator in NVFlare: on hand-made models, and in NVFlare's own simulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from clair_cli.federated import Server, nvflare
from clair_cli.federated.nvflare import ClairAggregator
from tests.federated.clients import State, config, loss, trained

pytestmark = pytest.mark.nvflare

ROOT = Path(__file__).parents[2]
FLIPPED = {"site-4", "site-6"}


def model(name: str, params: Any, steps: Any = 100, **more: Any) -> FLModel:
    meta = {"client_name": name} | ({} if steps is None else {"NUM_STEPS_CURRENT_ROUND": steps})
    return FLModel(params=params, meta=meta, **more)


def six(start: State | None, n: int = 0) -> list[FLModel]:
    found = []
    for k in range(1, 7):
        name = f"site-{k}"
        state = trained(start, 10 * n + k, sign=-1.0 if name in FLIPPED else 1.0)
        found.append(model(name, state, metrics={"loss": loss(state), "name": name}))
    return found


def aggregator(**arguments: Any) -> ClairAggregator:
    made = ClairAggregator(config(), **arguments)
    for level in ("info", "warning"):
        setattr(made, level, lambda message: None)  # a log needs a running job
    return made


def round_of(made: ClairAggregator, models: list[FLModel]) -> FLModel:
    made.reset_stats()
    for one in models:
        made.accept_model(one)
    return made.aggregate_model()


def left_out(made: ClairAggregator) -> set[str]:
    assert made.result is not None
    return {c.name for c in made.result.report.clients if c.weight == 0}


def test_two_attackers_are_left_out_of_every_round() -> None:
    made, state = aggregator(), None
    for n in range(3):
        merged = round_of(made, six(state, n))
        assert left_out(made) == FLIPPED
        assert merged.params_type == ParamsType.FULL
        state = merged.params
    assert state is not None and loss(state) < 0.2


def test_metrics_are_the_means_of_the_merged() -> None:
    made = aggregator()
    models = six(None)
    own = [m.metrics["loss"] for m in models if m.meta["client_name"] not in FLIPPED]
    assert round_of(made, models).metrics == {"loss": pytest.approx(np.mean(own))}


@pytest.mark.parametrize("value", [float("nan"), 10**400, "much", [1.0], None])
def test_a_metric_that_is_no_number_is_in_no_mean(value: Any) -> None:
    made = aggregator()
    models = six(None)
    models[0].metrics = {"loss": value, "step": 1}
    for one in models[1:]:
        one.metrics["step"] = 3
    assert round_of(made, models).metrics == {"step": pytest.approx(2.5)}


def test_nothing_private_of_nvflare_is_used() -> None:
    source = Path(str(nvflare.__file__)).read_text(encoding="utf-8")
    used = set(re.findall(r"(?<!\w)_[a-zA-Z]\w*", source))
    assert used <= {*vars(aggregator()), *vars(nvflare)} and not used & {*dir(ModelAggregator)}


def test_bad_models_end_no_round() -> None:
    made = aggregator()
    differences = model("differences", trained(None, 1), params_type=ParamsType.DIFF)
    bad = [
        differences,
        model("nothing", {}),
        model("junk", {"x": np.ones(3, np.float32)}),
        model("lists", {"base_model.model.l0.q.lora_A.weight": [1.0]}),
        model("no steps", trained(None, 1), steps=None),
        model("endless", trained(None, 1), steps=float("inf")),
    ]
    merged = round_of(made, six(None) + bad)
    assert left_out(made) == FLIPPED | {m.meta["client_name"] for m in bad}
    assert merged.params_type == ParamsType.FULL
    assert made.result is not None
    text = {c.name: c.reasons[0].text for c in made.result.report.with_verdict("rejected")}
    assert "params_type=TransferType.FULL" not in text["nothing"] and "FULL" not in text["junk"]
    assert "differences" in text["differences"] and "weight is missing" in text["no steps"]


def test_nobody_sends_steps_and_all_count_the_same() -> None:
    made = aggregator()
    models = six(None)
    for one in models:
        del one.meta["NUM_STEPS_CURRENT_ROUND"]
    round_of(made, models)
    assert made.result is not None
    assert sorted({c.weight for c in made.result.report.clients}) == [0, 0.25]


def test_a_lost_round_changes_nothing() -> None:
    made = aggregator()
    state = round_of(made, six(None)).params
    lost = round_of(made, [model("junk", {"x": np.ones(3, np.float32)})])
    assert lost.params_type == ParamsType.DIFF and lost.params == {}
    round_of(made, six(state, 1))
    assert left_out(made) == FLIPPED


def test_a_job_that_begins_again_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "server.safetensors")
    state = round_of(aggregator(state=path), six(None)).params
    again = aggregator(state=path)
    round_of(again, six(state, 1))
    assert left_out(again) == FLIPPED and again.server.round == 2


def test_a_job_that_begins_again_with_nothing_is_sent_the_adapter(tmp_path: Path) -> None:
    """Its clients start from a fresh one, which is not what the server's file has."""
    path = str(tmp_path / "server.safetensors")
    made, before = aggregator(state=path), None
    for n in range(3):
        before = round_of(made, six(before, n)).params
    assert before is not None
    again = aggregator(state=path)
    first = round_of(again, six(None, 4))
    assert again.result is not None and again.result.outcome == "keep"
    assert first.params_type == ParamsType.FULL
    assert all((first.params[key] == array).all() for key, array in before.items())
    assert round_of(again, six(first.params, 5)).params and left_out(again) == FLIPPED
    lost = round_of(again, [])
    assert (lost.params, lost.params_type) == ({}, ParamsType.DIFF)


def simulated(what: str, folder: Path) -> Server:
    """Run nvflare_job.py in a process of its own, which may use this machine's own sockets."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(__file__).with_name("nvflare_job.py"))
    done = subprocess.run(
        [sys.executable, script, what, str(folder)], env=environment, timeout=150,
        capture_output=True, text=True,
    )  # fmt: skip
    state = folder / "server.safetensors"
    assert state.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return Server.load(state)


def test_the_shortest_recipe_runs_in_the_simulator(tmp_path: Path) -> None:
    server = simulated("job", tmp_path)
    assert [record.outcome for record in server.history] == ["judged"] * 3
    for record in server.history:
        out = {name for name, share in record.weights.items() if share == 0}
        assert out == {*FLIPPED, "site-7"}
        assert record.verdicts["site-7"] == "rejected" and "site-8" not in record.verdicts
    sent = server.adapter_for("site-1")
    assert sent is not None and loss(sent) < 0.2


def test_a_fedavg_recipe_runs_in_the_simulator(tmp_path: Path) -> None:
    server = simulated("recipe", tmp_path)
    assert [record.outcome for record in server.history] == ["judged"] * 2
    assert all(record.weights["site-4"] == 0 for record in server.history)
    assert list(tmp_path.rglob("FL_global_model.pt"))
