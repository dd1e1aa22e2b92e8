"""The strict check of a safetensors header: every byte of the file belongs to one tensor.

Stricter than the safetensors library, which lets the last of two equal names win and accepts
unknown fields and axes of length 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.strict_json import parse_strict
from clair_cli.text import quoted

METADATA = "__metadata__"
MAX_AXES = 8
MAX_AXIS_LENGTH = 2**40

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits per element of every dtype of the format (C64 is two 32-bit floats)."""


class HeaderEntry(NamedTuple):
    """One tensor as the header declares it; offsets count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(
    data: bytes, data_bytes: int, limits: Limits
) -> tuple[dict[str, str], list[HeaderEntry]]:
    """Check a header against the number of bytes that follow it.

    Args:
        data: the header's JSON, at most `limits.max_header_bytes` bytes.
        data_bytes: how many bytes the file has after the header, at least 0.

    Returns:
        `(metadata, entries)`, the entries in the order of their bytes.

    Raises:
        RejectedClient: anything the format or the limits forbid; names the tensor.
    """
    if data[:1] != b"{":
        raise RejectedClient("header does not start with '{'", expected="a JSON object")
    _check_count(data.count(b'"data_offsets"'), limits)  # parsing that many would take seconds
    try:
        header = parse_strict(data, "header", limits.max_header_bytes)
    except ValueError as error:
        raise RejectedClient(str(error)) from None
    metadata = _check_metadata(header.pop(METADATA, {}))
    _check_count(len(header), limits)
    entries = [_check_entry(name, fields, limits) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end, entry.name))
    _check_layout(entries, data_bytes)
    return metadata, entries


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_tensors:
        raise RejectedClient(
            f"header lists {count:,} tensors, above the limit of {limits.max_tensors:,}",
            found=f"{count:,} tensors",
            expected=f"at most {limits.max_tensors:,} tensors",
            hint=remedy("tensors"),
        )


def _check_metadata(metadata: Any) -> dict[str, str]:
    if metadata is None:  # as other readers take it
        return {}
    if not isinstance(metadata, dict):
        raise RejectedClient("header's __metadata__ is not an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise RejectedClient(f"header's __metadata__ field {quoted(key)} is not a string")
    return metadata


def _check_entry(name: str, fields: Any, limits: Limits) -> HeaderEntry:
    if len(name) > limits.max_name_chars:
        raise RejectedClient(
            f"tensor name {quoted(name)} has {len(name):,} characters, above the limit of "
            f"{limits.max_name_chars}"
        )
    where = f"tensor {quoted(name)}"
    if not isinstance(fields, dict):
        raise RejectedClient(f"{where}: header entry is not an object")
    unknown = sorted(fields.keys() - {"dtype", "shape", "data_offsets"})
    if unknown:
        raise RejectedClient(f"{where}: unknown header field {quoted(unknown[0])}")
    missing = sorted({"dtype", "shape", "data_offsets"} - fields.keys())
    if missing:
        raise RejectedClient(f"{where}: header field {missing[0]!r} is missing")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise RejectedClient(f"{where}: unknown dtype {quoted(dtype)}", found=quoted(dtype))
    _check_shape(where, shape)
    if not _is_int_list(offsets) or len(offsets) != 2:
        raise RejectedClient(f"{where}: data_offsets {quoted(offsets)} are not two integers")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise RejectedClient(f"{where}: data_offsets [{begin}, {end}] are not in order")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        needed = f"{bits // 8:,}" if bits % 8 == 0 else f"{bits / 8:,}"
        raise RejectedClient(
            f"{where}: shape {tuple(shape)} of {dtype} needs {needed} bytes, but the "
            f"header gives it {end - begin:,}",
            found=f"{end - begin:,} bytes",
            expected=f"{needed} bytes",
        )
    return HeaderEntry(name, dtype, tuple(shape), begin, end)


def _check_shape(where: str, shape: Any) -> None:
    if not _is_int_list(shape):
        raise RejectedClient(f"{where}: shape {quoted(shape)} is not a list of integers")
    if len(shape) > MAX_AXES:
        raise RejectedClient(f"{where}: {len(shape)} axes, more than {MAX_AXES}")
    for length in shape:
        if not 1 <= length <= MAX_AXIS_LENGTH:
            raise RejectedClient(
                f"{where}: shape {tuple(shape)} has an axis of length {length}",
                found=str(tuple(shape)),
                expected="every axis at least 1 long",
            )


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_layout(entries: list[HeaderEntry], data_bytes: int) -> None:
    """Every byte in exactly one tensor: no hole, no overlap, nothing missing, nothing left."""
    position, previous = 0, ""
    for entry in entries:
        if entry.begin > position:
            raise RejectedClient(
                f"tensor {quoted(entry.name)}: hole of {entry.begin - position:,} bytes before it"
            )
        if entry.begin < position:
            raise RejectedClient(
                f"tensor {quoted(entry.name)}: overlaps tensor {quoted(previous)} by "
                f"{position - entry.begin:,} bytes"
            )
        position, previous = entry.end, entry.name
    if position > data_bytes:
        raise RejectedClient(
            f"file is truncated: tensors need {position:,} bytes after the header, found "
            f"{data_bytes:,}",
            found=f"{data_bytes:,} bytes",
            expected=f"{position:,} bytes",
        )
    if position < data_bytes:
        raise RejectedClient(
            f"file has {data_bytes - position:,} extra bytes after the last tensor",
            found=f"{data_bytes:,} bytes of tensors",
            expected=f"{position:,} bytes",
        )
