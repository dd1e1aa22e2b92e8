"""Properties: a mutated file is read or rejected, and what does not matter changes nothing."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clair_cli
from clair_cli.cohort.model import Cohort
from tests import cohorts
from tests.bad_input.clients import DATA, parts
from tests.cohorts import Client
from tests.hostile import load_cohort
from tests.work import at_most

EXAMPLES = settings.default.max_examples  # type: ignore[attr-defined]

# What a header's field may hold besides what it should.
NUMBERS = st.one_of(
    st.integers(-2, 20),
    st.sampled_from([2**31, 2**32, 2**40, 2**53, 2**63, 2**64, 10**30]),
    st.floats(),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.one_of(
    st.sampled_from(sorted(parts()[0])),
    st.text(max_size=12),
    st.sampled_from(
        ["", "../x", "\0", "a\n::error::", "\u202e", "__metadata__", "x.lora_A.weight"]
    ),
)


@st.composite
def headers(draw: st.DrawFn) -> str:
    """A good header after some edits of offsets, dtypes, shapes, names and layout."""
    header, _ = parts()
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header) or [""]))
        entry = header.get(name)
        edit = draw(st.integers(0, 6))
        if not isinstance(entry, dict) or "shape" not in entry or edit == 0:
            header[draw(NAMES)] = draw(st.one_of(JSON, st.just(entry)))
        elif edit == 1:
            entry["data_offsets"] = draw(st.one_of(JSON, st.lists(NUMBERS, max_size=3)))
        elif edit == 2:
            entry["shape"] = draw(st.one_of(JSON, st.lists(NUMBERS, max_size=4)))
        elif edit == 3:
            dtypes = ["F64", "F16", "BF16", "I8", "BOOL", "F4", "C64", "", "f32"]
            entry["dtype"] = draw(st.one_of(st.sampled_from(dtypes), JSON))
        elif edit == 4:
            header[draw(NAMES)] = header.pop(name)
        elif edit == 5:
            del header[name]
        else:
            offsets = entry.get("data_offsets")
            if isinstance(offsets, list) and all(type(item) is int for item in offsets):
                shift = draw(st.sampled_from([-8, -4, -1, 1, 4, 8]))
                entry["data_offsets"] = [item + shift for item in offsets]
    text = json.dumps(header)
    if draw(st.integers(0, 4)) == 0:  # a key given twice
        text = "{" + json.dumps(draw(NAMES)) + ": " + json.dumps(draw(JSON)) + ", " + text[1:]
    return text


GOOD = cohorts.client_bytes(cohorts.honest(1)["c0"])
FIELDS = json.dumps(cohorts.honest(1)["c0"].fields).encode()


def loaded(data: bytes, config: bytes = FIELDS) -> Cohort:
    """A cohort of this client and a good one, for little work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for client, weights, fields in (("good", GOOD, FIELDS), ("mutated", data, config)):
            (folder / client).mkdir()
            (folder / client / "adapter_model.safetensors").write_bytes(weights)
            (folder / client / "adapter_config.json").write_bytes(fields)
        with at_most(20_000):
            cohort = load_cohort(folder)
    names = [a.name for a in cohort.adapters] + [r.name for r in cohort.rejected]
    assert sorted(names) == ["good", "mutated"]
    assert cohort.adapters[0].name == "good"
    assert all(r.message.isprintable() and r.message for r in cohort.rejected)
    return cohort


def check(data: bytes) -> None:
    """Rejected, or read as the safetensors library reads it."""
    cohort = loaded(data)
    if cohort.rejected:
        return
    theirs = safetensors.torch.load(data)
    for module in cohort.adapters[1].modules.values():
        rows, columns = module.layout.matrix
        assert (module.rank, columns) == theirs[module.key_A].flatten(1).shape
        assert (rows, module.rank) == theirs[module.key_B].flatten(1).shape


@given(headers(), st.integers(-9, 9))
def test_an_edited_header_is_read_or_rejected(text: str, more: int) -> None:
    _, body = parts()
    body = body[:more] if more < 0 else body + bytes(max(0, more - 6))
    header = text.encode("utf-8", "surrogatepass")
    check(struct.pack("<Q", len(header)) + header + body)


