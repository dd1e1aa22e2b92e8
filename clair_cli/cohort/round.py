"""A round: the comparable clients, their weights, the previous adapter. No factor is read yet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.output_format import OutputFormat
from clair_cli.cohort.beside import load_given, weights_given
from clair_cli.cohort.changed_base import without_changed_base, without_init_remarks
from clair_cli.cohort.choose import Choice, choose_comparable, one_name_each, started_from
from clair_cli.cohort.heads import choose_heads
from clair_cli.cohort.hints import notes_on_clients, way_out
from clair_cli.cohort.majority import majority_modules
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.cohort.trust import (
    check_hashes,
    fitting,
    lost_trusted,
    trusted_clients,
)
from clair_cli.errors import InputRefused, RejectedClient, UsageError
from clair_cli.remark import Remark, note
from clair_cli.settings import Settings
from clair_cli.store.address import place_of
from clair_cli.text import first_few, quoted

RESERVED = "report.json"  # no client may be called so: its folder would stand next to the report


class ClientLost(Exception):
    """A client's tensors changed, or can't be read, in the middle of a pass.

    Attributes:
        adapter: the client's, or the previous one.
        error: why.
    """

    def __init__(self, adapter: Adapter, error: RejectedClient) -> None:
        super().__init__(error.message)
        self.adapter = adapter
        self.error = error


@contextlib.contextmanager
def losing(adapter: Adapter) -> Iterator[None]:
    """Raise `ClientLost` where reading the adapter inside raises `RejectedClient`."""
    try:
        yield
    except RejectedClient as error:
        raise ClientLost(adapter, error) from error


class ClientsUnfit(Exception):
    """Some clients can't be merged, as the first pass shows: the round restarts without them."""

    def __init__(self, rejections: Sequence[Rejection]) -> None:
        super().__init__(*(r.message for r in rejections))
        self.rejections = tuple(rejections)


@dataclass(frozen=True)
class Round:
    """One round's comparable clients, in order of content (tensors and scales, then weight in the
    mean, then config, then name).

    The order makes every sum independent of names and of the folder's order.

    Attributes:
        adapters: comparable clients.
        rejected: the other clients, sorted by name.
        module_shapes: (out, in) of every module, sorted by name.
        weights: one positive number per adapter, or None for equal ones.
        previous: the adapter that all clients started from, which is subtracted from each, or None.
        output: how adapters are written, or None when none will be.
        refusal: why no judgement is possible at all, or None.
        warnings: remarks for the report.
        trusted: names of the trusted clients.
        trust_adapter: the user's own adapter, which is compared and not merged, or None.
        modules: which of the modules are merged, in the words of `--modules`.
        initial: whether `previous` is the adapter of `--initial`: the merge is not on top of it.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    module_shapes: Mapping[str, tuple[int, int]]
    weights: tuple[float, ...] | None
    previous: Adapter | None
    output: OutputFormat | None
    refusal: InputRefused | None
    warnings: tuple[Remark, ...]
    modules: str = "common"
    trusted: frozenset[str] = frozenset()
    trust_adapter: Adapter | None = None
    initial: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.adapters)

    @cached_property
    def compared(self) -> Round:
        """The round with the user's own adapter as one more client, the last."""
        if self.trust_adapter is None:
            return self
        adapters = (*self.adapters, self.trust_adapter)
        return replace(self, adapters=adapters, weights=None, trust_adapter=None)

    @property
    def trusted_indices(self) -> tuple[int, ...]:
        """Indices in `compared` of the trusted clients and of the user's own adapter."""
        found = [k for k, name in enumerate(self.names) if name in self.trusted]
        return (*found, *range(len(self.adapters), len(self.compared.adapters)))

    @property
    def given_beside(self) -> dict[str, Adapter | None]:
        """The user's adapters beside the clients, by option of the command line."""
        return {started_from(self.initial): self.previous, "--trust-adapter": self.trust_adapter}

    @property
    def usual_shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the modules that more than half of the clients have, and of the previous
        adapter's: a lower bound of the result, whichever clients are left out."""
        usual = majority_modules(self.adapters)
        if self.previous is not None and not self.initial:
            usual |= self.previous.modules.keys()
        return tuple(shape for name, shape in self.module_shapes.items() if name in usual)

    @cached_property
    def module_ranks(self) -> Mapping[str, tuple[int, ...]]:
        """Rank-one components of every client's delta weight, by module: those of its factors and
        of the previous adapter, which is subtracted; 0 where the client lacks the module."""
        each = {}
        for m in self.module_shapes:
            more = self.previous_rank(m)
            each[m] = tuple(
                a.modules[m].components + more if m in a.modules else 0 for a in self.adapters
            )
        return each

    def previous_rank(self, module: str) -> int:
        """Rank-one components of the previous adapter in one module, at least 0."""
        before = {} if self.previous is None else self.previous.modules
        return before[module].components if module in before else 0


