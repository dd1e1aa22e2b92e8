"""The base model's name through whole runs: compared, taken for one, and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.cohorts import clair, texts


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(*bases: str | None, count: int = 3) -> None:
    names: Iterator[Any] = cycle(bases)
    for name, made in cohorts.honest(count).items():
        fields = {**made.config, "base_model_name_or_path": next(names), "revision": "r1"}
        cohorts.save_peft(Path("clients", name), cohorts.Client(made.A, made.B, fields))


def merged(*args: object) -> tuple[dict[str, Any], dict[str, Any]]:
    ran = clair("merge", "clients", "-o", "out", "--force", *args)
    assert ran.exit_code == 0, ran.stderr
    config = json.loads(Path("out/adapter_config.json").read_text())
    return config, cohorts.read_report(Path("out/report.json"))


def test_copies_of_one_base_are_merged_with_a_note(work: Path) -> None:
    save("roberta-base", "FacebookAI/roberta-base", "roberta-base")
    config, report = merged()
    assert config["base_model_name_or_path"] == "roberta-base"
    assert [c["verdict"] for c in report["clients"]] == ["benign"] * 3
    (said,) = [n for n in texts(report["warnings"]) if "mean one base" in n]
    assert "2 clients have 'roberta-base'" in said
    assert "1 client has 'FacebookAI/roberta-base' ('c1')" in said


@pytest.mark.parametrize("paths", [("/home/a/m", "/home/b/m"), ("m", "other", "./m")])
def test_local_paths_never_reject(work: Path, paths: tuple[str, ...]) -> None:
    save("org/m", "org/m", *paths, count=5)
    _, report = merged()
    assert [c["verdict"] for c in report["clients"]] == ["benign"] * 5


def test_a_path_of_the_clients_is_never_written(work: Path) -> None:
    save("/home/anna/secret/m")
    config, report = merged()
    assert config["base_model_name_or_path"] is None
    assert any("--base-model writes one" in note for note in texts(report["warnings"]))
    assert "/home/anna" not in Path("out/adapter_config.json").read_text()
    config, report = merged("--base-model", "org/m")
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/m", None)
    assert not any("--base-model" in note for note in texts(report["warnings"]))
    ran = clair("merge", "clients", "-o", "one.safetensors", "--base-model", "org/m")
    assert ran.exit_code == 0 and b"/home/anna" not in Path("one.safetensors").read_bytes()


def test_the_name_given_changes_no_comparison(work: Path) -> None:
    save("org/a", "org/a", "org/a", "org/b", count=4)
    config, report = merged("--base-model", "org/b")
    assert config["base_model_name_or_path"] == "org/b"
    assert [c["verdict"] for c in report["clients"]].count("rejected") == 1
    config, _ = merged("--base-model", "org/a")
    assert config["revision"] == "r1"
    assert clair("verify", "out", "clients").exit_code == 0
    Path("out/adapter_config.json").write_text(
        Path("out/adapter_config.json").read_text().replace("org/a", "org/c")
    )
    assert clair("verify", "out", "clients").exit_code == 3


def test_refined_adapters_name_it_too(work: Path) -> None:
    save("/home/anna/m")
    ran = clair("refine", "clients", "-o", "out", "--base-model", "org/m")
    assert ran.exit_code == 0, ran.stderr
    config = json.loads(Path("out/c0/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/m"


def test_names_that_mean_one_base_by_the_users_word(work: Path) -> None:
    save("org/a", "org/b", "org/c", None, count=4)
    ran = clair("inspect", "clients")
    assert ran.exit_code == 4 and "give --same-base" in ran.stdout
    config, report = merged("--same-base")
    assert config["base_model_name_or_path"] is None
    assert [c["verdict"] for c in report["clients"]] == ["benign"] * 4
    assert any("one by --same-base" in note for note in texts(report["warnings"]))
    assert clair("verify", "out", "clients").exit_code == 0


def test_a_minority_is_told_of_the_option(work: Path) -> None:
    save("org/a", "org/a", "org/b")
    ran = clair("inspect", "clients", "--min-clients", "2")
    assert "if these names mean one base model, give --same-base" in " ".join(ran.stdout.split())


def test_an_adapter_of_ones_own_may_have_another_name_of_it(work: Path) -> None:
    save("roberta-base", count=4)
    for base, option, code in (
        ("FacebookAI/roberta-base", (), 0),
        ("org/other", (), 2),
        ("org/other", ("--same-base",), 0),
    ):
        own = cohorts.honest(5)["c4"]
        fields = {**own.config, "base_model_name_or_path": base}
        cohorts.save_peft(Path("own"), cohorts.Client(own.A, own.B, fields))
        ran = clair("inspect", "clients", "--trust-adapter", "own", *option)
        assert ran.exit_code == code, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_none(work: Path, name: str) -> None:
    save("org/a")
    assert clair("merge", "clients", "-o", "out", "--base-model", name).exit_code == 2


@pytest.mark.loaders
def test_peft_reads_the_name_that_is_given(work: Path) -> None:
    peft = pytest.importorskip("peft")
    save("/home/anna/m")
    merged("--base-model", "org/m")
    read = peft.PeftConfig.from_pretrained("out")
    assert (read.base_model_name_or_path, read.revision) == ("org/m", None)
