"""Addresses: which there are, and that none holds or shows a credential. No store is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clair_cli.cli.defaults import defaults_of
from clair_cli.errors import UsageError
from clair_cli.settings import make_settings
from clair_cli.store import connect
from clair_cli.store.address import RemotePath, place_of
from tests import cohorts


@pytest.mark.parametrize(
    ("given", "scheme", "host", "parts"),
    [
        ("s3://bucket/round7/", "s3", "bucket", ("round7",)),
        ("S3://bucket", "s3", "bucket", ()),
        ("gs://b.u-c_ket/a/b", "gs", "b.u-c_ket", ("a", "b")),
        ("az://container/a b", "az", "container", ("a b",)),
        ("https://host.org:8443/a%20b/c.json", "https", "host.org:8443", ("a b", "c.json")),
        ("http://127.0.0.1:80/x", "http", "127.0.0.1:80", ("x",)),
        ("s3://bucket/user@site/x:y", "s3", "bucket", ("user@site", "x:y")),
    ],
)
def test_what_is_an_address(given: str, scheme: str, host: str, parts: tuple[str, ...]) -> None:
    found = place_of(given)
    assert found == RemotePath(scheme, host, parts)
    assert place_of(str(found)) == found
    assert place_of(found) is found


@pytest.mark.parametrize("given", ["clients", "/a/b", "C:/x", "a:b/c", "ftp://host/x", "s3:", ""])
def test_what_is_a_path(given: str) -> None:
    assert place_of(given) == Path(given)


SECRET = "pass-w0rd"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"s3://user:{SECRET}@bucket/x", "a user before the host"),
        (f"https://user:{SECRET}@host.org/x.safetensors", "a user before the host"),
        (f"ftp://user:{SECRET}@host/x", "a user before the host"),
        (f"https://user:{SECRET}/@host.org/x", "names no host"),
        (f"s3://{SECRET}:x/y", "names no bucket"),
        (f"https://host.org/x?X-Amz-Signature={SECRET}", "a query or a fragment"),
        (f"s3://bucket/x?sig={SECRET}", "a query or a fragment"),
        (f"https://host.org/x#{SECRET}", "a query or a fragment"),
        (f"https://host.org?{SECRET}", "a query or a fragment"),
        (f"s3:/user:{SECRET}@bucket/x", "a user before the host"),
        (f"https:/host.org/x?{SECRET}", "a query or a fragment"),
        (f"HTTPS://a@{SECRET}/x", "a user before the host"),
    ],
)
@pytest.mark.parametrize("place", ["clients", "-o", "--previous", "--report", "--weights"])
def test_a_credential_is_refused_and_never_shown(
    given: str, said: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clients").mkdir()
    args = {"clients": "clients", "-o": "out"} | {place: given}
    ran = cohorts.clair("merge", args.pop("clients"), *(x for pair in args.items() for x in pair))
    assert ran.exit_code == 2
    assert SECRET not in ran.stderr + ran.stdout
    assert said in " ".join(ran.stderr.split())
    with pytest.raises(UsageError) as error:
        make_settings("merge", given, None, {})
    assert SECRET not in str(error.value) + error.value.hint


@pytest.mark.parametrize("given", [f"s3://user:{SECRET}@bucket/x", f"https://h.org/x?{SECRET}"])
@pytest.mark.parametrize(
    "before", [(), ("--exclude",), ("--minority",), ("--limit",), ("--nonsense",), ("--rank",)]
)
def test_nor_is_one_in_a_wrong_place(
    given: str, before: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(3))
    ran = cohorts.clair("merge", "clients", "-o", "out", *before, given)
    assert ran.exit_code == 2
    assert SECRET not in ran.stderr + ran.stdout


def test_a_credential_in_a_file_of_options_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clients").mkdir()
    Path("clair.toml").write_text(f'previous = "s3://u:{SECRET}@bucket/x"\n')
    ran = cohorts.clair("inspect", "clients")
    assert ran.exit_code == 2
    assert "a user before the host" in ran.stderr
    assert SECRET not in ran.stderr


def test_an_address_in_a_file_of_options_is_one_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path there is as seen from the file's folder."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "clair.toml").write_text(
        'previous = "s3://bucket/x"\nweights = "w.json"\nreport = ["markdown=gs://bucket/r.md"]\n'
    )
    found = defaults_of("merge", tmp_path / "clients", tmp_path / "ci" / "clair.toml", {}).values
    assert place_of(found["previous"]) == RemotePath("s3", "bucket", ("x",))
    assert found["weights"] == str(tmp_path / "ci" / "w.json")
    settings = make_settings("merge", "clients", None, {"report": found["report"]})
    assert settings.report[0].path == RemotePath("gs", "bucket", ("r.md",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://bucket/a//b", "an empty part"),
        ("s3://bucket//a", "an empty part"),
        ("s3://bucket/a/../b", "'.' or '..'"),
        ("https://host/a/%2e%2e/b", "'.' or '..'"),
        ("https://host/a%2F%2Fb", "an empty part"),
        ("s3://bucket/a\x01b", "a control character"),
        ("s3://bucket/" + "a" * 1025, "1,024 bytes"),
        ("s3://bucket/\udcff", "no text"),
        ("s3://-bucket/x", "names no bucket"),
        ("s3://b/x", "names no bucket"),
        ("https:///x", "names no host"),
        ("http://example.org/x", "without encryption"),
        ("hf://org/name", "nothing is read from hf://"),
    ],
)
def test_what_is_no_good_address(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        place_of(given)
    ran = cohorts.clair("inspect", given)
    assert ran.exit_code == 2
    assert all(line.isprintable() for line in ran.stderr.splitlines())


def test_the_longest_key_is_an_address() -> None:
    assert place_of("s3://bucket/" + "a" * 1024) == RemotePath("s3", "bucket", ("a" * 1024,))


def test_an_address_that_pathlib_took_a_slash_from_is_told() -> None:
    with pytest.raises(UsageError, match="lost a slash"):
        place_of(Path("s3://bucket/x"))


def test_an_address_has_what_a_path_has() -> None:
    path = RemotePath("s3", "bucket", ("a", "b.safetensors"))
    assert (path.name, path.stem, path.suffix) == ("b.safetensors", "b", ".safetensors")
    assert [str(p) for p in path.parents] == ["s3://bucket/a", "s3://bucket"]
    assert str(path.with_suffix(".json")) == "s3://bucket/a/b.json"
    assert path.parent / "b.safetensors" == path
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]


@pytest.mark.parametrize("output", ["https://host.org/x.safetensors", "s3://bucket"])
def test_what_can_not_be_written(output: str, tmp_path: Path) -> None:
    ran = cohorts.clair("merge", cohorts.save(tmp_path / "c", cohorts.honest(3)), "-o", output)
    assert ran.exit_code == 2
    assert "can't be written" in ran.stderr


def test_a_web_server_is_no_folder_of_clients() -> None:
    ran = cohorts.clair("merge", "https://host.org/round7", "-o", "m.safetensors")
    assert ran.exit_code == 2
    assert "does not list its files" in ran.stderr


@pytest.mark.parametrize("args", [("inspect", "s3://bucket/x"), ("verify", "s3://bucket/x")])
def test_without_the_extra_the_command_that_installs_it_is_told(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "find_spec", lambda _: None)
    ran = cohorts.clair(*args)
    assert ran.exit_code == 2
    assert "needs the library obstore" in ran.stderr
    assert "pip install 'clair-cli[remote]'" in ran.stderr
