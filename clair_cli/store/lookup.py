"""A place with what is there. What asks a store is imported with the first address only."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from clair_cli.errors import UsageError
from clair_cli.store.address import Place, RemotePath
from clair_cli.text import quoted

AnyPlace = TypeVar("AnyPlace", bound=Place)


def looked_up(place: AnyPlace) -> AnyPlace:
    """The place with what is there; a path as it is.

    Raises:
        UsageError: the store can't be asked, or the library is missing.
        InputRefused: too many objects, or a key that no path may have; see `tree_below`.
    """
    if not isinstance(place, RemotePath) or place.tree is not None:
        return place
    from clair_cli.store.listing import tree_of
    from clair_cli.store.objects import interruptible

    try:
        return replace(place, tree=interruptible(tree_of, place))
    except OSError as error:
        shown = quoted(str(place))
        raise UsageError(f"{shown} can't be read: {error.strerror}") from None
