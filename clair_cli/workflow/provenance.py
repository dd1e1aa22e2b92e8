"""Where an adapter comes from, beside its numbers: in a merged file's header, and in a model card.

The header has only what is the same for the same contents, so that the file's bytes depend on no
name, order, path or clock. Names and the command stand in the card, outside the adapter's hash.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from clair_cli.option import ADAPTER, FLAG, LIMITS, NAMES, PATH, TRUSTED, WEIGHTS
from clair_cli.report.model import ClientReport, Report
from clair_cli.report.results import RefinedClient
from clair_cli.settings import OPTIONS
from clair_cli.text import printable

HEADER_KEY = "clair"
CARD = "README.md"
_LIBRARIES = {"mlx": "mlx", "diffusers": "diffusers", "kohya": "diffusers"}
_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&:@=$^\"'])")


def header_text(
    version: str, base_model: object, error: float | None, clients: Sequence[tuple[str, float]]
) -> str:
    """The value of `HEADER_KEY` in a header's metadata: one JSON object.

    Args:
        version: of clair.
        base_model: as the config names it, or None.
        error: relative error of cutting to the rank that is written, rounding left out; None for a
            zero adapter.
        clients: content (see `Adapter.content`) and weight of each that is merged, in any order.
    """
    merged = [{"content": content, "weight": weight} for content, weight in sorted(clients)]
    found = {
        "version": version,
        "base_model": base_model,
        "error": None if error is None else float(f"{error:.6g}"),
        "clients": merged,
    }
    return json.dumps(found, sort_keys=True, allow_nan=False, separators=(",", ":"))


def model_card(report: Report, base_model: object) -> str:
    """README.md of a folder with a merged adapter: YAML front matter, and Markdown.

    Every name and option is a stranger's word, and can end neither.

    Args:
        base_model: as the config names it, or None.
    """
    merged = report.merged
    assert merged is not None
    error = "" if merged.error is None else f", error {merged.error:.3g}"
    count = sum(client.weight > 0 for client in report.clients)
    lines = [
        *_front(merged.format, base_model),
        "# Merged LoRA adapter", "",
        f"The mean of {count} of {len(report.clients)} clients' adapters{_of_base(base_model)},"
        f" merged by clair {printable(report.version)}: rank {merged.rank}{error}."
        " `report.json` has the rest.", "",
        *_TABLE_HEAD, *map(_row, report.clients), "",
        "```sh", command_line(report), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def refined_card(
    report: Report, client: ClientReport, made: RefinedClient, base_model: object
) -> str:
    """README.md of a folder with one client's refined adapter, likewise.

    The folder goes back to the client: it says how many others there were, and has no other
    client's name, verdict or hash.

    Args:
        client, made: the report's entries of that client.
        base_model: as its config names it, or None.
    """
    refined = report.refined
    assert refined is not None
    others = len(refined.clients) - 1
    with_others = f"with what it shares with {others} other client{'s'[: others != 1]}"
    done = f"as it was sent, as refining it {with_others} is not sure to help"
    if not made.kept_local:
        changed = "" if made.changed is None else f"; that changed {made.changed:.3g} of its size"
        gain = "" if made.gain is None else f", and takes about {made.gain:.0%} off its error"
        done = f"refined {with_others}{changed}{gain}"
    lines = [
        *_front(refined.format, base_model),
        "# Refined LoRA adapter", "",
        f"The adapter of {_shown(client.name)}{_of_base(base_model)}, {done}. Written at rank"
        f" {made.rank} by clair {printable(report.version)}.", "",
        *_TABLE_HEAD, _row(client), "",
        "```sh", command_line(report, client_names=False), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


_TABLE_HEAD = ("| client | verdict | weight | SHA-256 |", "| --- | --- | --- | --- |")


def _front(format_: str, base_model: object) -> list[str]:
    """The front matter, for a hub: base model, library and tags."""
    base = f"base_model: {_yaml(base_model)}" if isinstance(base_model, str) and base_model else ""
    library = f"library_name: {_LIBRARIES.get(format_, 'peft')}"
    tags = ["tags:", "- lora", "- federated-learning", "- clair"]
    return ["---", *filter(None, [base]), library, *tags, "---", ""]


def _of_base(base_model: object) -> str:
    named = isinstance(base_model, str) and base_model
    return f" for {_shown(str(base_model))}" if named else ""


def _row(client: ClientReport) -> str:
    sha256 = "" if client.sha256 is None else f"`{client.sha256}`"
    return f"| {_shown(client.name)} | {client.verdict} | {client.weight:.4g} | {sha256} |"


def _shown(text: str) -> str:
    """A stranger's word in Markdown, on one line."""
    return _MARKS.sub(r"\\\1", printable(text)).replace(r"\<", "&lt;").replace(r"\&", "&amp;")


def _yaml(text: str) -> str:
    """A stranger's word as a double-quoted scalar of YAML."""
    return json.dumps(printable(text), ensure_ascii=True)


def command_line(report: Report, *, client_names: bool = True) -> str:
    """The command with the options that are not at their default, paths as words in capitals.

    Args:
        client_names: whether it says which clients its options name.
    """
    words = ["clair", report.command, "CLIENTS", "-o", "OUT"]
    for name, value in report.options.items():
        option = OPTIONS.get(name)
        if option is None or not option.on_command_line:
            continue
        default, _ = option.default_and_help(report.command)
        usual = None if default is None else option.kind.record(option.kind.parse(default))
        if name == "min_clients":  # the one default that depends on others
            trusts = bool(report.options.get("trust") or report.options.get("trust_adapter"))
            usual = 2 if trusts else 3
        if value is None or value == usual:
            continue
        flag = f"--{name.replace('_', '-')}"
        if option.kind is FLAG:
            words.append(flag)
            continue
        if option.kind in (NAMES, TRUSTED) and not client_names:
            value = ["NAME"]
        for one in _given(option.kind, value):
            words += [flag, shlex.quote(printable(one))]
    return " ".join(words)


def _given(kind: object, value: object) -> list[str]:
    if kind in (PATH, WEIGHTS, ADAPTER):
        return [getattr(kind, "metavar", "PATH")]
    if kind is LIMITS and isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
