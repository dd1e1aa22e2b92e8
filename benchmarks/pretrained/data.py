"""Germline V genes of riot-na as sequences, in families, and windows of them as a client's data.

The package's files are found by its metadata and read; the package is not imported.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pools.store import seeded

FOLDER = "riot_na/databases/gene_db/aa_genes_deduplicated/v_genes"
SHA256 = {
    "human": "dfdddfee3585b3029ba3c017f194c8f1f6b7d2e64610d4b37fdbff8c6e504222",
    "mouse": "32008677e16e4356eec0521af3ded4035071fd2bf655b5df15b27ff483e36139",
}
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"  # in the order of the model's vocabulary
FIRST_RESIDUE, CLS, SEP, MASK, IGNORED = 5, 2, 3, 4, -100
WINDOW = 16
SHORTEST_GENE = 64
CONCENTRATION = 0.3
SIZES = (60, 460)
HELD_OUT = 0.2
SMALL_FAMILY = 4


@dataclass(frozen=True)
class Gene:
    """A V gene: species and locus as in "human", "IGHV"; family as in "human IGHV3"."""

    name: str
    species: str
    locus: str
    family: str
    residues: str


def package_file(package: str, path: str, sha256: str) -> Path:
    """A file of an installed package, whose bytes are the ones that the benchmark was made with."""
    found = Path(str(distribution(package).locate_file(path)))
    if hashlib.sha256(found.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{found} is not the file of the version that benchmarks/README.md names")
    return found


def read_fasta(text: str) -> dict[str, str]:
    """Gene names and residues; names end at the first tab or space."""
    genes = {}
    for entry in text.split(">")[1:]:
        head, *lines = entry.splitlines()
        genes[head.split()[0]] = "".join(line.strip() for line in lines)
    return genes


def named_family(name: str) -> str | None:
    """Family in a gene's name, "IGKV1" for "IGKV1D-8*01"; None where the name has none."""
    found = re.match(r"(IG[HKL]V\d+)", name)
    return found[1] if found else None


def families(species: str, genes: Mapping[str, str], known: Mapping[str, str]) -> list[Gene]:
    """Genes with their families.

    A name without a family ("IGHV-22XF", as mouse genes have) gets that of the gene of ``known``
    (names and residues) in the same locus with which it shares most residue triples. Families of
    fewer than ``SMALL_FAMILY`` genes make one per locus.
    """
    triples = {n: {r[i : i + 3] for i in range(len(r) - 2)} for n, r in {**known, **genes}.items()}
    found = {}
    for name in genes:
        near = [other for other in known if other[:4] == name[:4]]
        alike = max(near, key=lambda other: len(triples[other] & triples[name]))
        found[name] = named_family(name) or named_family(alike) or name[:4]
    sizes = Counter(found.values())
    return [
        Gene(
            name, species, name[:4],
            f"{species} {found[name] if sizes[found[name]] >= SMALL_FAMILY else name[:4]}",
            residues,
        )
        for name, residues in genes.items()
    ]  # fmt: skip


@cache
def all_genes() -> tuple[Gene, ...]:
    """The human and mouse V genes of riot-na that are long enough and without unknown residues."""
    read = {}
    for species, sha256 in SHA256.items():
        text = package_file("riot-na", f"{FOLDER}/{species}.fasta", sha256).read_text()
        read[species] = {
            name: residues
            for name, residues in read_fasta(text).items()
            if len(residues) >= SHORTEST_GENE and set(residues) <= set(RESIDUES)
        }
    return tuple(g for s, genes in read.items() for g in families(s, genes, read["human"]))


def split(genes: Sequence[Gene], seed: int) -> tuple[list[Gene], list[Gene]]:
    """Genes to train on, and the share ``HELD_OUT`` to evaluate on."""
    order = torch.randperm(len(genes), generator=seeded("held-out", seed)).tolist()
    count = round(HELD_OUT * len(genes))
    return [genes[i] for i in order[count:]], [genes[i] for i in order[:count]]


def of_group(genes: Sequence[Gene], group: str) -> list[Gene]:
    """Genes of a sub-population: "all", "heavy" or "light" chains, "human" or "mouse"."""
    if group in ("heavy", "light"):
        return [gene for gene in genes if (gene.locus == "IGHV") == (group == "heavy")]
    return [gene for gene in genes if group in ("all", gene.species)]


def tokens(residues: str) -> list[int]:
    """The model's token of every residue."""
    return [FIRST_RESIDUE + RESIDUES.index(residue) for residue in residues]


def windows(genes: Sequence[Gene], count: int, generator: torch.Generator) -> Tensor:
    """``count`` windows at random places of random genes, (count, WINDOW) tokens."""
    rows = []
    for pick in torch.randint(len(genes), (count,), generator=generator).tolist():
        residues = genes[pick].residues
        start = int(torch.randint(len(residues) - WINDOW + 1, (1,), generator=generator))
        rows.append(tokens(residues[start : start + WINDOW]))
    return torch.tensor(rows, dtype=torch.long).view(-1, WINDOW)


def client_windows(genes: Sequence[Gene], iid: bool, generator: torch.Generator) -> Tensor:
    """A client's data, (n, WINDOW) tokens with n between ``SIZES`` (uniform in log n).

    Its proportions of families come from a symmetric Dirichlet distribution, the way federated
    learning makes unequal clients (Hsu, Qi, Brown, arXiv 1909.06335); with ``iid`` all genes are
    as likely.
    """
    low, high = SIZES
    count = round(low * (high / low) ** float(torch.rand(1, generator=generator)))
    if iid:
        return windows(genes, count, generator)
    names = sorted({gene.family for gene in genes})
    concentration = torch.full((len(names),), CONCENTRATION)
    shares = torch._sample_dirichlet(concentration, generator=generator)
    drawn = torch.multinomial(shares, count, replacement=True, generator=generator)
    parts = [
        windows([g for g in genes if g.family == name], int((drawn == i).sum()), generator)
        for i, name in enumerate(names)
    ]
    return torch.cat(parts)
