"""`adapter_config.json`: its fields checked, and the rank and scale that they give each module."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from clair_cli.adapters import patterns
from clair_cli.adapters.mlx_config import is_mlx_config, mlx_notes, peft_fields
from clair_cli.adapters.variants import guarded_init, init_effect, refuse_variants
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.remark import Remark, warning
from clair_cli.text import first_few, quoted


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA config that describes plain `scaling * B @ A` and nothing else.

    Attributes:
        r: the rank where `rank_pattern` says nothing, at least 1; None if unknown (assumed
            config): then whatever the tensors have.
        lora_alpha: finite; None (assumed config only): equal to each module's rank.
        rank_pattern: module pattern to rank, in the file's order.
        alpha_pattern: module pattern to alpha, in the file's order.
        target_modules: sorted names, a regular expression as written, or None.
        target_parameters: PEFT's parameters with a LoRA of their own, sorted; see `experts`.
        init_lora_weights: as written: a bool, a name, or None.
        raw: the whole object as read; {} for an assumed config.
        parts: configs of a pipeline's parts by the name that begins their modules ("unet"), in
            a file that holds several; each looks its modules up without that name.
        remarks: on what was read, for the report.
    """

    r: int | None
    lora_alpha: float | None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    target_modules: tuple[str, ...] | str | None = None
    target_parameters: tuple[str, ...] = ()
    init_lora_weights: bool | str | None = True
    raw: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, AdapterConfig] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()

    def rank_for(self, module: str) -> int | None:
        """The rank the config gives `module`, at least 1; None if it does not say."""
        if self.parts:
            part, rest = self._part(module)
            return part.rank_for(rest)
        key = self._rank_keys.first(module)
        return self.r if key is None else self.rank_pattern[key]

    def alpha_for(self, module: str, rank: int) -> float:
        """The alpha in force for `module` of rank `rank` (at least 1); finite."""
        if self.parts:
            part, rest = self._part(module)
            return part.alpha_for(rest, rank)
        key = self._alpha_keys.first(module)
        if key is not None:
            return self.alpha_pattern[key]
        return float(rank) if self.lora_alpha is None else self.lora_alpha

    def scaling(self, module: str, rank: int) -> float:
        """The factor before `B @ A`: alpha / rank, or alpha / sqrt(rank) with rsLoRA.

        Args:
            module: its path, without the prefix.
            rank: at least 1.
        """
        if self.parts:
            part, rest = self._part(module)
            return part.scaling(rest, rank)
        alpha = self.alpha_for(module, rank)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def check_patterns(self, modules: Iterable[str]) -> None:
        """Refuse patterns that take too long on these modules; raises RejectedClient."""
        names = list(modules)
        lookups = [(self._rank_keys, names), (self._alpha_keys, names)]
        by_part: dict[str, list[str]] = defaultdict(list)
        for part, _, rest in (name.partition(".") for name in names):
            by_part[part].append(rest)
        for part, config in self.parts.items():
            lookups += [(keys, by_part[part]) for keys in (config._rank_keys, config._alpha_keys)]
        patterns.check_work(lookups)

    @cached_property
    def _rank_keys(self) -> patterns.Lookup:
        return patterns.Lookup(self.rank_pattern)

    @cached_property
    def _alpha_keys(self) -> patterns.Lookup:
        return patterns.Lookup(self.alpha_pattern)

    def _part(self, module: str) -> tuple[AdapterConfig, str]:
        """The config of the part that `module` is in, and its path there."""
        name, _, rest = module.partition(".")
        if name not in self.parts:
            known = first_few(self.parts)
            raise RejectedClient(
                f"the header's config has parts {known}, and none for this module",
                found=f"parts {known}",
                expected=f"a part {quoted(name, 60)}",
            )
        return self.parts[name], rest

    @property
    def guarded_init(self) -> str:
        """The init if all clients must share it ("pissa", "eva"...), else ""."""
        parts = [part.guarded_init for part in self.parts.values()]
        return max([guarded_init(self.init_lora_weights), *parts])

    @property
    def notes(self) -> tuple[Remark, ...]:
        """Remarks worth a line in the report."""
        found = [*self.remarks]
        if self.lora_alpha == 0:
            found.append(warning("zero_alpha", "lora_alpha is 0: the update is zero"))
        init = self.guarded_init
        if init:
            text = f"init_lora_weights {quoted(init)} {init_effect(init)}"
            found.append(warning("guarded_init", text))
        return tuple(found)


