"""The device that products are computed on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from clair_cli.errors import UsageError

_streams = threading.local()

# Memory assumed for a device that does not say how much it has, in bytes.
_MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Device:
    """A device of torch.

    Attributes:
        name: "cpu" or "cuda".
        dtype: of products on it.
    """

    name: str
    dtype: torch.dtype

    @property
    def pinned(self) -> bool:
        """Whether tensors are copied to the device from page-locked memory."""
        return self.name == "cuda"

    @property
    def memory(self) -> int:
        """Memory of the device in bytes: the total and not the free part, so that equal runs make
        equal batches."""
        if self.name != "cuda":
            return _MEMORY
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def wait(self) -> None:
        """Wait until this thread's CUDA stream has finished its work."""
        if self.name == "cuda":
            torch.cuda.current_stream().synchronize()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Run the work inside on this thread's own CUDA stream, so that copies of one thread and
        products of another run at the same time. Copying a result to the CPU waits for the
        stream."""
        if self.name != "cuda":
            yield
            return
        if not hasattr(_streams, "stream"):
            _streams.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(_streams.stream):
            yield


def choose_device(wanted: str) -> Device:
    """The device to use.

    Args:
        wanted: "cpu", "cuda", or "auto", which is a CUDA device if there is one.

    Raises:
        UsageError: the machine has no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device here", hint="use --device auto")
    if wanted not in ("cpu", "cuda"):
        raise UsageError(f"--device {wanted}: no such device", hint="use --device auto")
    return Device(wanted, torch.float64)


def warm_up(device: Device) -> None:
    """Load torch's linear algebra libraries of a GPU, once and on one thread: their first use by
    several threads at once fails."""
    if device.name != "cuda" or device in _warm:
        return
    square = torch.eye(2, dtype=device.dtype, device=device.name)[None]
    for work in (torch.linalg.cholesky, torch.linalg.eigh, torch.linalg.qr, torch.linalg.svd):
        work(square @ square)
    torch.linalg.solve_triangular(square, square, upper=False)
    device.wait()
    _warm.add(device)


_warm: set[Device] = set()
