"""`init_lora_weights`: the inits that only clients of the same one may be merged under.

Most of them moved the base weights, so that an update refers to the moved base and not to the
published one (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA); EVA leaves the base and starts from the
client's own data. An unknown name is taken for one of them.
"""

from __future__ import annotations

# The factors start elsewhere, but the base model stays as it was.
_HARMLESS = frozenset(("gaussian", "orthogonal", "mica"))
_FROM_DATA = frozenset(("eva",))


def guarded_init(init: object) -> str:
    """The init in lower case if all clients must share it, else "".

    >>> guarded_init("PiSSA"), guarded_init("gaussian"), guarded_init(True)
    ('pissa', '', '')
    """
    return init.lower() if isinstance(init, str) and init.lower() not in _HARMLESS else ""


def init_effect(init: str) -> str:
    """What such an init does, to go on "init_lora_weights 'pissa' "."""
    if init in _FROM_DATA:
        return "starts the factors from the client's own data"
    return "changes the base weights: the update refers to the changed base"
