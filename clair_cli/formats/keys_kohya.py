"""kohya's tensor names: `<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

The module is `lora_unet_...`, `lora_te_...`, `lora_te1_...` or `lora_te2_...`, its path with
underscores for dots (sd-scripts, networks/lora.py); other trainers keep the dotted path.
"""

from __future__ import annotations

import re

from clair_cli.formats.key_map import TensorPart
from clair_cli.formats.keys_peft import strip_wrappers

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
