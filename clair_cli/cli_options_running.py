"""The options that change how fast a run is, never what it finds."""

from __future__ import annotations

from typing import Annotated, Literal

from clair_cli.cli_options import RUNNING, option

Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    option("--device", panel=RUNNING, help="Where to compute."),
]
Threads = Annotated[
    int | None,
    option(
        "--threads",
        panel=RUNNING,
        metavar="N",
        min=1,
        show_default=False,
        help="Modules worked on at once; default: one per core. The results are the same.",
    ),
]
Timings = Annotated[
    bool,
    option("--timings", panel=RUNNING, help="Say on stderr where the time went."),
]
