"""Elements of a tensor as they lie in a file: which are not finite, and how large they get."""

from __future__ import annotations

import numpy as np

_EXPONENT_MASKS = {  # all exponent bits set: NaN or Inf
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}

NO_EXPONENT = -1100
"""Below what any dtype holds."""


def largest_exponent(data: bytes, dtype: str) -> int:
    """The least e with every finite magnitude in little-endian bytes below 2**e; for dtypes other
    than F16, BF16, F32 and F64, and for zeros and subnormals, the least of the dtype."""
    if dtype not in _EXPONENT_MASKS:
        return NO_EXPONENT
    kind, mask = _EXPONENT_MASKS[dtype]
    words = np.frombuffer(data, dtype=kind)
    bits = words & words.dtype.type(mask)
    finite = bits if int(bits.max()) < mask else bits[bits < mask]
    lowest = mask & -mask  # the exponent's last bit
    biased = int(finite.max()) // lowest if len(finite) else 0
    return biased - mask // lowest // 2 + 1


def count_non_finite(data: bytes, dtype: str) -> tuple[int, int]:
    """`(count, first flat index)` of NaN and Inf in little-endian bytes; (0, -1) if none.

    Dtypes other than F16, BF16, F32 and F64 give (0, -1).
    """
    if dtype not in _EXPONENT_MASKS:
        return 0, -1
    kind, mask = _EXPONENT_MASKS[dtype]
    words = np.frombuffer(data, dtype=kind)
    bad = (words & words.dtype.type(mask)) == mask
    count = int(np.count_nonzero(bad))
    return (count, int(np.argmax(bad))) if count else (0, -1)
