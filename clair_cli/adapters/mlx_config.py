"""mlx-lm's `adapter_config.json`, in which `lora_parameters` say rank and scale.

Source: ml-explore/mlx-lm, mlx_lm/lora.py (`save_config(vars(args), ...)` writes all of a run's
options) and `load_adapters` of mlx_lm/tuner/utils.py, which reads `fine_tune_type`, `num_layers`
and, of `lora_parameters`, `rank`, `scale`, `dropout` and `keys`. `scale` is the factor before the
product of the two factors, whatever the rank; there is no alpha. (Until June 2024 there was, and
the factor was `scale * alpha / rank`; `alpha` stayed in the default options until April 2025 and
meant nothing. Today's mlx-lm does not look at it, so neither does clair.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clair_cli.adapters.names.mlx import layer_key
from clair_cli.errors import RejectedClient
from clair_cli.remark import Remark, note
from clair_cli.text import quoted

_MOST = 1e300  # times a rank it is finite


def is_mlx_config(raw: Mapping[str, Any]) -> bool:
    """Whether a config is mlx-lm's."""
    return "peft_type" not in raw and ("lora_parameters" in raw or "fine_tune_type" in raw)


def peft_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same adapter in the fields of PEFT's config; what a training run had besides is left.

    Raises:
        RejectedClient: not a plain LoRA, or no scale in it.
    """
    kind = raw.get("fine_tune_type", "lora")
    if kind != "lora":
        variant = {"dora": "DoRA", "full": "a fully trained model"}.get(str(kind), quoted(kind, 60))
        raise RejectedClient(
            f"adapter config: not supported: {variant} (fine_tune_type is {quoted(kind, 60)})",
            found=variant,
            expected="fine_tune_type 'lora'",
        )
    given = raw.get("lora_parameters")
    if not isinstance(given, Mapping):
        raise _wrong("lora_parameters", given, "an object with rank and scale")
    rank, scale, dropout = (given.get(name) for name in ("rank", "scale", "dropout"))
    if type(rank) is not int or rank < 1:
        raise _wrong("lora_parameters' rank", rank, "an integer of at least 1")
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not abs(scale) < _MOST:
        raise _wrong("lora_parameters' scale", scale, "a finite number")
    fields: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank}
    fields["use_dora"] = raw.get("use_dora")  # until September 2024, in place of fine_tune_type
    if isinstance(dropout, (int, float)):
        fields["lora_dropout"] = dropout
    if isinstance(raw.get("model"), str):
        fields["base_model_name_or_path"] = raw["model"]
    return fields


def mlx_notes(raw: Mapping[str, Any]) -> tuple[Remark, ...]:
    """A note where a config of mlx-lm has an alpha, which once meant something."""
    given = raw.get("lora_parameters")
    if not isinstance(given, Mapping) or given.get("alpha") in (None, given.get("rank")):
        return ()
    text = "lora_parameters' alpha is not looked at: scale counts, as mlx-lm has it since June 2024"
    return (note("mlx_alpha", text),)


def mlx_config(
    config: Mapping[str, Any], paths: Iterable[str], scaling: float
) -> dict[str, object]:
    """mlx-lm's config of an adapter to write.

    All layers are given LoRA (`num_layers` -1), and then those of them that the adapter has are
    loaded: the others' factor `lora_b` stays zero.

    Args:
        config: PEFT's fields.
        paths: of the modules in the file.
        scaling: the factor before the product.
    """
    return {
        "fine_tune_type": "lora",
        "model": config["base_model_name_or_path"],
        "num_layers": -1,
        "lora_parameters": {
            "rank": config["r"],
            "scale": scaling,
            "dropout": config["lora_dropout"],
            "keys": sorted({layer_key(path) for path in paths}),
        },
    }


def _wrong(name: str, value: Any, expected: str) -> RejectedClient:
    shown = quoted(value, 60)
    return RejectedClient(
        f"adapter config: {name} is {shown}, expected {expected}", found=shown, expected=expected
    )
