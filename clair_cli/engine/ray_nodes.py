"""Whether the machines of a Ray cluster can do the work: each has the same clair, and sees the
clients' files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clair_cli.errors import UsageError
from clair_cli.settings import Settings
from clair_cli.store.address import RemotePath
from clair_cli.text import quoted

# Libraries whose versions decide the last bits of results, beside clair's own.
_SAME = ("clair-cli", "torch", "numpy")
# Seconds in which a machine has to answer: its first process imports clair.
_PATIENCE = 120.0


@dataclass(frozen=True)
class Facts:
    """What one machine says of itself.

    Attributes:
        versions: of the libraries, in the order they were asked for; "" for one that is missing.
        missing: the paths that are not there, as this machine sees them.
        refused: addresses that this machine can't ask, and why.
    """

    versions: tuple[str, ...]
    missing: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def look_around(names: tuple[str, ...], places: tuple[str | RemotePath, ...]) -> Facts:
    """The facts about the machine that this is called on."""
    paths = [place for place in places if isinstance(place, str)]
    missing = tuple(path for path in paths if not os.path.exists(path))
    addresses = [place for place in places if isinstance(place, RemotePath)]
    refused = tuple((str(place), why) for place in addresses if (why := _refusal(place)))
    return Facts(tuple(_version(name) for name in names), missing, refused)


def _refusal(place: RemotePath) -> str:
    """Why this machine can't ask for an object, with what its own environment says; "" if it
    can."""
    from clair_cli.store.objects import ObjectStore

    try:
        ObjectStore(place).head(place.parts)
    except UsageError as error:
        return f"{error} ({error.hint})"
    except OSError as error:
        return str(error.strerror)
    return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def check_nodes(settings: Settings) -> None:
    """Ask every machine of the connected cluster that has a CPU for work.

    Raises:
        UsageError: there is none; or one does not answer, has other versions than this machine, or
            does not see the clients' folder or an adapter that was given, on its disks or in a
            store: every client read there would be rejected.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    given = (settings.clients, settings.previous, settings.initial, settings.trust_adapter)
    places: list[str | RemotePath] = [
        os.path.abspath(place) if isinstance(place, Path) else replace(place, tree=None)
        for place in given
        if isinstance(place, (Path, RemotePath))
    ]
    if isinstance(settings.clients, Path) and not settings.clients.is_absolute():
        places.append(os.getcwd())  # messages name files as they were given
    task = ray.remote(look_around)
    asked: dict[str, Any] = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            how = task.options(scheduling_strategy=there, num_cpus=0, max_retries=0)
            asked[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = how.remote(
                _SAME, tuple(places)
            )
    if not asked:
        raise UsageError("--engine ray: no machine of the cluster has a CPU for work")
    own = look_around(_SAME, ()).versions
    answered = 0
    for name, answer in asked.items():
        try:
            facts = ray.get(answer, timeout=_PATIENCE)
        except (ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UsageError(
                f"--engine ray: machine {name} can't run clair: {text}",
                hint="install the same clair-cli on every machine: docs/cluster.md",
            ) from None
        except ray.exceptions.RayError:  # it is gone: its work is another one's
            continue
        _check(name, facts, own)
        answered += 1
    if not answered:
        raise UsageError("--engine ray: no machine of the cluster answers")


def _check(name: str, facts: Facts, own: tuple[str, ...]) -> None:
    for library, theirs, ours in zip(_SAME, facts.versions, own, strict=True):
        if theirs != ours:
            raise UsageError(
                f"--engine ray: machine {name} has {library} {theirs or 'not at all'}, this one "
                f"has {ours}",
                hint="install the same versions on every machine: docs/cluster.md",
            )
    if facts.refused:
        address, why = facts.refused[0]
        raise UsageError(
            f"--engine ray: machine {name} can't read {quoted(address)}: {why}",
            hint="each machine reads with its own credentials, set where Ray was started there",
        )
    if facts.missing:
        raise UsageError(
            f"--engine ray: machine {name} does not see {quoted(facts.missing[0])}",
            hint="put it on storage that all machines have under the same path",
        )