def load_round(
    settings: Settings, cohort: Cohort | InputRefused, dropped: Sequence[Rejection] = ()
) -> Round:
    """Find the clients that can be compared.

    Args:
        cohort: from `read_cohort`.
        dropped: clients that a pass found to have changed or to be unfit; they are left out.

    Raises:
        UsageError: a wrong path or option value.
    """
    if isinstance(cohort, InputRefused):
        return Round((), (), {}, None, None, None, cohort, ())
    if settings.command == "refine":
        cohort = _foldable(cohort, in_memory=settings.in_memory)
    gone = {r.name for r in dropped}
    cohort = replace(
        cohort,
        adapters=tuple(a for a in cohort.adapters if a.name not in gone),
        rejected=tuple(r for r in cohort.rejected if r.name not in gone) + tuple(dropped),
    )
    weights = weights_given(settings, cohort)
    trusted = _trusted(settings, cohort)
    initial = settings.initial is not None
    previous, trust_adapter = (
        load_given(settings, "initial" if initial else "previous"),
        load_given(settings, "trust_adapter"),
    )
    if not initial:
        cohort = without_changed_base(cohort, previous)
    beside = {started_from(initial): previous, "--trust-adapter": trust_adapter}
    cohort, (previous, trust_adapter), renamed = one_name_each(cohort, beside)
    adapters = cohort.adapters
    warnings = [*cohort.notes, *_ignored(cohort, settings), *renamed]
    warnings += notes_on_clients(adapters)
    try:
        cohort, remarks = choose_heads(cohort, settings.heads)
        warnings += remarks
        chosen = choose_comparable(settings, cohort, previous)
        refusal = None
        if trust_adapter is not None:
            trust_adapter = fitting(
                trust_adapter, chosen.adapters, chosen.layouts, same_base=settings.same_base
            )
    except InputRefused as error:
        if not error.hint and cohort.rejected:
            error.hint = way_out(cohort.rejected)
        chosen, refusal = Choice(adapters, (), {}, None, ()), error
    rejected = [*cohort.rejected, *chosen.rejected]
    warnings += chosen.notes
    if initial:
        warnings = [*without_init_remarks(warnings, adapters)]
    adapters = tuple(sorted(chosen.adapters, key=lambda a: _content(a, weights)))
    refusal = refusal or lost_trusted(trusted, rejected)
    refusal = refusal or _too_few(settings, len(adapters), rejected)
    return Round(
        adapters,
        tuple(sorted(rejected, key=lambda r: r.name)),
        {name: layout.matrix for name, layout in chosen.layouts.items()},
        None if weights is None else tuple(weights[a.name] for a in adapters),
        previous,
        chosen.output,
        refusal,
        tuple(warnings),
        settings.modules,
        frozenset(trusted),
        trust_adapter,
        initial,
    )


def _trusted(settings: Settings, cohort: Cohort) -> dict[str, str | None]:
    """The trusted clients, whose files are those that they are bound to."""
    names = [a.name for a in cohort.adapters] + [r.name for r in cohort.rejected]
    found = trusted_clients(settings.trusted, names, {*settings.exclude, *cohort.excluded})
    check_hashes(found, cohort)
    return found


def _foldable(cohort: Cohort, *, in_memory: bool) -> Cohort:
    """Reject clients whose name can't be that of a folder next to the report, as refinement writes.

    Raises:
        UsageError: such a name of a client in memory, which is the caller's mistake.
    """
    kept, refused = [], []
    for adapter in cohort.adapters:
        name = adapter.name
        bad = not name or name in (".", "..") or set(name) & set("/\\\0")
        if bad and in_memory:
            raise UsageError(f"client name {quoted(name)} can't be the name of a folder")
        if bad or name.casefold() == RESERVED:
            why = "in a folder of that name" if bad else "called what the report is called"
            error = RejectedClient(f"its refined adapter can't be {why}")
            refused.append(rejection(error, name, adapter.path, adapter.sha256))
        else:
            kept.append(adapter)
    return replace(cohort, adapters=tuple(kept), rejected=(*cohort.rejected, *refused))


def _ignored(cohort: Cohort, settings: Settings) -> list[Remark]:
    """A note on entries of the folder that were not read as clients, and have no other note."""
    noted = set(cohort.noted)
    ignored = [entry for entry in cohort.ignored if entry not in noted]
    if not ignored:
        return []
    entries = "entry" if len(ignored) == 1 else "entries"
    text = (
        f"{len(ignored):,} other {entries} of "
        f"{quoted(place_of(settings.clients).as_posix())} ignored: {first_few(ignored)}"
    )
    return [note("entries_ignored", text)]


def _content(adapter: Adapter, weights: Mapping[str, float] | None) -> tuple[str, float, str, str]:
    """The key that clients are sorted by. Copies may differ in weight or config, so these precede
    the name."""
    config = json.dumps(adapter.config.raw, sort_keys=True, default=str)
    return adapter.content(), (weights or {}).get(adapter.name, 1.0), config, adapter.name


def _too_few(settings: Settings, usable: int, rejected: Sequence[Rejection]) -> InputRefused | None:
    count = len(rejected)
    if settings.strict and rejected:
        return InputRefused(
            f"{count} client{'' if count == 1 else 's'} rejected, and --strict allows none",
            hint=f"{way_out(rejected)}, or run without --strict",
        )
    compared = usable + (settings.trust_adapter is not None)
    least = 2 if settings.trust or settings.trust_adapter is not None else 3
    # so few that nobody can judge them: that is told, not refused, unless more were asked for
    small = usable < least and not rejected and settings.min_clients <= least
    if (usable and compared >= settings.min_clients) or (small and usable):
        return None
    remedy = way_out(rejected) if rejected else "collect more clients"
    return InputRefused(
        f"{usable} usable client{'' if usable == 1 else 's'} ({count} rejected), "
        f"{settings.min_clients} needed",
        hint=f"{remedy}, or lower --min-clients" if usable else remedy,
    )


def rejection_of(error: RejectedClient, adapter: Adapter) -> Rejection:
    """The rejection of a client whose tensors changed, or can't be read, in a pass."""
    if "changed while reading" not in error.message:  # vanished, say: it was there before
        error.message = f"changed while reading: {error.message}"
    return rejection(error, adapter.name, adapter.path, adapter.sha256)
