"""Clients whose init changed the base: their delta weights refer to it, and need `--initial`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.variants import changes_base, init_effect
from clair_cli.cohort.model import Cohort, rejection
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.remark import Remark
from clair_cli.text import quoted

_REMEDY = (
    "give the adapter that every client started from, as it was before training, with --initial; "
    "or let the clients save converted adapters (save_pretrained with "
    "path_initial_model_for_weight_conversion)"
)


def without_changed_base(cohort: Cohort, previous: Adapter | None) -> Cohort:
    """Reject the clients whose init changed the base weights; where these are most of all clients,
    those that don't say their init too.

    PiSSA, OLoRA and the like take a part out of the base and give it to the adapter: every client's
    delta weight is that part and a little training. On the original base, which a loader of the
    merge has, the part would count twice.

    Args:
        previous: the adapter of `--previous`, or None.

    Raises:
        UsageError: the previous adapter is one of those.
    """
    if previous is not None and (init := _base_changing(previous)):
        raise UsageError(
            f"--previous: its init_lora_weights {quoted(init)} {init_effect(init)}",
            hint="give it with --initial if it is what every client started from",
        )
    changed = list(filter(None, map(_base_changing, cohort.adapters)))
    most = 2 * len(changed) > len(cohort.adapters)
    kept, refused = [], []
    for adapter in cohort.adapters:
        init = _base_changing(adapter)
        if init:
            error = RejectedClient(
                f"init_lora_weights {quoted(init)} {init_effect(init)}, not to the original one",
                found=f"init_lora_weights {quoted(init)}",
                expected="an init that leaves the base as it is, or --initial",
                hint=_REMEDY,
            )
        elif most and not adapter.config.raw:
            error = RejectedClient(
                "its init_lora_weights is not known, and that of most clients "
                f"{init_effect(changed[0])}",
                found="no config",
                hint=_REMEDY,
            )
        else:
            kept.append(adapter)
            continue
        refused.append(rejection(error, adapter.name, adapter.path, adapter.sha256))
    return replace(cohort, adapters=tuple(kept), rejected=(*cohort.rejected, *refused))


def without_init_remarks(
    remarks: Sequence[Remark], adapters: Sequence[Adapter]
) -> tuple[Remark, ...]:
    """The remarks without those on an init that changed the base, where `--initial` undoes it."""
    if not any(map(_base_changing, adapters)):
        return tuple(remarks)
    return tuple(remark for remark in remarks if remark.code != "guarded_init")


def _base_changing(adapter: Adapter) -> str:
    """The adapter's init if it may have changed the base weights, else ""."""
    init = adapter.config.guarded_init
    return init if init and changes_base(init) else ""
