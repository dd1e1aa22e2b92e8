"""Single files of a web server: what is given beside the clients, and reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clair_cli.store import connect, objects
from tests import cohorts
from tests.store.same import merged
from tests.store.web import Site, certificate, nginx, serving

pytestmark = pytest.mark.remote

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """Honest clients that started from the adapter which the server has."""
    before = cohorts.honest(1, seed=9)["c0"].deltas()
    return cohorts.save(tmp_path / "clients", cohorts.on_top(cohorts.honest(4), before))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the server has: an adapter in a folder, one with its config beside it, and weights."""
    site = tmp_path / "site"
    before = cohorts.honest(1, seed=9)
    cohorts.save_peft(site / "before", before["c0"])
    cohorts.save(site, {"one file": before["c0"]}, layout="file")
    weights = json.dumps({f"c{k}": k + 1 for k in range(4)})
    (site / "weights.json").write_text(weights)
    return site


@pytest.fixture
def local(clients: Path, folder: Path, tmp_path: Path) -> Any:
    """The result with the same files of this machine."""
    here = ("--previous", folder / "before", "--weights", folder / "weights.json")
    found = merged(clients, tmp_path / "local", *here)
    assert WEIGHTS in found[0]
    return found


def options(url: str, adapter: str = f"before/{WEIGHTS}") -> tuple[str, ...]:
    return ("--previous", f"{url}/{adapter}", "--weights", f"{url}/weights.json")


@pytest.mark.parametrize("adapter", [f"before/{WEIGHTS}", "one%20file.safetensors"])
def test_files_by_ranges(
    clients: Path, folder: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    adapter: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(objects, "CHUNK_BYTES", 4096)
    with serving(Site(folder)) as site:
        files, report = merged(clients, tmp_path / "remote", *options(site.url, adapter))
    assert files == local[0]
    assert report["inputs"] == local[1]["inputs"]
    gets = [(path, wanted) for method, path, wanted in site.requests if method == "GET"]
    size = (folder / "before" / WEIGHTS).stat().st_size
    chunks = {f"bytes={a}-{min(size, a + 4096) - 1}" for a in range(0, size, 4096)}
    assert len(chunks) > 2
    assert chunks <= {wanted for path, wanted in gets if path == f"/{adapter}"}
    assert all(wanted for _, wanted in gets)


SERVERS = ["python", *(["nginx"] if shutil.which("nginx") else [])]
"""Python's own everywhere, and the one that others use where it is installed."""


@pytest.mark.parametrize("server", SERVERS)
def test_ranges_by_https(
    clients: Path, folder: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    server: str,
) -> None:  # fmt: skip
    authority, own = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setattr(objects, "CHUNK_BYTES", 4096)
    if server == "nginx":
        (tmp_path / "nginx").mkdir()
        with nginx(folder, tmp_path / "nginx", own) as url:
            assert merged(clients, tmp_path / "remote", *options(url))[0] == local[0]
        lines = (tmp_path / "nginx" / "log").read_text().splitlines()
        answers = [line.split(" ")[1:] for line in lines if line.startswith("GET")]
    else:
        with serving(Site(folder), own) as site:
            assert merged(clients, tmp_path / "remote", *options(site.url))[0] == local[0]
        answers = site.answers
    names = (f"before/{WEIGHTS}", f"before/{CONFIG}", "weights.json")
    assert {path for path, _, _ in answers} == {f"/{name}" for name in names}
    assert {status for _, _, status in answers} == {"206"}
    size = (folder / "before" / WEIGHTS).stat().st_size
    begins = {wanted.partition("-")[0] for path, wanted, _ in answers if path.endswith(WEIGHTS)}
    assert begins >= {f"bytes={begin}" for begin in range(0, size, 4096)}
    assert len(begins) > 2


def test_an_authority_that_is_not_known(
    clients: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, own = certificate(tmp_path)
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    with serving(Site(folder), own) as site:
        assert site.url.startswith("https://")
        ran = cohorts.clair("merge", clients, "-o", tmp_path / "m.safetensors", *options(site.url))
    assert ran.exit_code == 2
    assert "certificate is not one that this machine trusts" in ran.stderr


def test_a_report_is_read_and_verified(folder: Path, clients: Path, tmp_path: Path) -> None:
    output = folder / "m.safetensors"
    cohorts.clair("merge", clients, "-o", output)
    with serving(Site(folder)) as site:
        ran = cohorts.clair("verify", f"{site.url}/m.safetensors", clients)
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert "as http" in ran.stdout
        assert cohorts.clair("diff", f"{site.url}/m.report.json", output.with_name(
            "m.report.json")).exit_code == 0  # fmt: skip
        output.write_bytes(output.read_bytes()[:-1] + b"x")
        assert cohorts.clair("verify", f"{site.url}/m.safetensors").exit_code == 3


# What a server may lack


def refused(clients: Path, site: Site, tmp_path: Path) -> str:
    ran = cohorts.clair(
        "merge", clients, "-o", tmp_path / "m.safetensors", "--previous",
        f"{site.url}/before/{WEIGHTS}",
    )  # fmt: skip
    assert ran.exit_code == 2, ran.stderr
    assert not (tmp_path / "m.safetensors").exists()
    return ran.stderr


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_etag(clients: Path, folder: Path, tmp_path: Path, tag: str) -> None:
    with serving(Site(folder, etag=lambda _: tag)) as site:
        assert "no strong ETag" in refused(clients, site, tmp_path)
    assert {method for method, _, _ in site.requests} == {"HEAD"}


def test_without_ranges(clients: Path, folder: Path, tmp_path: Path) -> None:
    with serving(Site(folder, ranges=False)) as site:
        assert "gives no ranges" in refused(clients, site, tmp_path)


def test_a_file_that_is_not_there(clients: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "before" / WEIGHTS).unlink()
    with serving(Site(folder)) as site:
        assert "does not exist" in refused(clients, site, tmp_path)


def test_a_folder_is_not_looked_into(clients: Path, folder: Path, tmp_path: Path) -> None:
    with serving(Site(folder)) as site:
        ran = cohorts.clair("inspect", clients, "--previous", f"{site.url}/before")
    assert ran.exit_code == 2
    assert "give the address of the .safetensors file itself" in ran.stderr


def test_a_server_that_is_not_there(
    clients: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 1)
    with serving(Site(folder)) as site:
        pass
    assert "the store can't be reached" in refused(clients, site, tmp_path)


def test_a_file_that_changes_while_it_is_read(
    clients: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "CHUNK_BYTES", 4096)
    path, count = folder / "before" / WEIGHTS, 0

    def before(method: str, _: str) -> None:
        nonlocal count
        count += method == "GET"
        if count == 2:
            path.write_bytes(cohorts.client_bytes(cohorts.unrelated()))

    with serving(Site(folder, before=before)) as site:
        assert "changed while reading" in refused(clients, site, tmp_path)
