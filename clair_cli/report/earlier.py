"""Reports of earlier rounds in a folder: those that lead to this round, and what they saw of each
client. The others are refused by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import UsageError
from clair_cli.formats.filenames import CONFIG
from clair_cli.remark import Remark, at_most, note, warning
from clair_cli.report.file import damaged, read_document, shown_report
from clair_cli.report.load import report_from
from clair_cli.report.model import ClientReport, Report
from clair_cli.store.address import Place, RemotePath
from clair_cli.text import from_bytes, quoted
from clair_cli.version import __version__

# Earlier rounds that count: ten rounds are worth 2.5 independent ones (maths/judge/rounds.py), and
# any number is worth less than three.
EARLIER_ROUNDS = 9
_MAX_REPORTS = 200
_JUDGED = ("benign", "suspicious", "minority", "contaminated")


@dataclass(frozen=True)
class Sight:
    """What one round showed of one client: fields of its report."""

    loading: float
    loading_se: float
    verdict: str


@dataclass(frozen=True)
class EarlierRound:
    """One earlier round.

    Attributes:
        shown: what sentences call it.
        sha256: of its report's bytes; "" of one that never was a file.
        previous: hash of the adapter that its clients started from; None for a first round.
        merged: hash of the adapter that it made.
        stacking: where the clients' agreement was found.
        clients: by name, what was seen of those who can be counted: none in a first round, where
            the direction that all training takes hides what clients have in common besides, and
            none in a round without a verdict.
    """

    shown: str
    sha256: str
    previous: str | None
    merged: str | None
    stacking: str | None
    clients: Mapping[str, Sight]


@dataclass(frozen=True)
class Chain:
    """The rounds before this one, the last one first, and what to say of them."""

    rounds: tuple[EarlierRound, ...]
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class EarlierReports:
    """The reports of a folder.

    Attributes:
        rounds: of merges, by path.
        lost: of what merged nothing, with the reason, by path.
        refused: remarks on what is no report that can be read.
    """

    rounds: tuple[EarlierRound, ...]
    lost: tuple[tuple[EarlierRound, str], ...]
    refused: tuple[Remark, ...]

    def chain(self, previous: str | None) -> Chain:
        """The rounds that lead to the adapter with this hash: the last one made it, and what its
        clients started from was made by the one before. Reports of this round, and of later ones,
        are none of its business."""
        by_merged: dict[str | None, EarlierRound] = {}
        for one in self.rounds:
            by_merged.setdefault(one.merged, one)
        rounds: list[EarlierRound] = []
        wanted = previous
        while wanted is not None and (found := by_merged.pop(wanted, None)) is not None:
            rounds.append(found)
            wanted = found.previous
        later = self._later(previous, rounds)
        remarks = [*self.refused, *self._not_counted(rounds, later)]
        remarks = at_most(remarks, "remarks on earlier reports")
        used = tuple(rounds[:EARLIER_ROUNDS])
        return Chain(used, (*remarks, *_counted(used)))

    def _later(self, previous: str | None, chain: Sequence[EarlierRound]) -> set[str]:
        """Names of the reports of this round and of later ones."""
        starts, found = {previous}, set[str]()
        each = [one for one in (*self.rounds, *(lost for lost, _ in self.lost)) if one not in chain]
        while more := [o for o in each if o.previous in starts and o.shown not in found]:
            found |= {one.shown for one in more}
            starts |= {one.merged for one in more} - {None}
        return found

    def _not_counted(self, chain: Sequence[EarlierRound], later: set[str]) -> list[Remark]:
        """A remark on each report that is not in the chain."""
        made = {one.merged: one.shown for one in chain}
        remarks = []
        for one in self.rounds:
            if one in chain or one.shown in later:
                continue
            why = "no later round here started from what it merged"
            if one.merged in made:
                why = f"it merged the same adapter as {made[one.merged]}"
            remarks.append(warning("earlier_refused", f"{one.shown} is not counted: {why}"))
        for one, why in self.lost:
            if one.shown not in later:
                remarks.append(note("earlier_lost", f"{one.shown} is not counted: {why}"))
        return remarks


def _counted(used: Sequence[EarlierRound]) -> list[Remark]:
    """Remarks on the reports that are in the chain."""
    if not used:
        text = "no report of --earlier is of the merge that made the --previous adapter"
        return [warning("earlier_none", f"{text}: nothing of earlier rounds counts")]
    found, first = [], used[-1]
    if first.previous is None:
        text = f"{first.shown} is of a first round, which shows too little of a client to count"
        found.append(note("earlier_first", text))
        used = used[:-1]
    if used:
        names = ", ".join(one.shown for one in used)
        rounds = "1 earlier round" if len(used) == 1 else f"{len(used)} earlier rounds"
        found.append(note("earlier_counted", f"what {rounds} saw of each client counts: {names}"))
    return found


def read_earlier(folder: Place, clients: object = None) -> EarlierReports:
    """Read the reports in a folder: its JSON files, and `report.json` in its folders.

    Args:
        clients: the folder of this round's clients, if it is one.

    Raises:
        UsageError: it is in object storage, is no folder, can't be read, has more files than
            anybody keeps reports, or has any that lie among the clients'.
    """
    if isinstance(folder, RemotePath):
        raise UsageError(
            f"--earlier {quoted(str(folder))} is in object storage",
            hint="copy the reports to a folder on this machine",
        )
    rounds, lost, refused = list[EarlierRound](), list[tuple[EarlierRound, str]](), list[Remark]()
    paths = _files(folder)
    if isinstance(clients, Path):
        _check_not_theirs(paths, clients)
    for path in paths:
        shown = f"report {quoted(path.relative_to(folder).as_posix())}"
        try:
            raw, data = read_document(path, __version__)
            try:
                report = report_from(data)
                one = round_of(report, shown, hashlib.sha256(raw).hexdigest())
            except (TypeError, ValueError) as error:
                raise damaged(path, error) from None
        except UsageError as error:
            why = error.message.removeprefix(f"{shown_report(path)} ")
            refused.append(warning("earlier_refused", f"{shown} is not counted: it {why}"))
            continue
        if one.merged is not None:
            rounds.append(one)
        elif report.command == "merge":
            lost.append((one, "it merged nothing"))
        else:
            lost.append((one, f"it is of clair {report.command}, which merges nothing"))
    return EarlierReports(tuple(rounds), tuple(lost), tuple(refused))


def _files(folder: Path) -> list[Path]:
    """Paths of what may be reports, in order."""
    shown = quoted(folder.as_posix())
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"earlier {shown} {what}", hint="give the folder of the earlier reports")
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UsageError(f"earlier {shown} can't be read: {error.strerror}") from None
    paths = [folder / name for name in names if name.endswith(".json") and name != CONFIG]
    inside = (folder / name / "report.json" for name in names)
    paths += [path for path in inside if os.path.isfile(path)]
    if len(paths) > _MAX_REPORTS:
        raise UsageError(
            f"earlier {shown} has {len(paths):,} JSON files, expected {_MAX_REPORTS} at most",
            hint="give a folder with the reports of this federation's last rounds",
        )
    return paths


def _check_not_theirs(paths: Sequence[Path], clients: Path) -> None:
    """Refuse reports that a client may have written."""
    folder = Path(os.path.realpath(clients))
    for path in paths:
        if folder in Path(os.path.realpath(path)).parents:
            raise UsageError(
                f"earlier report {quoted(path.as_posix())} lies in CLIENTS, which strangers write "
                "to",
                hint="keep the reports outside of that folder",
            )


def round_of(report: Report, shown: str, sha256: str = "") -> EarlierRound:
    """What a report says to later rounds.

    Raises:
        ValueError: two of its clients have one name.
    """
    merged = None if report.merged is None else report.merged.sha256
    previous, cohort = report.inputs.get("previous"), report.cohort
    names = [_name(client) for client in report.clients]
    if len(set(names)) < len(names):
        raise ValueError("two clients have one name")
    clients = {}
    if previous is not None and cohort.outcome == "judged":
        for name, client in zip(names, report.clients, strict=True):
            if (sight := _sight(client)) is not None:
                clients[name] = sight
    return EarlierRound(shown, sha256, previous, merged, cohort.stacking, clients)


def _name(client: ClientReport) -> str:
    return from_bytes(client.name_bytes) if client.name_bytes else client.name


def _sight(client: ClientReport) -> Sight | None:
    verdict, scores = client.judged or client.verdict, client.scores
    if verdict not in _JUDGED or scores.loading is None or scores.loading_se is None:
        return None
    return Sight(scores.loading, scores.loading_se, verdict)
