"""What docs/storage.md says is so: its commands are run against an S3 endpoint of this machine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import boto3
import pytest

from clair_cli.store import connect, listing, objects, upload, windows
from clair_cli.store.address import RemotePath, place_of
from clair_cli.workflow import read
from tests import cohorts
from tests.pages import PAGES, SAMPLES, fenced, run_clair
from tests.store.s3 import Endpoint, Request, s3
from tests.store.web import Site, serving
from tests.test_readme import commands_of

__all__ = ["s3"]
pytestmark = pytest.mark.remote

PAGE = PAGES["docs/storage.md"]


@pytest.fixture
def bucket(s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """The page's bucket, with the clients of its first round, and a working folder."""
    monkeypatch.chdir(tmp_path)
    clients = {**cohorts.honest(6), "birch": cohorts.scaled(cohorts.honest(6)["c0"], -1.0)}
    s3.upload(cohorts.save(tmp_path / "round7", clients))
    return s3


def of(bucket: Endpoint, text: str, site: str = "") -> str:
    text = text.replace("s3://bucket", bucket.at())
    return text.replace("https://models.example.org", site)


def next_round(bucket: Endpoint, work: Path) -> None:
    """The merge on the web server too, and clients that started from it."""
    merged = work / "site" / "merged"
    merged.mkdir(parents=True, exist_ok=True)
    for key in bucket.keys("merged/"):
        (work / "site" / key).write_bytes(bucket.get(key))
    tensors, _ = cohorts.read_safetensors(merged / "adapter_model.safetensors")
    before = cohorts.dense(tensors, json.loads((merged / "adapter_config.json").read_text()))
    clients = cohorts.on_top(cohorts.honest(6, seed=5), before)
    bucket.upload(cohorts.save(work / "round8", clients))


def test_the_commands_and_the_code_of_the_page(bucket: Endpoint, tmp_path: Path) -> None:
    commands = commands_of("docs/storage.md")
    assert len(commands) == 8
    with serving(Site(tmp_path / "site")) as site:
        for command, code in commands:
            if "--previous" in command:
                next_round(bucket, tmp_path)
            arguments = [of(bucket, word, site.url) for word in command[1:]]
            result = run_clair(*arguments)
            assert result.exit_code == code, (command, result.stderr)
    assert (tmp_path / "merged8" / "adapter_model.safetensors").is_file()
    for block in fenced(PAGE, "python"):
        exec(of(bucket, block))
    keys = bucket.keys()
    assert "by-python.report.json" in keys and "round7.md" in keys


def test_the_numbers_of_the_page() -> None:
    facts = {
        "requests of 4 MiB": objects.CHUNK_BYTES == 4 * 2**20,
        "a window of 2 MiB": windows.WINDOW_BYTES == 2 * 2**20,
        "all windows take 256 MiB": windows.ROOM_BYTES == 256 * 2**20,
        "Eight clients": read.REMOTE_READERS == 8,
        "at most 16 requests": objects.REQUESTS == 16,
        "at most 30 s": connect.REQUEST_SECONDS == 30,
        "at most four times": connect.MAX_RETRIES == 4,
        "within a minute": connect.RETRY_SECONDS == 60,
        "more than 5,000 objects": listing.MAX_KEYS_OF_ONE == 5_000,
        "more than 500,000 objects": listing.MAX_KEYS == 500_000,
        "Above 32 MiB": upload.SINGLE_BYTES == 32 * 2**20,
        "copies up to 5 GiB": upload.S3_COPY_BYTES == 5 * 2**30,
    }  # fmt: skip
    text = " ".join(PAGE.split())
    assert [fact for fact, so in facts.items() if not so or fact not in text] == []


# Credentials


@pytest.mark.parametrize(
    ("address", "kind", "variables"),
    [
        ("gs://bucket/x", "GCSStore", {"GOOGLE_SKIP_SIGNATURE": "true"}),
        (
            "az://container/x",
            "AzureStore",
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "YQ=="},
        ),
        ("s3://bucket/x", "S3Store", {"AWS_SKIP_SIGNATURE": "true"}),
        ("https://host.org/x", "HTTPStore", {}),
    ],
)
def test_a_store_of_each_kind_is_connected_to(
    address: str, kind: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that can be done without the cloud."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = place_of(address)
    assert isinstance(path, RemotePath)
    assert type(connect.connect(path)).__name__ == kind


def test_a_store_that_the_environment_says_too_little_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    ran = run_clair("inspect", "az://container/x")
    assert ran.exit_code == 2
    assert "no connection to az://container can be made" in ran.stderr


def test_the_tools_own_files_are_read_where_boto3_is(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLES / "clients", tmp_path / "clients")
    address = s3.upload(tmp_path / "clients")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[hospital]\naws_access_key_id = FROM-THE-FILE\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "hospital")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert run_clair("inspect", address).exit_code == 3
    assert s3.users == {"FROM-THE-FILE"}


def test_without_credentials_one_sentence_says_so(
    s3: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3.url}/{s3.bucket}/metadata")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # boto3's own
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    s3.before = lambda _: ("403 Forbidden", b"")
    ran = run_clair("inspect", s3.at("round7"))
    assert ran.exit_code == 2
    assert "no credentials for it are found" in ran.stderr


def test_no_credential_is_in_anything_that_is_written(bucket: Endpoint) -> None:
    def failing(request: Request) -> tuple[str, bytes] | None:
        body = b"<Error>an-id a-very-secret-key AWS4-HMAC-SHA256 X-Amz-Signature</Error>"
        return (
            ("403 Forbidden", body) if request.key.endswith("birch/adapter_config.json") else None
        )

    bucket.before = failing
    ran = run_clair("merge", bucket.at("round7"), "-o", bucket.at("merged"))
    written = [bucket.get(key).decode("latin-1") for key in bucket.keys("merged")]
    assert len(written) == 4
    for text in (ran.stdout, ran.stderr, *written):
        assert not re.search("an-id|very-secret|HMAC|Signature", text)
