"""`--earlier`: what earlier rounds saw of each client, beside what this one sees."""

from __future__ import annotations

from clair_cli.cohort.round import Round
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.rounds import Seen
from clair_cli.maths.judge.with_earlier import with_earlier
from clair_cli.remark import Remark
from clair_cli.report.earlier import Chain, EarlierRound
from clair_cli.settings import Settings


def chain_of(settings: Settings, round_: Round) -> Chain:
    """The rounds before this one; none without `--earlier`."""
    if settings.seen is None:
        return Chain(())
    previous = None if round_.previous is None else round_.previous.sha256
    found: Chain = settings.seen(previous)
    return found


def add_earlier(
    judgement: Judgement, round_: Round, settings: Settings
) -> tuple[Judgement, tuple[Remark, ...]]:
    """The judgement with what earlier rounds saw of the clients, who are told by their names; and
    remarks on the reports. Rounds count in which agreement was found where it is now."""
    chain = chain_of(settings, round_)
    alike = [r for r in chain.rounds if r.stacking == (judgement.structure.stacking or "matrix")]
    seen = {k: _seen(name, alike) for k, name in enumerate(round_.names)}
    return with_earlier(judgement, {k: each for k, each in seen.items() if each}), chain.remarks


def _seen(name: str, rounds: list[EarlierRound]) -> list[Seen]:
    sights = [one.clients[name] for one in rounds if name in one.clients]
    return [Seen(sight.loading, sight.loading_se, sight.verdict) for sight in sights]


def hashes_of_earlier(settings: Settings, round_: Round) -> dict[str, str]:
    """SHA-256 of the reports that count, the last round's first, by name for `Report.inputs`."""
    rounds = enumerate(chain_of(settings, round_).rounds, 1)
    return {f"earlier_{n}": one.sha256 for n, one in rounds if one.sha256}
