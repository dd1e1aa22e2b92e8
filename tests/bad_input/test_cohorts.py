"""Rows about how clients stand to one another: shapes, dtypes, scales, copies, groups."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import cohorts
from tests.bad_input.running import GOOD, OUT, Ran, merge
from tests.bad_input.table import ROWS, covers
from tests.cohorts import MODULES, Client

CLIENTS = Path("clients")
FIVE = cohorts.honest(5)
EXACT = ("--rank", "full", "--dtype", "float32")
FIRST = next(iter(MODULES))


def merged(clients: Mapping[str, Client], *args: object, dtype: str = "F32") -> Ran:
    cohorts.save(CLIENTS, clients, dtype=dtype)
    return merge(*args)


def finite(path: str = OUT) -> bool:
    tensors, _ = cohorts.read_safetensors(Path(path))
    return all(np.isfinite(t).all() for t in tensors.values())


def config(client: Client, **changes: Any) -> Client:
    return replace(client, config={**client.config, **changes})


@covers(5, 6)
def test_one_and_two_clients(work: Path, row: int) -> None:
    count = row - 4
    words = {1: "1 client: nothing to compare with", 2: "2 clients: can't tell which is wrong"}
    ran = merged(cohorts.honest(count))
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert words[count] in ran.words and "--allow-undetermined" in ran.words
    assert set(ran.verdicts.values()) == {"undetermined"}
    assert "contaminated" not in ran.words.replace("--fail-on contaminated", "")
    assert merge("--allow-undetermined").code == 0 and finite()


@covers(28)
def test_rslora_beside_plain(work: Path, row: int) -> None:
    deltas = cohorts.honest_deltas(4)
    clients = {
        f"c{k}": cohorts.factored(d, 6, {"use_rslora": k == 0}, seed=k)
        for k, d in enumerate(deltas)
    }
    ran = merged(clients, *EXACT)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert cohorts.relative(cohorts.read_dense(Path(OUT)), cohorts.mean(deltas)) <= 1e-6
    assert ran.report is not None
    scales = {c["name"]: c["scales"] for c in ran.report["clients"]}
    assert scales["c0"] == [pytest.approx(12 / 6**0.5)] and scales["c1"] == [2.0]


@covers(32)
def test_module_sets_differ(work: Path, row: int) -> None:
    clients = {**FIVE, "c1": cohorts.without(FIVE["c1"], [FIRST])}
    ran = merged(clients, *EXACT)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert f"1 module ('{FIRST}') absent from 1 client ('c1'): a zero update there" in ran.words
    truth = cohorts.mean([c.deltas() for c in clients.values()])
    assert cohorts.relative(cohorts.read_dense(Path(OUT)), truth) <= 1e-6
    assert merge("--modules", "intersection", "--force", *EXACT).code == 0
    assert FIRST not in cohorts.read_dense(Path(OUT))
    strict = merge("--modules", "same", "--force", *EXACT)
    assert strict.verdicts["c1"] == "rejected" and FIRST in strict.reason("c1")


@covers(33)
def test_a_module_that_most_lack(work: Path, row: int) -> None:
    """It is left out; or merged with zero updates, and nobody is judged by it."""
    clients = {n: c if n == "c1" else cohorts.without(c, [FIRST]) for n, c in FIVE.items()}
    ran = merged(clients, *EXACT)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert f"1 module ('{FIRST}') left out: fewer than 3 of 5 clients have it" in ran.words
    assert ran.report is not None
    assert FIRST not in cohorts.read_dense(Path(OUT)) and FIRST not in str(ran.report["modules"])
    ran = merge("--modules", "union", "--force", *EXACT)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert f"'{FIRST}'" in ran.words and "absent from 4 clients" in ran.words
    assert ran.report is not None
    (module,) = (m for m in ran.report["modules"] if m["name"] == FIRST)
    assert (module["absent"], module["n_updates"]) == (["c0", "c2", "c3", "c4"], 1)
    numbers = [v for k, v in module.items() if isinstance(v, float)]
    assert numbers == [], "a similarity of one"


@covers(35)
def test_ranks_differ(work: Path, row: int) -> None:
    deltas = cohorts.honest_deltas(4)
    clients = {f"c{k}": cohorts.factored(d, 6 + 2 * k, seed=k) for k, d in enumerate(deltas)}
    ran = merged(clients)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert ran.report is not None
    assert [c["ranks"] for c in ran.report["clients"]] == [[6], [8], [10], [12]]
    result = ran.report["merged"]
    assert f"rank {result['rank']}" in ran.words and "writing it loses" in ran.words


@covers(36)
def test_nobody_agrees_on_shapes(work: Path, row: int) -> None:
    clients = {
        n: Client({m: np.hstack([a] * (k + 1)) for m, a in c.A.items()}, c.B)
        for k, (n, c) in enumerate(GOOD.items())
    }
    ran = merged(clients)
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert f"no majority for the shape of module '{FIRST}'" in ran.words
    assert "leave the others out with --exclude" in ran.words
    for k, name in enumerate(GOOD):
        assert f"(24, {16 * (k + 1)}) ('{name}')" in ran.words


@covers(37)
def test_a_tie_between_base_models(work: Path, row: int) -> None:
    clients = {
        n: config(c, base_model_name_or_path=f"org/base-{k % 2}")
        for k, (n, c) in enumerate(cohorts.honest(4).items())
    }
    ran = merged(clients)
    assert (ran.code, Path(OUT).exists()) == (4, False)
    assert "2 clients have 'org/base-0' ('c0', 'c2')" in ran.words
    assert "2 clients have 'org/base-1' ('c1', 'c3')" in ran.words


@covers(38)
def test_base_models_that_can_not_be_compared(work: Path, row: int) -> None:
    Path("local").mkdir()
    os.mkfifo("local/config.json")  # opening it would hang
    clients = {
        **cohorts.honest(4),
        "c0": config(FIVE["c0"], base_model_name_or_path=None),
        "c1": config(FIVE["c1"], base_model_name_or_path=str(Path("local").resolve())),
    }
    ran = merged(clients)
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert "base model not named by 1 client: 'c0'" in ran.words
    assert "local path that can't be compared" in ran.words and "'c1'" in ran.words


@covers(39)
def test_dtypes_mixed(work: Path, row: int) -> None:
    for (name, client), dtype in zip(GOOD.items(), ("BF16", "F16", "F32"), strict=True):
        cohorts.save_peft(CLIENTS / name, client, dtype)
    ran = merge()
    assert ran.code == ROWS[row].code and set(ran.verdicts.values()) == {"benign"}
    assert "float32" in ran.words
    assert "the clients' dtypes differ (bfloat16, float16, float32): float32 written" in ran.words


@covers(44)
def test_subnormal_numbers_only(work: Path, row: int) -> None:
    for dtype, size, verdict, words in (
        ("F32", 1e-41, "suspicious", "norm"),
        ("F64", 1e-310, "suspicious", "no update"),
        ("F64", 1e-300, "rejected", "float32 can't hold"),  # of float32 none would be left
    ):
        ran = merged({**GOOD, "tiny": cohorts.scaled(FIVE["c4"], size)}, "--force", dtype=dtype)
        assert (ran.code, ran.verdicts["tiny"]) == (ROWS[row].code, verdict)
        assert words in ran.reason("tiny") and finite()


@covers(45)
def test_an_adapter_of_zeros(work: Path, row: int) -> None:
    ran = merged({**GOOD, "zero": cohorts.scaled(FIVE["c4"], 0.0)})
    assert (ran.code, ran.verdicts["zero"]) == (ROWS[row].code, "suspicious")
    assert ran.reason("zero").startswith("no update") and finite()
    assert all(ran.verdicts[n] == "benign" for n in GOOD)


@covers(46)
def test_nothing_but_zeros(work: Path, row: int) -> None:
    ran = merged({n: cohorts.scaled(c, 0.0) for n, c in FIVE.items()})
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert "every delta weight is zero" in ran.words


@covers(47)
def test_a_result_above_float16(work: Path, row: int) -> None:
    clients = {n: cohorts.scaled(c, 1e12) for n, c in FIVE.items()}
    ran = merged(clients)
    assert ran.code == ROWS[row].code and finite()
    asked = merge("--dtype", "float16", "--force")
    assert asked.code == 6
    assert "module 'model.layers." in asked.words and "does not fit float16" in asked.words
    assert "singular value is" in asked.words and "--dtype" in asked.words
    assert finite(), "the old file is still there"


@covers(48, 49)
def test_copies_have_one_vote(work: Path, row: int) -> None:
    copy = FIVE["c0"] if row == 48 else cohorts.regauged(FIVE["c0"])
    alone = merged(FIVE, *EXACT)
    ran = merged({**FIVE, "copy": copy}, "--force", *EXACT)
    assert (alone.code, ran.code) == (0, ROWS[row].code)
    (duplicate,) = (n for n, v in ran.verdicts.items() if v == "duplicate")
    other = ({"c0", "copy"} - {duplicate}).pop()
    assert f"the same update as {other}; the two count as one client" in ran.reason(duplicate)
    assert ran.report is not None
    weights = {c["name"]: c["weight"] for c in ran.report["clients"]}
    assert weights[duplicate] == 0.0 and weights[other] == pytest.approx(0.2)


@covers(50)
def test_one_client_as_folder_and_as_file(work: Path, row: int) -> None:
    cohorts.save(CLIENTS, FIVE)
    cohorts.save(CLIENTS, {"c0": FIVE["c0"]}, "file")
    ran = merge()
    assert (ran.code, sorted(ran.verdicts)) == (ROWS[row].code, [
        "c0", "c0.safetensors", "c1", "c2", "c3", "c4",
    ])  # fmt: skip
    assert sorted(ran.verdicts.values()).count("duplicate") == 1
    assert ran.report is not None
    paths = {c["name"]: c["path"] for c in ran.report["clients"]}
    assert paths["c0"] == "clients/c0/adapter_model.safetensors"
    assert paths["c0.safetensors"] == "clients/c0.safetensors"


@covers(51)
def test_a_crowd_of_copies(work: Path, row: int) -> None:
    crowd = {f"s{k}": cohorts.unrelated() for k in range(8)}
    ran = merged({**FIVE, **crowd})
    assert ran.code == ROWS[row].code
    assert all(ran.verdicts[n] == "benign" for n in FIVE)
    assert sorted(ran.verdicts[n] for n in crowd) == ["contaminated"] + ["duplicate"] * 7
    shutil.rmtree(CLIENTS)
    few = merged({"c0": FIVE["c0"], **crowd}, "--force")
    assert few.code == 5 and "2 different updates" in few.words


@covers(52)
def test_two_groups(work: Path, row: int) -> None:
    ran = merged({**FIVE, **dict(zip("wxyz", cohorts.colluders(4), strict=True))})
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert "two groups of similar size" in ran.words
    assert "5 (c0, c1, c2, c3, c4)" in ran.words and "4 (w, x, y, z)" in ran.words


@covers(54)
def test_a_pickle_beside_safetensors(work: Path, row: int) -> None:
    cohorts.save(CLIENTS, GOOD)
    alone = merge()
    before = Path(OUT).read_bytes()
    (CLIENTS / "c0" / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    ran = merge("--force")
    assert (alone.code, ran.code) == (0, ROWS[row].code)
    assert "client 'c0': 'adapter_model.bin' ignored" in ran.words
    assert Path(OUT).read_bytes() == before


@covers(61)
@pytest.mark.parametrize("kind", ["hard link", "file link", "folder link"])
def test_links_between_clients(work: Path, row: int, kind: str) -> None:
    cohorts.save(CLIENTS, FIVE)
    if kind == "folder link":
        (CLIENTS / "copy").symlink_to("c0")
    else:
        (CLIENTS / "copy").mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            link = os.link if kind == "hard link" else os.symlink
            link((CLIENTS / "c0" / name).resolve(), CLIENTS / "copy" / name)
    ran = merge()
    assert ran.code == ROWS[row].code
    (duplicate,) = (n for n, v in ran.verdicts.items() if v == "duplicate")
    assert {duplicate} < {"c0", "copy"}
    assert ({"c0", "copy"} - {duplicate}).pop() in ran.reason(duplicate)


@covers(93)
def test_a_solver_that_does_not_converge(
    work: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a second opinion, which decides nothing; the report tells how far it got."""
    from clair_cli.maths.judge import judge

    clients = {**FIVE, "c5": cohorts.unrelated()}
    usual = merged(clients)
    solved = functools.partial(judge.collaborate, max_iter=1, tol=0.0)
    monkeypatch.setattr(judge, "collaborate", solved)
    ran = merge("--force")
    assert usual.report is not None and ran.report is not None
    found = [r["cohort"]["decomposition"] for r in (usual.report, ran.report)]
    assert [d["converged"] for d in found] == [True, False]
    assert found[1]["n_iter"] == 1 and found[1]["gap"] > 10 * found[0]["gap"]
    assert (ran.code, ran.verdicts) == (ROWS[row].code, usual.verdicts)
    assert ran.verdicts["c5"] == "contaminated" and finite()
