"""Report -> one self-contained HTML page: the same report and path give the same bytes.

Names come from strangers. Control and right-to-left characters are escaped by `printable`, what
HTML would obey by the templates (autoescape); the data for the scripts stand in a block of JSON in
which no character is left that could end it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from clair_cli.html import tables
from clair_cli.html.headline import MEANINGS, facts, headline
from clair_cli.html.marks import evidence_chart, loss_chart, map_chart, spectrum_chart
from clair_cli.pictures.grids import Grid, share_grid, similarity_grid, size_grid
from clair_cli.pictures.order import short_names
from clair_cli.pictures.points import evidence
from clair_cli.report.model import VERDICTS, Report
from clair_cli.text import printable
from clair_cli.words.refined import refined_words
from clair_cli.words.steps import next_steps

if TYPE_CHECKING:
    from jinja2 import Environment

_LEAST_STEPS = 1000  # of a heat map's numbers between the middle and the end of its colours
_MOST_LABELS = 60  # names beside a heat map


def render(report: Report, *, report_path: str = "") -> bytes:
    """The page as a file's bytes.

    Args:
        report_path: where the JSON report is, as the user would type it, for commands to copy.
    """
    return html_page(report, report_path=report_path).encode("utf-8")


def html_page(report: Report, *, report_path: str = "") -> str:
    """The whole page; needs the extra html."""
    grids = {
        "similarity": similarity_grid(report),
        "share": share_grid(report),
        "size": size_grid(report),
    }
    script = _file("page.js")
    found = evidence(report)
    refined_said = "" if report.refined is None else refined_words(report.refined)
    return _environment().get_template("page.html.j2").render(
        report=report,
        headline=headline(report),
        facts=facts(report),
        clients=tables.client_rows(report),
        meanings=MEANINGS,
        counts=[(v, n) for v in VERDICTS if (n := len(report.with_verdict(v)))],
        anybody_sure=any(client.sure for client in report.clients),
        left_out="out" if any(client.weight > 0 for client in report.clients) else "-",
        steps=next_steps(report, report_path=report_path),
        remarks=tables.remarks(report),
        grids=grids,
        evidence=found and evidence_chart(found),
        map=map_chart(report),
        losses=loss_chart(report),
        spectrum=spectrum_chart(report),
        refined_words=refined_said[:1].upper() + refined_said[1:],
        tables=tables,
        data=_data(grids),
        css=_file("page.css"),
        script=script,
        script_hash=_hash(script),
    )  # fmt: skip


def _hash(script: str) -> str:
    """What a policy calls an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()


def _data(grids: dict[str, Grid | None]) -> str:
    """The heat maps' numbers as JSON that can stand in a script's element."""
    found = {name: _grid_data(grid) for name, grid in grids.items() if grid is not None}
    text = json.dumps(found, separators=(",", ":"), sort_keys=True, allow_nan=False)
    for character in "<>&":  # json.dumps has escaped all that is not ASCII
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _grid_data(grid: Grid) -> dict[str, Any]:
    """A heat map in whole numbers, in units of 1 / scale."""
    scale = 1
    while grid.bound * scale < _LEAST_STEPS:
        scale *= 10
    values = [None if v is None else round(v * scale) for row in grid.values for v in row]
    columns = [printable(name) for name in grid.columns]
    return {
        "rows": [printable(name) for name in grid.rows],
        "columns": columns if grid.columns != grid.rows else None,
        "labels": short_names(columns) if grid.columns != grid.rows else None,
        "most_labels": _MOST_LABELS,
        "values": values,
        "scale": scale,
        "middle": grid.middle,
        "bound": grid.bound,
        "ends": grid.ends,
    }


@lru_cache(maxsize=8)
def _file(name: str) -> str:
    return files("clair_cli.html").joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"safe_name": printable, "number": tables.number}
    return environment
