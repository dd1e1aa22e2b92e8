"""A report as JUnit XML: a test case for the round and one for each client.

A contaminated client is a failure, a rejected one an error, and so is a round without a verdict; a
client that was not judged, or counted as another's copy, is skipped. There is no time in it: the
same report gives the same bytes.
"""

from __future__ import annotations

from xml.etree import ElementTree

from clair_cli.rendered.findings import headline, outcome_text, why
from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable

_ELEMENTS = {
    "contaminated": "failure", "rejected": "error", "undetermined": "skipped",
    "duplicate": "skipped",
}  # fmt: skip


def render(report: Report) -> bytes:
    """The report as JUnit XML: ASCII, all else as character references."""
    judged = report.cohort.outcome == "judged"
    cases = [_round(report), *(_case(client, report) for client in report.clients)]
    suite = ElementTree.Element(
        "testsuite",
        name=f"clair {report.command}",
        tests=str(len(cases)),
        failures=str(len(report.with_verdict("contaminated"))),
        errors=str(len(report.with_verdict("rejected")) + (not judged)),
        skipped=str(sum(len(report.with_verdict(v)) for v in ("undetermined", "duplicate"))),
    )
    suite.extend(cases)
    root = ElementTree.Element("testsuites", name="clair")
    root.append(suite)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return data + b"\n"


def _round(report: Report) -> ElementTree.Element:
    """The round as a whole, with the remarks on it."""
    case = ElementTree.Element("testcase", classname="clair.round", name="the round")
    if report.cohort.outcome != "judged":
        error = ElementTree.SubElement(
            case, "error", type=report.cohort.outcome, message=headline(report)
        )
        error.text = outcome_text(report)
    said = [f"{remark.class_}: {printable(remark.text)}" for remark in report.warnings]
    ElementTree.SubElement(case, "system-out").text = "\n".join([headline(report), *said])
    return case


def _case(client: ClientReport, report: Report) -> ElementTree.Element:
    name, verdict = printable(client.name), client.verdict
    case = ElementTree.Element("testcase", classname="clair.clients", name=name)
    text = why(client, report)
    element = _ELEMENTS.get(verdict)
    if element is not None:
        short = "; ".join(printable(reason.text) for reason in client.reasons)
        told = ElementTree.SubElement(
            case, element, type=verdict, message=f"{verdict}: {short}" if short else verdict
        )
        told.text = text
    else:
        said = f"{verdict}, weight {client.weight:.3g}"
        ElementTree.SubElement(case, "system-out").text = f"{said}. {text}" if text else said
    return case
