"""The sizes beyond which a client's files are refused instead of read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds, each at least 1. Whatever is above is one client's rejection.

    Attributes:
        max_file_bytes: size of one weights file.
        max_header_bytes: size of its JSON header.
        max_tensors: tensors in one file.
        max_name_chars: length of a tensor name.
        max_rank: LoRA rank of one module.
        max_config_bytes: size of one config file.
        max_clients: clients in one cohort; more refuse the whole input.
    """

    max_file_bytes: int = 4 * 1024**3
    max_header_bytes: int = 8_000_000
    max_tensors: int = 20_000
    max_name_chars: int = 512
    max_rank: int = 1024
    max_config_bytes: int = 1_000_000
    max_clients: int = 10_000
