"""The elements of a tensor in a file: which are not finite, and the largest exponent."""

from __future__ import annotations

import numpy as np

_EXPONENT_MASKS = {  # all exponent bits set: NaN or Inf
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}

NO_EXPONENT = -1100
"""Below the exponents of every dtype."""


def look_at(data: bytes | memoryview, dtype: str) -> tuple[int, int, int]:
    """Count the non-finite elements of a tensor, and bound the others.

    Args:
        data: the elements, little-endian.
        dtype: as in a safetensors header.

    Returns:
        `(non_finite, first, exponent)`: how many elements are NaN or Inf, the flat index of the
        first of them or -1, and the least e with every finite magnitude below 2**e (for zeros and
        subnormal numbers the least e of the dtype). For dtypes other than F16, BF16, F32 and F64
        (0, -1, NO_EXPONENT).
    """
    if dtype not in _EXPONENT_MASKS:
        return 0, -1, NO_EXPONENT
    kind, mask = _EXPONENT_MASKS[dtype]
    words = np.frombuffer(data, dtype=kind)
    bits = words & words.dtype.type(mask)
    count, first, largest = 0, -1, int(bits.max()) if len(bits) else 0
    if largest == mask:
        bad = bits == mask
        count, first = int(np.count_nonzero(bad)), int(np.argmax(bad))
        largest = int(bits[~bad].max()) if count < len(bits) else 0
    lowest = mask & -mask  # the exponent's last bit
    return count, first, largest // lowest - mask // lowest // 2 + 1
