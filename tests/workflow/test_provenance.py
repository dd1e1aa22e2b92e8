"""Where a merged adapter comes from: the header's key, and a folder's model card."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import clair_cli
from clair_cli.verification.files import made_by
from clair_cli.workflow import destination
from clair_cli.workflow.provenance import command_line, model_card, refined_card
from tests import cohorts
from tests.cohorts import clair
from tests.fake_report import fake_report

MIXED = {**cohorts.honest(5), "odd": cohorts.unrelated()}
HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "::error::x", "a|b", "=cmd()", "a\nb\n---\n# c",
    "`x` [y](http://z) **b** <!-- -->", "\u202eabc\x1b[31m", "```\nrm", "&amp; {{x}} \\| $x$",
)  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), MIXED)
    return tmp_path


def header(path: str) -> dict[str, Any]:
    """The header's key of ours."""
    found: dict[str, Any] = json.loads(cohorts.read_safetensors(Path(path))[1]["clair"])
    return found


def merge(out: str, clients: str = "clients", *args: str) -> dict[str, Any]:
    assert clair("merge", clients, "-o", out, *args).exit_code == 0
    path = f"{out}/report.json" if Path(out).is_dir() else f"{out[:-12]}.report.json"
    return cohorts.read_report(Path(path))


def test_what_a_header_says(work: Path) -> None:
    report, found = merge("m.safetensors", "clients", "--rank", "2"), header("m.safetensors")
    assert found.keys() == {"version", "base_model", "error", "clients"}
    assert (found["version"], found["base_model"]) == (clair_cli.__version__, "org/base")
    assert found["error"] == pytest.approx(report["merged"]["error"], rel=0.01)
    weights = sorted(c["weight"] for c in report["clients"] if c["weight"] > 0)
    assert sorted(c["weight"] for c in found["clients"]) == weights and len(weights) == 5
    contents = [c["content"] for c in found["clients"]]
    assert contents == sorted(contents) and all(re.fullmatch("[0-9a-f]{64}", c) for c in contents)


def test_no_name_and_no_order_changes_a_byte(work: Path) -> None:
    merge("m.safetensors")
    for k, name in enumerate(sorted(MIXED, reverse=True)):
        cohorts.save_peft(Path("others") / f"x{k}", MIXED[name])
    shutil.copytree("others", work / "deep" / "er")
    merge("n.safetensors", "others")
    merge("o.safetensors", str(work / "deep" / "er"))
    (made,) = {Path(f"{name}.safetensors").read_bytes() for name in "mno"}
    assert b"clients/" not in made and str(work).encode() not in made
    assert not any(name.encode() in made for name in ("odd", "others"))


def test_another_weight_or_client_is_another_header(work: Path) -> None:
    merge("m.safetensors")
    Path("w.json").write_text(json.dumps({name: 1 + (name == "c1") for name in MIXED}))
    merge("n.safetensors", "clients", "--weights", "w.json")
    one, two = header("m.safetensors"), header("n.safetensors")
    assert [c["content"] for c in one["clients"]] == [c["content"] for c in two["clients"]]
    assert one["clients"] != two["clients"]
    merge("o.safetensors", "clients", "--exclude", "c1")
    assert len(header("o.safetensors")["clients"]) == 4


def test_a_folder_has_it_in_no_header(work: Path) -> None:
    for names in ("peft", "mlx"):
        merge(names, "clients", "--tensor-names", names)
        (weights,) = Path(names).glob("*.safetensors")
        assert "clair" not in cohorts.read_safetensors(weights)[1]
        assert clair("verify", names, "clients").exit_code == 0


