"""--engine: what is a value, and what happens where Ray is not installed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clair_cli
from clair_cli.engine import cluster
from clair_cli.errors import UsageError
from clair_cli.settings import OPTIONS, make_settings
from tests.cohorts import clair, factored, honest_deltas, save

PACKAGE = Path(clair_cli.__file__).parent


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    deltas = honest_deltas(3)
    return save(Path("clients"), {f"c{k}": factored(d, 4, seed=k) for k, d in enumerate(deltas)})


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("ray", None),
        ("ray=head:6379", "head:6379"),
        ("ray=auto", "auto"),
        ("ray=[::1]:1", "[::1]:1"),
    ],
)
def test_values(monkeypatch: pytest.MonkeyPatch, given: str, address: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = make_settings("merge", "clients", None, {"engine": given})
    assert cluster.on_ray(settings)
    assert cluster.address_of(settings) == address
    monkeypatch.setenv("RAY_ADDRESS", "other:1")
    assert cluster.address_of(settings) == (address or "other:1")
    found = settings.shown()
    assert not {"engine", "threads", "device"} & found.keys(), "no report says what computed it"


@pytest.mark.parametrize("given", ["", "ray=", "ray= ", "dask", "local=1", "Ray", 3])
def test_no_values(given: Any) -> None:
    with pytest.raises(UsageError, match="expected local, ray or ray=ADDRESS"):
        make_settings("merge", "clients", None, {"engine": given})


def test_an_address_of_rays_client_is_none() -> None:
    with pytest.raises(UsageError, match="no URL"):
        make_settings("merge", "clients", None, {"engine": "ray=ray://head:10001"})


def test_the_environment_does_not_say_which_machines_are_believed() -> None:
    assert not OPTIONS["engine"].in_environment


def test_clients_in_memory_stay_here(clients: Path) -> None:
    with pytest.raises(UsageError, match="in memory"):
        clair_cli.merge({"a": ({}, {"r": 1})}, engine="ray")
    clair_cli.merge(clients, "m.safetensors", allow_undetermined=True)
    with pytest.raises(UsageError, match="in memory"):
        clair_cli.verify("m.safetensors", {"a": ({}, {"r": 1})}, engine="ray")


def test_verify_too_has_no_other_engine(clients: Path) -> None:
    clair_cli.merge(clients, "m.safetensors", allow_undetermined=True)
    with pytest.raises(UsageError, match="expected local, ray or ray=ADDRESS"):
        clair_cli.verify("m.safetensors", clients, engine="dask")


@pytest.mark.parametrize("command", ["merge", "inspect", "refine"])
def test_without_the_library_it_is_a_usage_error_before_any_work(
    clients: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    result = clair(command, clients, "-o", "out.json" if command == "inspect" else "out",
                   "--engine", "ray")  # fmt: skip
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "clair: --engine ray needs the library ray, which is not installed\n"
        "  fix       pip install 'clair-cli[ray]'\n"
    )
    assert [path.name for path in Path().iterdir()] == ["clients"]


@pytest.mark.parametrize(
    ("address", "error", "why"),
    [
        ("head:6379", OSError(111, "Connection refused"), "Connection refused"),
        ("head:6379", TimeoutError("timed out"), "timed out"),
        ("head", None, "invalid literal"),
    ],
)
def test_where_nobody_listens_it_is_a_usage_error_at_once(
    clients: Path, monkeypatch: pytest.MonkeyPatch, address: str, error: Any, why: str
) -> None:
    """Ray itself would try for two minutes and more."""

    def connect(where: tuple[str, int], timeout: float) -> None:
        assert where == ("head", 6379) and timeout <= 10
        raise error

    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    monkeypatch.setattr(cluster.socket, "create_connection", connect)
    result = clair("merge", clients, "-o", "out", "--engine", f"ray={address}")
    assert result.exit_code == 2
    assert f"no Ray cluster at '{address}'" in result.stderr and why in result.stderr
    assert [path.name for path in Path().iterdir()] == ["clients"]


def test_a_cluster_that_refuses_the_token_is_a_usage_error(
    clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.1:6379\nmore")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    settings = make_settings("merge", clients, None, {"engine": "ray=head:6379"})
    with pytest.raises(UsageError) as raised:
        cluster._begin(settings, "head:6379", None)
    assert str(raised.value) == (
        "--engine ray: what answers at 'head:6379' is no Ray cluster, or refuses the token "
        "(Failed to connect to Ray cluster at 192.0.2.1:6379)"
    )


def test_a_local_merge_does_without_the_extras(
    clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "obstore", "boto3", "flwr", "nvflare", "jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    assert clair_cli.merge(clients, "merged", allow_undetermined=True).report.exit_code == 0
    assert clair("verify", "merged", clients).exit_code == 0


def test_ray_is_imported_where_it_is_used_only() -> None:
    """At once by two files, which are imported inside functions."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = [
            ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        ray = [n for n in names if n.split()[1].split(".")[0] == "ray" or ".ray_engine" in n
               or ".ray_results" in n]  # fmt: skip
        if ray:
            found[path.name] = ray
    assert set(found) == {"ray_engine.py", "ray_results.py"}
