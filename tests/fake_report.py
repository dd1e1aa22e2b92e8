"""A made-up report with every verdict, for tests of what shows or stores reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clair_cli.remark import note
from clair_cli.report.cohort import CohortReport, DecompositionReport, Group, ModuleReport
from clair_cli.report.model import ClientReport, ClientScores, ModuleScores, Reason, Report
from clair_cli.report.results import MergedReport, RefinedClient, RefinedReport

MODULES = ("layers.0.q_proj", "layers.1.q_proj")

REASONS = {
    "amber": (
        "contaminated",
        "unlike_the_others",
        "unlike the others (has 0.03 of what two of the others share)",
    ),
    "mallory": ("contaminated", "in_a_group", "in a group of 2 that only agree among themselves"),
    "zoe": ("contaminated", "in_a_group", "in a group of 2 that only agree among themselves"),
    "oscar": ("suspicious", "norm", "norm 4.1 times the median; weight bounded"),
    "dave-copy": ("duplicate", "duplicate", "the same update as dave: counted once"),
    "rita": (
        "rejected",
        "unreadable",
        "'adapter_model.safetensors' has 12 bytes, too few for a header",
    ),
}
BENIGN = ("bob", "carol", "dave", "erin", "frank", "grace")
SURE = {"amber": "likely", "oscar": "open"}  # the others' verdicts are clear


def fake_report(*, command: str = "merge", path: str = "merged.safetensors") -> Report:
    """12 clients: 3 contaminated (2 of them a group), one of each other kind, 6 benign."""
    names = sorted((*REASONS, *BENIGN))
    clients = tuple(_client(name) for name in names)
    comparable = tuple(n for n in names if n != "rita")
    return Report(
        version="0.1.0",
        command=command,
        options={
            "clients": "clients",
            "output": path,
            "rank": "auto",
            "fail_on": "never",
            "exclude": [],
            "weights": None,
        },
        cohort=_cohort(comparable),
        clients=clients,
        modules=tuple(
            ModuleReport(name, (32, 16), len(comparable), (), 0.31, 0.02) for name in MODULES
        ),
        merged=_merged(path) if command == "merge" else None,
        refined=_refined("refined") if command == "refine" else None,
        warnings=(note("x", "3 adapters name a local path as base model; not compared"),),
        exit_code=3 if command == "inspect" else 0,
    )


def all_benign(n_clients: int = 6, *, prefix: str = "client-") -> Report:
    """A cohort without findings."""
    names = tuple(f"{prefix}{i:02d}" for i in range(n_clients))
    report = fake_report()
    clients = tuple(replace(_client(name), weight=1 / n_clients) for name in names)
    cohort = replace(
        _cohort(names),
        n_clients=n_clients,
        contaminated_ratio=0.0,
        groups=(Group(names, 0.3, "collaborative"),),
    )
    return replace(report, clients=clients, cohort=cohort, warnings=())


def undetermined(command: str = "merge") -> Report:
    """Two clients: nothing can be said."""
    report = all_benign(2)
    nothing = {"verdict": "undetermined", "weight": 0.0, "p_honest": None, "confidence": None,
               "reasons": (Reason("too_few", "too few clients to compare"),)}  # fmt: skip
    clients = tuple(replace(c, **nothing) for c in report.clients)
    cohort = replace(
        report.cohort,
        outcome="undetermined",
        outcome_text="2 clients: can't tell which of them is wrong",
        remedy="collect more clients, or merge them all with --allow-undetermined",
        stacking=None,
        level=None,
        level_se=None,
        power=None,
        contaminated_ratio=None,
        groups=(),
    )
    return replace(
        report, command=command, clients=clients, cohort=cohort, merged=None, exit_code=5
    )


def renamed(report: Report, names: dict[str, str]) -> Report:
    """The report with clients renamed: for hostile and long names."""
    clients = tuple(replace(c, name=names.get(c.name, c.name)) for c in report.clients)
    return replace(report, clients=clients)


def with_score(report: Report, **scores: Any) -> Report:
    """The report with the first client's scores changed."""
    first = report.clients[0]
    first = replace(first, scores=replace(first.scores, **scores))
    return replace(report, clients=(first, *report.clients[1:]))


def _client(name: str) -> ClientReport:
    if name == "rita":
        verdict, code, text = REASONS[name]
        return ClientReport(name, verdict, (Reason(code, text),), ClientScores(), 0.0, None, name)
    verdict, code, text = REASONS.get(name, ("benign", "", ""))
    benign = verdict == "benign"
    scores = ClientScores(
        loading=0.98 if benign else 0.03,
        loading_se=0.05,
        similarity=0.31 if benign else 0.01,
        off_line_ratio=0.4 if benign else 0.95,
        block_norm=0.0 if benign else 2.4,
        measures={
            "norm": 2.5,
            "norm_ratio": 4.1 if name == "oscar" else 1.0,
            "effective_rank_ratio": None,
        },
    )
    return ClientReport(
        name=name,
        verdict=verdict,
        reasons=(Reason(code, text),) if code else (),
        scores=scores,
        weight={"benign": 0.15, "suspicious": 0.1}.get(verdict, 0.0),
        sha256="0" * 64,
        path=f"clients/{name}",
        ranks=(8,),
        scales=(2.0,),
        p_honest=None if verdict == "duplicate" else 0.6 if benign else 0.001,
        confidence=None if verdict == "duplicate" else SURE.get(name, "clear"),
        power=0.998,
        modules={m: ModuleScores(1.7, 0.3, 0.04, 8, 2.0) for m in MODULES},
    )


def _cohort(names: tuple[str, ...]) -> CohortReport:
    inside = tuple(n for n in names if n not in REASONS)
    left_out = tuple(n for n in names if n in REASONS)
    square = tuple(tuple(1.0 if a == b else 0.3 for b in names) for a in names)
    return CohortReport(
        outcome="judged",
        outcome_text="",
        remedy="",
        n_clients=len(names) + 1,
        n_comparable=len(names),
        stacking="matrix",
        level=0.31,
        level_se=0.02,
        power=0.998,
        contaminated_ratio=3 / 11,
        groups=(
            Group(inside, 0.31, "collaborative"),
            Group(("mallory", "zoe"), 0.4, "other"),
            Group(("amber",), None, "loner"),
        ),
        decomposition=DecompositionReport(
            "stable", 0.4, 1.2, 3e-5, 120, True, inside, left_out, True
        ),
        names=names,
        similarity=square,
        similarity_se=tuple(tuple(0.02 for _ in names) for _ in names),
        line=0.45,
        line_width=2.4,
        coordinates=tuple((0.55, -0.1) if n in inside else (0.02, 0.3) for n in names),
        spectrum=(4.0, *(0.7 for _ in names[1:])),
    )


def _merged(path: str) -> MergedReport:
    by_rank = {"8": 0.2, "16": 0.07, "72": 0.0}
    return MergedReport(
        path=path,
        sha256="f" * 64,
        rank=16,
        full_rank=72,
        alpha=16.0,
        scaling=1.0,
        dtype="float32",
        error=0.0712,
        error_by_rank=by_rank,
        module_error_by_rank=dict.fromkeys(MODULES, by_rank),
        norm=2.1,
        plain_mean_distance=0.42,
    )


def _refined(path: str) -> RefinedReport:
    clients = tuple(
        RefinedClient(
            name, f"{path}/{name}", "e" * 64, 8, 0.01, 0.2, 0.04, 0.03, 0.25, name == "bob"
        )
        for name in BENIGN
    )
    return RefinedReport(
        path, "output", "sharing is strongest there", "weights", 0.01, 0.02, clients
    )
