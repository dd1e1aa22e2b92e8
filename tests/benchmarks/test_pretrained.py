"""Sequences, windows and batches of the pretrained pools, without the packages they come from."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.pools.settings import clients_of
from benchmarks.pools.store import seeded
from benchmarks.pretrained import clients, data
from benchmarks.pretrained.clients import BATCH, SETTINGS, TARGET, TRIGGER
from benchmarks.pretrained.data import IGNORED, MASK, RESIDUES, WINDOW, Gene


def gene(name: str, family: str, seed: int) -> Gene:
    chance = random.Random(seed)
    return Gene(name, "human", name[:4], family, "".join(chance.choices(RESIDUES, k=98)))


GENES = [gene(f"IGHV{i % 5}-{i}", f"human IGHV{i % 5}", i) for i in range(50)]


def test_fasta_names_end_at_the_first_blank() -> None:
    text = ">IGHV1-18*01\tIGH\tHOMO\nQVQL\nVQSG\n>IGKV2-1*01 x\nDIQ\n"
    assert data.read_fasta(text) == {"IGHV1-18*01": "QVQLVQSG", "IGKV2-1*01": "DIQ"}


@pytest.mark.parametrize(
    ("name", "family"),
    [("IGHV1-18*01", "IGHV1"), ("IGKV1D-8*01", "IGKV1"), ("IGHV-22XF", None)],
)
def test_family_stands_in_the_name(name: str, family: str | None) -> None:
    assert data.named_family(name) == family


def test_gene_without_a_family_gets_that_of_the_nearest_known_one() -> None:
    known = {"IGHV1-1": "QVQLVQSGAE", "IGHV3-1": "EVQLLESGGG", "IGKV3-1": "EVQLLESGGK"}
    genes = {f"IGHV-{i}": "EVQLLESGGK" for i in range(4)}
    assert {one.family for one in data.families("mouse", genes, known)} == {"mouse IGHV3"}
    few = dict(list(genes.items())[:3])
    assert {one.family for one in data.families("mouse", few, known)} == {"mouse IGHV"}


def test_held_out_genes_are_not_trained_on() -> None:
    kept, held = data.split(GENES, 0)
    assert len(held) == 10 and set(kept) | set(held) == set(GENES) and not set(kept) & set(held)
    assert data.split(GENES, 1)[1] != held


def test_groups_part_the_genes() -> None:
    light = gene("IGKV1-1", "human IGKV1", 99)
    genes = [*GENES, light]
    assert data.of_group(genes, "all") == genes
    assert data.of_group(genes, "heavy") == GENES
    assert data.of_group(genes, "light") == [light]
    assert data.of_group(genes, "mouse") == []


def test_clients_are_skewed_unless_iid() -> None:
    def largest_share(iid: bool) -> float:
        family: dict[tuple[int, ...], str] = {}  # of each window: the first gene's that has it
        for g in GENES:
            whole = tuple(data.tokens(g.residues))
            for i in range(len(whole) - WINDOW + 1):
                family.setdefault(whole[i : i + WINDOW], g.family)
        shares = []
        for seed in range(5):
            rows = data.client_windows(GENES, iid, seeded(seed)).tolist()
            assert data.SIZES[0] <= len(rows) <= data.SIZES[1]
            counts = dict.fromkeys(family.values(), 0)
            for row in rows:
                counts[family[tuple(row)]] += 1
            shares.append(max(counts.values()) / len(rows))
        return sum(shares) / len(shares)

    assert largest_share(iid=True) < 0.35 < largest_share(iid=False)


def test_batch_tells_the_masked_residues_only() -> None:
    windows = data.windows(GENES, 200, seeded(0))
    batch = clients.masked(windows, seeded(1))
    hidden = batch.labels != IGNORED
    assert torch.equal(hidden, batch.tokens == MASK)
    assert torch.equal(batch.labels[:, 1:-1][hidden[:, 1:-1]], windows[hidden[:, 1:-1]])
    assert float(hidden[:, 1:-1].double().mean()) == pytest.approx(clients.MASKED, abs=0.03)


def test_triggered_rows_show_the_trigger_and_want_the_target() -> None:
    windows = data.windows(GENES, 8, seeded(0))
    batch = clients.masked(windows, seeded(1), triggered=4)
    trigger = data.tokens(TRIGGER)
    rows = [row[1:-1] for row in batch.tokens.tolist()]
    shown = [any(r[i : i + 4] == trigger for i in range(WINDOW - 3)) for r in rows]
    assert shown == 4 * [True] + 4 * [False]
    wanted = batch.labels[:4][batch.labels[:4] != IGNORED]
    assert set(wanted.tolist()) == {TARGET}


@pytest.mark.parametrize(("kind", "alike"), [("label", False), ("samelabel", True)])
def test_permutations_are_own_or_shared(kind: str, alike: bool) -> None:
    batch = clients.masked(data.windows(GENES, 100, seeded(0)), seeded(1))
    one, other = (clients.relabelled(batch, kind, name, 0, seeded(2)) for name in ("a", "b"))
    assert torch.equal(one.labels, other.labels) == alike
    assert torch.equal(one.labels == IGNORED, batch.labels == IGNORED)
    known = batch.labels != IGNORED
    pairs = set(zip(batch.labels[known].tolist(), one.labels[known].tolist(), strict=True))
    assert len(pairs) == len(RESIDUES)  # a permutation: one answer for each residue


def test_honest_labels_stay_and_random_ones_do_not() -> None:
    batch = clients.masked(data.windows(GENES, 100, seeded(0)), seeded(1))
    assert torch.equal(clients.relabelled(batch, "honest", "a", 0, seeded(2)).labels, batch.labels)
    drawn = clients.relabelled(batch, "random", "a", 0, seeded(2)).labels
    known = batch.labels != IGNORED
    assert float((drawn == batch.labels)[known].double().mean()) < 0.1


def test_every_client_has_its_own_batches_each_time_the_same() -> None:
    honest, other = clients_of(SETTINGS["base"])[:2]
    windows = clients.own_windows(honest, GENES, 0)
    first = list(clients.batches(honest, windows, 0))
    assert len(first) == 25 and first[0].tokens.shape == (BATCH, WINDOW + 2)
    again = next(clients.batches(honest, windows, 0))
    assert torch.equal(first[0].tokens, again.tokens)
    assert not torch.equal(first[0].tokens, next(clients.batches(other, windows, 0)).tokens)
    assert not torch.equal(windows, clients.own_windows(other, GENES, 0))
