"""The reader's limits, held against a result before it is published: what clair writes, it reads.

Other programs have limits too, and a later round reads the result as its previous adapter.
"""

from __future__ import annotations

from collections.abc import Collection

from clair_cli.errors import OutputError
from clair_cli.formats.limits import Limits
from clair_cli.report.encode import MAX_REPORT

_FEWER = "write fewer modules (--modules intersection), or leave clients out with --exclude"


def check_adapter(
    limits: Limits,
    *,
    rank: int,
    names: Collection[str],
    header_bytes: int,
    file_bytes: int,
    config_bytes: int,
) -> None:
    """Refuse an adapter that a run with these limits could not read.

    Args:
        limits: of this run.
        rank: of its modules.
        names: of its tensors.
        config_bytes: of the config, in a file of its own or in the header.

    Raises:
        OutputError: says what there is too much of.
    """
    longest = max(map(len, names), default=0)
    for what, found, limit, option in (
        ("tensors", len(names), limits.max_tensors, "tensors"),
        ("characters in a tensor's name", longest, limits.max_name_chars, ""),
        ("as its rank", rank, limits.max_rank, "rank"),
        ("bytes of config", config_bytes, limits.max_config_bytes, ""),
        ("bytes of header", header_bytes, limits.max_header_bytes, "header"),
        ("bytes", file_bytes, limits.max_file_bytes, "file"),
    ):
        if found > limit:
            raise OutputError(
                f"the adapter would have {found:,} {what}, and clair reads at most {limit:,}",
                hint=f"{_FEWER}; or raise it with --limit {option}=VALUE here and wherever clair "
                "reads the result"
                if option
                else _FEWER,
            )


def check_report(size: int) -> None:
    """Refuse a report of more bytes than clair reads; raises OutputError."""
    if size > MAX_REPORT:
        raise OutputError(
            f"the report would have {size:,} bytes, and clair reads at most {MAX_REPORT:,}",
            hint=_FEWER,
        )