@given(st.data())
def test_flipped_bytes_are_read_or_rejected(data: st.DataObject) -> None:
    changed = bytearray(DATA)
    header = int.from_bytes(DATA[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(DATA) - 1)))
        changed[at] ^= data.draw(st.integers(1, 255))
    check(bytes(changed))


CONFIG = cohorts.honest(2)["c1"].fields


@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from([*CONFIG, "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"]),
            st.text(max_size=8),
        ),
        st.one_of(JSON, st.dictionaries(st.sampled_from(["q_proj", ".*", "(", "(a+)+$"]), JSON)),
        min_size=1,
        max_size=3,
    )
)
def test_an_edited_config_is_read_or_rejected(changes: dict[str, Any]) -> None:
    loaded(DATA, json.dumps({**CONFIG, **changes}).encode("utf-8", "surrogatepass"))


@settings(max_examples=EXAMPLES // 2)
@given(st.binary(max_size=200))
def test_a_config_of_any_bytes_is_rejected(data: bytes) -> None:
    assert [r.name for r in loaded(DATA, data).rejected] == ["mutated"]


# Whatever the gauge, order, names and common scale: the verdicts are the same, and the merge.

COHORT = {
    **cohorts.honest(5),
    "flip": cohorts.scaled(cohorts.honest(6)["c5"], -1.0),
    "large": cohorts.scaled(cohorts.honest(7)["c6"], 9.0),
    "odd": cohorts.unrelated(),
    "twin": cohorts.regauged(cohorts.honest(2)["c1"]),
}


def judged(clients: cohorts.Clients, folder: Path) -> tuple[dict[str, str], cohorts.Deltas]:
    cohorts.save(folder, clients, dtype="F64")
    result = clair_cli.merge(folder, rank="full", dtype="float32")
    shutil.rmtree(folder)
    assert result.tensors is not None and result.config is not None
    verdicts = {c.name: c.verdict for c in result.report.clients}
    return verdicts, cohorts.dense(result.tensors, result.config)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], cohorts.Deltas]:
    verdicts, merged = judged(COHORT, tmp_path_factory.mktemp("before") / "clients")
    assert {n for n, v in verdicts.items() if v == "contaminated"} == {"flip", "large", "odd"}
    return verdicts, merged


def rescaled(client: Client, scale: float, split: float) -> Client:
    """`scale` times the update, `split` of it in A."""
    return Client(
        {m: a * split for m, a in client.A.items()},
        {m: b * (scale / split) for m, b in client.B.items()},
        client.config,
    )


@settings(max_examples=EXAMPLES // 8)
@given(
    order=st.permutations(sorted(COHORT)),
    names=st.lists(
        st.text("abcXYZ09-_ \u00e9\u533b", min_size=1, max_size=10).filter(str.strip),
        min_size=len(COHORT), max_size=len(COHORT), unique_by=str.casefold,
    ),
    scale=st.sampled_from([1.0, 1e-3, 1e3, 0.37]),
    split=st.sampled_from([1.0, 1e-6, 1e5]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_what_does_not_matter(
    before: tuple[dict[str, str], cohorts.Deltas],
    order: list[str],
    names: list[str],
    scale: float,
    split: float,
    seed: int,
) -> None:
    new = dict(zip(order, names, strict=True))
    clients = {
        new[n]: rescaled(cohorts.regauged(COHORT[n], seed + k), scale, split)
        for k, n in enumerate(order)
    }
    with tempfile.TemporaryDirectory() as folder:
        verdicts, merged = judged(clients, Path(folder) / "clients")
    verdicts = {n: verdicts[new[n]] for n in COHORT}
    # Of two that are the same, the first in order of content keeps the verdict.
    assert sorted((verdicts["c1"], verdicts["twin"])) == ["benign", "duplicate"]
    verdicts["c1"], verdicts["twin"] = before[0]["c1"], before[0]["twin"]
    assert verdicts == before[0]
    assert cohorts.relative({m: d / scale for m, d in merged.items()}, before[1]) <= 1e-6
    assert all(np.isfinite(d).all() for d in merged.values())
