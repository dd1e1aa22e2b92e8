"""Memory for tables that are too large for it: files without a name, mapped into memory.

The system writes them out where it needs the memory for something else, and they are gone with the
process.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.evidence.tables import BLOCK_BYTES, in_memory

# From this many bytes on, a table is a file.
LARGE = BLOCK_BYTES


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor; a large one is in a file in the system's folder for temporary ones.

    Raises:
        MemoryError: there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return in_memory(shape, dtype)
    folder = tempfile.gettempdir()
    fd, path = tempfile.mkstemp(prefix="clair-", dir=folder)
    try:
        with contextlib.closing(os.fdopen(fd, "wb")):
            # at once: a disk that is full while the tensor is written would end the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.ftruncate(fd, size)
        return torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)
    except OSError as error:
        raise MemoryError(
            f"no room for {size / 1e9:.1f} GB of tables in {folder} ({error.strerror}); TMPDIR may "
            "name another folder"
        ) from None
    finally:
        os.unlink(path)
