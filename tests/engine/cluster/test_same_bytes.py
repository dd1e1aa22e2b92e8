"""Every kind of round has the files of a local run; one connection for all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.engine.cluster import cluster_for
from clair_cli.settings import make_settings
from tests import cohorts
from tests.engine.cluster.nodes import engine_of, made
from tests.workflow import test_experts as experts
from tests.workflow import test_heads as heads
from tests.workflow import test_minority as minority
from tests.workflow import test_paths as paths

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray

Clients = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]


@pytest.fixture(scope="module")
def engine(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The value of the option, while the cluster is connected."""
    place = tmp_path_factory.mktemp("connected")
    with cluster_for(make_settings("merge", place, None, {"engine": engine_of(cluster)})):
        yield engine_of(cluster)


def save(folder: Path, clients: Clients) -> Path:
    for name, (state, config) in clients.items():
        (folder / name).mkdir(parents=True)
        tensors = {key: np.asarray(torch.as_tensor(value)) for key, value in state.items()}
        data = cohorts.safetensors(tensors, "F32", {"format": "pt"})
        (folder / name / "adapter_model.safetensors").write_bytes(data)
        fields = {"peft_type": "LORA", "target_modules": ["q"], **config}
        (folder / name / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def both(
    engine: str, folder: Path, function: Callable[..., Any] = clair_cli.merge, **options: Any
) -> dict[str, bytes]:
    """The files that both runs write."""
    local = made(function, folder, folder.parent / "local", **options)
    found = made(function, folder, folder.parent / "ray", engine=engine, **options)
    assert found == local and any(name.endswith(".safetensors") for name in found)
    return found


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (clair_cli.merge, {"rank": "full", "dtype": "float32"}),
        (clair_cli.merge, {"modules": "union", "keep_alpha": True}),
        (clair_cli.merge, {"rank": "full", "keep_alpha": True}),
        (clair_cli.refine, {}),
        (clair_cli.refine, {"noise": 1e-4, "rank": "same"}),
    ],
)
def test_the_options(
    engine: str, folder: Path, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    both(engine, folder, function, **options)


def test_what_a_minority_shares_is_merged(engine: str, tmp_path: Path) -> None:
    """Projections of its members, which are no files, travel too."""
    files = both(engine, save(tmp_path / "clients", minority.clients()))
    assert b'"minority_shared"' in files["out/report.json"]


@pytest.mark.parametrize(
    ("function", "stage"), [(clair_cli.merge, "merging"), (clair_cli.refine, "refining")]
)
def test_what_was_read_a_second_time_is_not_read_again(
    engine: str, tmp_path: Path, function: Callable[..., Any], stage: str
) -> None:
    """The files may be gone by then."""
    folder = save(tmp_path / "clients", minority.clients())
    options = {} if function is clair_cli.merge else {"noise": 0.1}
    local = made(function, folder, tmp_path / "local", **options)

    def progress(now: str, done: int, total: int) -> None:
        if (now, done) == (stage, 0):
            shutil.rmtree(folder)

    options |= {"engine": engine, "progress": progress}
    assert made(function, folder, tmp_path / "ray", **options) == local


@pytest.mark.parametrize("case", paths.CASES)
def test_every_way_to_merge(engine: str, tmp_path: Path, case: str) -> None:
    folder = save(tmp_path / "clients", paths.clients(case))
    both(engine, folder, allow_undetermined=True, rank=16, dtype="float32")


@pytest.mark.parametrize("function", [clair_cli.merge, clair_cli.refine])
def test_a_later_round(engine: str, folder: Path, function: Callable[..., Any]) -> None:
    """The previous adapter's path is as seen from here, not from the machines."""
    clair_cli.merge(folder, folder.parent / "before")
    both(engine, folder, function, previous=Path("..", "before"), allow_undetermined=True)


def test_heads(engine: str, tmp_path: Path) -> None:
    clients = heads.with_heads(cohorts.honest(6), heads.honest_heads(6))
    files = both(engine, save(tmp_path / "clients", clients))
    assert b"score" in files["out/adapter_config.json"]


def test_fused_experts(engine: str, tmp_path: Path) -> None:
    clients = experts.pairs(experts.trained(5))
    both(engine, save(tmp_path / "clients", clients))


def test_a_folder_as_seen_from_here(engine: str, folder: Path) -> None:
    """Rejections and remarks name files as they were given."""
    place = folder.parent / "place"
    place.mkdir()
    before = Path.cwd()
    os.chdir(place)
    try:
        reports = []
        for where, options in (("local", {}), ("ray", {"engine": engine})):
            clair_cli.merge(Path("..", folder.name), Path(where), **options)
            report = json.loads(Path(where, "report.json").read_text())
            report["options"]["output"] = report["merged"]["path"] = ""
            reports.append(report)
    finally:
        os.chdir(before)
    assert reports[0] == reports[1]
    (rejected,) = [c for c in reports[1]["clients"] if c["verdict"] == "rejected"]
    assert rejected["path"] == f"../{folder.name}/nan/adapter_model.safetensors"
