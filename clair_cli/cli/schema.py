"""`clair schema`: what a report can hold, as JSON Schema. Reads nothing, imports no torch."""

from __future__ import annotations

from clair_cli.cli.exits import guarded
from clair_cli.cli.streams import write_out


def schema() -> None:
    """Print the JSON Schema of the report.

    JSON Schema 2020-12; every field has a description.
    """
    with guarded() as run:
        from clair_cli.report.schema import schema_text

        write_out(schema_text())
        run.finished = True