def test_what_another_version_wrote_is_verified(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = destination.Destination.__init__
    assert init.__kwdefaults__ is not None
    for version in ("9.9.9", None):
        monkeypatch.setitem(init.__kwdefaults__, "version", version)
        merge("m.safetensors", "clients", "-f")
        monkeypatch.undo()
        monkeypatch.chdir(work)
        assert made_by(Path("m.safetensors")) == version
        assert clair("verify", "m.safetensors", "clients").exit_code == 0
    Path("m.safetensors").write_bytes(b"\xff" * 9)
    assert made_by(Path("m.safetensors")) is None
    assert clair("verify", "m.safetensors", "clients").exit_code == 3


# The card


def front(card: str) -> dict[str, Any]:
    begin, text, rest = card.split("---\n", 2)
    assert begin == "" and re.match("\n# (Merged|Refined) LoRA adapter\n", rest)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_a_folder_has_a_card(work: Path) -> None:
    report = merge("merged", str(work / "clients"), "--rank", "4", "--exclude", "c1")
    card = Path("merged/README.md").read_text()
    assert front(card) == {
        "base_model": "org/base", "library_name": "peft",
        "tags": ["lora", "federated-learning", "clair"],
    }  # fmt: skip
    assert "clair merge CLIENTS -o OUT --rank 4 --exclude c1\n" in card
    assert str(work) not in card
    rows = re.findall(r"^\| (\S+) \| (\w+) \| ([\d.]+) \| `(\w+)` \|$", card, re.MULTILINE)
    assert [row[:2] for row in rows] == [(c["name"], c["verdict"]) for c in report["clients"]]
    assert [row[3] for row in rows] == [c["sha256"] for c in report["clients"]]
    # outside the adapter's hash
    Path("merged/README.md").write_text("mine")
    assert clair("verify", "merged", "clients").exit_code == 0
    weights = Path("merged/adapter_model.safetensors").read_bytes()
    assert report["merged"]["sha256"] == hashlib.sha256(weights).hexdigest()
    merge("merged", "clients", "--force")
    assert Path("merged/README.md").read_text() != "mine"


def test_each_refined_folder_has_a_card_that_names_nobody_else(work: Path) -> None:
    assert clair("refine", "clients", "-o", "refined", "--exclude", "c1").exit_code == 0
    clients = {c["name"]: c for c in cohorts.read_report(Path("refined/report.json"))["clients"]}
    folders = sorted(path.name for path in Path("refined").iterdir() if path.is_dir())
    assert folders == ["c0", "c2", "c3", "c4"]
    for name in folders:
        card = Path("refined", name, "README.md").read_text()
        assert front(card)["base_model"] == "org/base"
        assert (
            f"The adapter of {name} for org/base, refined with what it shares with 3 other" in card
        )
        (row,) = re.findall(r"^\| (\S+) \| (\w+) \| [\d.]+ \| `(\w+)` \|$", card, re.MULTILINE)
        assert row == (name, "benign", clients[name]["sha256"])
        assert "clair refine CLIENTS -o OUT --exclude NAME\n" in card
        others = clients.keys() - {name}
        assert not any(re.search(rf"\b{other}\b", card) for other in others)
    # outside the adapters' hashes
    Path("refined/c0/README.md").write_text("mine")
    assert clair("verify", "refined", "clients").exit_code == 0


def test_what_is_kept_as_it_was_is_not_called_refined() -> None:
    report = fake_report(command="refine")
    assert report.refined is not None
    made = report.refined.clients[0]
    client = next(c for c in report.clients if c.name == made.name)
    for kept in (True, False):
        card = refined_card(report, client, replace(made, kept_local=kept), None)
        assert (", as it was sent, as refining it with what" in card) == kept
        assert front(card).keys() == {"library_name", "tags"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["merge", "refine"])
def test_a_hostile_name_ends_neither_the_front_matter_nor_its_cell(name: str, command: str) -> None:
    report = fake_report(command=command)
    first = replace(report.clients[0], name=name)
    options = {**report.options, "exclude": [name], "trust": [name], "weights": "/home/me/w.csv"}
    report = replace(report, clients=(first,), options=options)
    if report.refined is None:
        card = model_card(report, f"org/{name}")
    else:
        card = refined_card(report, first, report.refined.clients[0], f"org/{name}")
    assert front(card).keys() == {"base_model", "library_name", "tags"}
    (row,) = (line for line in card.splitlines() if line.startswith("| ") and "contam" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert card.count("\n```") == 2 and card.isprintable() is False
    assert all(line.isprintable() for line in card.splitlines())
    outside = card.split("---\n", 2)[2].split("```sh")[0]
    assert "<" not in outside and "\n::" not in card and "](" not in outside
    assert "--weights FILE" in command_line(report) and "/home" not in card


# Loaders take no notice of the key


@pytest.mark.loaders
def test_loaders_read_the_file(work: Path) -> None:
    from diffusers.loaders.lora_base import _fetch_state_dict  # type: ignore[attr-defined]
    from safetensors.torch import load_file

    merge("m.safetensors")
    fetched, metadata = _fetch_state_dict(
        pretrained_model_name_or_path_or_dict=".", weight_name="m.safetensors",
        use_safetensors=True, local_files_only=True, cache_dir=None, force_download=False,
        proxies=None, token=None, revision=None, subfolder=None, user_agent={},
        allow_pickle=False, metadata=None,
    )  # fmt: skip
    assert fetched.keys() == load_file("m.safetensors").keys()
    assert "clair" not in (metadata or {}) and metadata["r"] >= 1


@pytest.mark.loaders
def test_peft_reads_the_file_as_a_folder(work: Path) -> None:
    """As a folder's weights, with the config of its header beside it."""
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    merge("m.safetensors")
    Path("one").mkdir()
    shutil.copy("m.safetensors", "one/adapter_model.safetensors")
    config = json.dumps(cohorts.read_config(Path("m.safetensors")))
    Path("one/adapter_config.json").write_text(config)
    assert PeftConfig.from_pretrained("one").r >= 1
    assert len(load_peft_weights("one", device="cpu")) == len(
        cohorts.read_safetensors(Path("m.safetensors"))[0]
    )
