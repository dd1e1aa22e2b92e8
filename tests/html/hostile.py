"""A report full of words that would steer a page."""

from __future__ import annotations

from dataclasses import replace

from clair_cli.remark import note
from clair_cli.report.model import Reason, Report
from tests.fake_report import fake_report, renamed

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "a\u202eb\x1b[31m\u2028c\x00",
    "\"' onmouseover='alert(1)",
    "<!--<script>",
    "]]>&amp;",
)


def hostile() -> Report:
    """A report with hostile names of clients, modules and groups, and hostile texts."""
    report = fake_report()
    names = dict(zip((c.name for c in report.clients), HOSTILE, strict=False))
    report = renamed(report, names)
    clients = tuple(
        replace(
            c,
            reasons=tuple(Reason(r.code, HOSTILE[0]) for r in c.reasons),
            modules={HOSTILE[0]: next(iter(c.modules.values()))} if c.modules else {},
        )
        for c in report.clients
    )
    cohort = replace(
        report.cohort,
        names=tuple(names.get(n, n) for n in report.cohort.names),
        groups=tuple(
            replace(g, members=tuple(names.get(n, n) for n in g.members))
            for g in report.cohort.groups
        ),
    )
    assert report.merged is not None
    merged = replace(
        report.merged,
        error_by_rank={"8": 0.1},
        module_error_by_rank={HOSTILE[0]: {"8": 0.1}},
        path=HOSTILE[0],
    )
    modules = (replace(report.modules[0], name=HOSTILE[0]),)
    remarks = (note("x", HOSTILE[0]),)
    return replace(
        report, clients=clients, cohort=cohort, merged=merged, modules=modules, warnings=remarks
    )