def parse_config(raw: Mapping[str, Any]) -> AdapterConfig:
    """Check a config as `json.loads` or `LoraConfig.to_dict` gives it.

    Args:
        raw: field to value; strings, numbers, lists and objects only. PEFT's fields or mlx-lm's.

    Raises:
        RejectedClient: not LoRA, a variant that is not plain B @ A, a field of the wrong type
            or range, or an unknown field with a value. Names the field.
    """
    if not isinstance(raw, Mapping):
        raise RejectedClient("adapter config is not a JSON object")
    remarks: tuple[Remark, ...] = ()
    if is_mlx_config(raw):
        raw, remarks = peft_fields(raw), mlx_notes(raw)
    else:
        _check_is_pefts(raw)
    refuse_variants(raw)
    for name in ("r", "lora_alpha"):
        if raw.get(name) is None:
            raise RejectedClient(
                f"adapter config has no {name!r}", hint="add the value the client trained with"
            )
    rank_pattern = _pattern(raw, "rank_pattern", _rank)
    alpha_pattern = _pattern(raw, "alpha_pattern", _finite)
    init = raw.get("init_lora_weights", True)
    if not (init is None or isinstance(init, (bool, str))):
        raise _wrong("init_lora_weights", init, "true, false or a name")
    return AdapterConfig(
        r=_rank("r", raw["r"]),
        lora_alpha=_finite("lora_alpha", raw["lora_alpha"]),
        use_rslora=_flag(raw, "use_rslora"),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        fan_in_fan_out=_flag(raw, "fan_in_fan_out"),
        base_model_name_or_path=_text(raw, "base_model_name_or_path"),
        revision=_text(raw, "revision"),
        task_type=_text(raw, "task_type"),
        target_modules=_targets(raw.get("target_modules")),
        target_parameters=_parameters(raw.get("target_parameters")),
        init_lora_weights=init,
        raw=dict(raw),
        remarks=remarks,
    )


def _check_is_pefts(raw: Mapping[str, Any]) -> None:
    """Refuse the config of another tool, whose fields would only be unknown one by one."""
    if raw and raw.keys().isdisjoint(("peft_type", "r", "lora_alpha", "target_modules")):
        raise RejectedClient(
            f"adapter config is not PEFT's: it has {first_few(map(str, raw))}, and none of "
            "peft_type, r and lora_alpha",
            found=f"fields {first_few(map(str, raw))}",
            expected="peft_type, r and lora_alpha",
            hint="give the adapter_config.json that PEFT writes, or no config and --assume-alpha",
        )


def assumed_config(assume_alpha: float | str) -> AdapterConfig:
    """The config of a file that comes without one: plain LoRA, rank as the tensors have it.

    Args:
        assume_alpha: finite alpha of every module, or "rank" for alpha = rank (scaling 1).

    Raises:
        UsageError: neither a finite number nor "rank".
    """
    if assume_alpha == "rank":
        return AdapterConfig(r=None, lora_alpha=None)
    if isinstance(assume_alpha, (bool, str)) or not math.isfinite(assume_alpha):
        raise UsageError(f"assumed alpha must be a finite number or 'rank', got {assume_alpha!r}")
    return AdapterConfig(r=None, lora_alpha=float(assume_alpha))


def _wrong(name: str, value: Any, expected: str) -> RejectedClient:
    shown = quoted(value, 60)
    return RejectedClient(
        f"adapter config: {name} is {shown}, expected {expected}", found=shown, expected=expected
    )


def _rank(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise _wrong(name, value, "an integer of at least 1")
    return value


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an int of hundreds of digits, from memory
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(name, value, "a finite number")
    return number


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if not (value is None or isinstance(value, bool)):
        raise _wrong(name, value, "true or false")
    return bool(value)


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if not (value is None or isinstance(value, str)):
        raise _wrong(name, value, "a string or null")
    return value


def _pattern(raw: Mapping[str, Any], name: str, number: Any) -> dict[str, Any]:
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object of module pattern to number")
    if len(value) > patterns.MAX_KEYS:
        raise RejectedClient(
            f"adapter config: {name} has {len(value):,} keys, more than {patterns.MAX_KEYS:,}"
        )
    for key in value:
        if not isinstance(key, str):
            raise _wrong(name, key, "module patterns as keys")
    patterns.check_keys(value, name)
    return {key: number(f"{name}[{quoted(key)}]", item) for key, item in value.items()}


def _parameters(value: Any) -> tuple[str, ...]:
    found = () if value is None else _targets(value)
    if not isinstance(found, tuple):
        raise _wrong("target_parameters", value, "a list of names or null")
    return found


def _targets(value: Any) -> tuple[str, ...] | str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(v, str) for v in value):
        return tuple(sorted(value))
    raise _wrong("target_modules", value, "a list of names, a string or null")
