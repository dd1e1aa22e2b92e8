"""diffusers' older tensor names, as its own converter reads them (utils/state_dict_utils.py).

`<attention>.processor.to_q_lora.down.weight` names the projection `to_q` of that attention;
`<module>.lora.down.weight` and `<module>.lora_linear_layer.down.weight` name the module. Newer
files have PEFT's names behind `unet.`, `text_encoder.` and the like.
"""

from __future__ import annotations

import re

from clair_cli.adapters.names.parts import TensorPart
from clair_cli.adapters.names.peft import strip_wrappers

_NAME = re.compile(
    r"(?P<module>.+?)(?P<link>_lora|\.lora_linear_layer|\.lora_linear|\.lora)"
    r"\.(?:(?P<side>down|up)\.weight|alpha)"
)
# Text encoders have other names for the four projections (DIFFUSERS_OLD_TO_PEFT).
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def diffusers_name(key: str) -> TensorPart | None:
    """One of the older names, or None.

    >>> diffusers_name("unet.mid.attn1.processor.to_out_lora.up.weight").module
    'unet.mid.attn1.to_out.0'
    """
    prefix, plain = strip_wrappers(key)
    match = _NAME.fullmatch(plain.replace(".processor.", "."))
    if match is None:
        return None
    module = match["module"]
    if match["link"] == "_lora":
        parent, _, last = module.rpartition(".")
        if "self_attn" in parent.split("."):
            last = _TEXT.get(last, last)
        elif last == "to_out":
            last = "to_out.0"
        module = f"{parent}.{last}" if parent else last
    if match["side"] is None:
        return TensorPart("diffusers", "alpha", module, prefix)
    return TensorPart("diffusers", "A" if match["side"] == "down" else "B", module, prefix)
