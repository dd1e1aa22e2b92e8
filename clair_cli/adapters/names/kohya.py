"""kohya's tensor names: `<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

The module is `lora_unet_...`, `lora_te_...`, `lora_te1_...` or `lora_te2_...`, its path with
underscores for dots (sd-scripts, networks/lora.py); other trainers keep the dotted path.

What kohya's trainers write into a file's header: `ss_network_*`, all of it text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from clair_cli.adapters.names.parts import TensorPart
from clair_cli.adapters.names.peft import strip_wrappers
from clair_cli.errors import RejectedClient
from clair_cli.formats.strict_json import parse_strict
from clair_cli.remark import Remark, note, warning
from clair_cli.text import quoted

_NAME = re.compile(r"(?P<module>.+)\.(?:lora_(?P<side>down|up)\.weight|alpha)")


def kohya_name(key: str) -> TensorPart | None:
    """One of kohya's names, or None.

    >>> kohya_name("lora_unet_down_blocks_0.alpha").part
    'alpha'
    """
    prefix, plain = strip_wrappers(key)
    match = _NAME.fullmatch(plain)
    if match is None:
        return None
    if match["side"] is None:
        return TensorPart("kohya", "alpha", match["module"], prefix)
    return TensorPart("kohya", "A" if match["side"] == "down" else "B", match["module"], prefix)


MODULE, DIM, ALPHA, ARGS = (f"ss_network_{name}" for name in ("module", "dim", "alpha", "args"))
MAX_ARGS_BYTES = 100_000

# LyCORIS' algorithms that are a plain product; every other one is refused by its name.
_PLAIN = frozenset(("lora", "locon", ""))
_REFUSED_ARGS = {
    "dora_wd": "DoRA",
    "use_tucker": "Tucker LoCon",
    "use_cp": "Tucker LoCon",
    "use_scalar": "LyCORIS with a trained scalar",
    "train_norm": "trained norms",
}


def check_header(
    metadata: Mapping[str, str], ranks: Iterable[int], *, without_alpha: bool
) -> tuple[Remark, ...]:
    """Remarks on a kohya file's header.

    Args:
        metadata: the header's, from a stranger.
        ranks: of the modules.
        without_alpha: whether some module has no alpha tensor.

    Raises:
        RejectedClient: it names an algorithm that is not a plain product.
    """
    args = _arguments(metadata)
    algorithm = str(args.get("algo", "")).lower()
    module = metadata.get(MODULE, "")
    name = algorithm if algorithm not in _PLAIN else ""
    name = next((n for n in ("loha", "lokr", "oft", "dylora") if n in module.lower()), name)
    if name:
        raise _refusal(f"LyCORIS algorithm {quoted(name, 40)}")
    for field, variant in _REFUSED_ARGS.items():
        if str(args.get(field, "")).lower() in ("true", "1"):
            raise _refusal(f"{variant} ({field})")
    notes = []
    dim, alpha = _number(metadata.get(DIM)), _number(metadata.get(ALPHA))
    known = set(ranks)
    if dim is not None and dim not in known:
        text = f"header's {DIM} {dim:g} is the rank of no module; the tensors count"
        notes.append(note("header_rank", text))
    if without_alpha:
        text = "no alpha tensor in some modules: alpha = rank there, as kohya's loaders take it"
        if alpha is not None and alpha not in known:
            text += f", although the header's {ALPHA} is {alpha:g}"
            notes.append(warning("alpha_contradicted", text))
        else:
            notes.append(note("alpha_missing", text))
    return tuple(notes)


def header_of(rank: int, alpha: float | None) -> dict[str, str]:
    """The header's metadata for a file to write: rank of all modules, at least 1, and alpha; None
    where they differ (sd-scripts, networks/resize_lora.py)."""
    dim, text = ("Dynamic", "Dynamic") if alpha is None else (str(rank), repr(alpha))
    return {MODULE: "networks.lora", DIM: dim, ALPHA: text}


def _arguments(metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        value = parse_strict(metadata.get(ARGS, "{}").encode(), f"header's {ARGS}", MAX_ARGS_BYTES)
    except ValueError as error:
        raise RejectedClient(str(error)) from None
    return value if isinstance(value, dict) else {}


def _number(text: str | None) -> float | None:
    """A number given as text; None for "Dynamic" and whatever else is none."""
    try:
        return float(json.loads(text or ""))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _refusal(variant: str) -> RejectedClient:
    return RejectedClient(
        f"header: {variant} is not supported",
        found=variant,
        expected="plain LoRA, alpha / dim * lora_up @ lora_down",
    )
