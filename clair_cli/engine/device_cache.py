"""The clients' files in a GPU's memory, if they fit: each file is read and copied once, as a whole.

Files with the same layout are rows of one matrix, so that one module of all these clients is one
view of it, and a stack of factors is made without a loop over clients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.round import Round, losing
from clair_cli.engine.device import Device
from clair_cli.formats.safetensors.reader import SafetensorsFile
from clair_cli.formats.safetensors.source import TORCH_DTYPES, runs
from clair_cli.maths.factors.stack import FactorStack, common_dtype

# Share of a device's memory that all files together may take.
_SHARE = 0.25
# Bytes that are read, checked and sent at once, if no tensor is larger.
_PIECE_BYTES = 4 * 2**20
# A row of a matrix of files begins at a multiple of this many bytes.
_ALIGNED = 16


@dataclass(frozen=True)
class _Place:
    """Place of one module's factors in a file: rank, and dtype and first byte of each factor."""

    rank: int
    dtype_A: torch.dtype
    begin_A: int
    dtype_B: torch.dtype
    begin_B: int


@dataclass(frozen=True)
class _Group:
    """Clients whose files have the same layout.

    Attributes:
        places: of every module's factors in the files, by module.
        clients: indices in the round, ascending.
        data: the bytes of one file's tensors in each row, (n_clients, bytes), uint8, on the device.
    """

    places: dict[str, _Place]
    clients: list[int]
    data: Tensor

    def side(self, rows: Tensor | None, dtype: torch.dtype, begin: int, n: int) -> Tensor:
        """`n` numbers of every client, or of those in `rows`, from byte `begin` of their files on;
        (n_clients, n)."""
        taken = self.data[:, begin : begin + n * dtype.itemsize]
        return (taken if rows is None else taken.index_select(0, rows)).view(dtype)


class DeviceCache:
    """The tensors of all clients of a round in a device's memory."""

    def __init__(self, round_: Round, device: Device, groups: Sequence[_Group]) -> None:
        self._round, self._device, self._groups = round_, device, groups
        self._scaling = {
            m: [a.modules[m].scaling if m in a.modules else 0.0 for a in round_.adapters]
            for m in round_.module_shapes
        }

    def stack(self, modules: Sequence[str], clients: Sequence[int] | None = None) -> FactorStack:
        """The stack that `stack_factors` makes of the same factors.

        Args:
            modules: names of modules of one shape.
            clients: indices in the round, ascending; all clients if None.
        """
        chosen = list(range(len(self._round.adapters))) if clients is None else list(clients)
        each = [self._round.module_ranks[m] for m in modules]
        ranks = tuple(max(ranks[k] for ranks in each) for k in chosen)
        full = all(ranks_m[k] == r for ranks_m in each for k, r in zip(chosen, ranks, strict=True))
        sides = self._empty(modules, chosen, sum(ranks), full=full)
        for group in self._groups:
            part = _Part(group, chosen, ranks, self._device.name)
            for i, module in enumerate(modules if part.members else ()):
                if module in group.places:
                    part.put(module, sides[0][i], sides[1][i])
        scaling = [[self._scaling[m][k] for k in chosen] for m in modules]
        return FactorStack(
            *sides, torch.tensor(scaling, dtype=torch.float64), ranks, self._device.dtype
        )

    def check(self) -> None:
        """Check that no file has changed since it was copied. A client whose file changes during a
        run is left out, as it is where files are read again.

        Raises:
            ClientLost: a file changed.
        """
        for adapter in self._round.adapters:
            with _losing(adapter) as file:
                file.check_unchanged()

    def _empty(
        self, modules: Sequence[str], chosen: Sequence[int], n_components: int, *, full: bool
    ) -> tuple[Tensor, Tensor]:
        """Tensors for lora_A and lora_B of a stack, (n_modules, n_components, in) and (n_modules,
        out, n_components); with zeros unless `full`, which says that all of it will be filled."""
        out, in_ = self._round.module_shapes[modules[0]]
        wanted = set(chosen)
        places = [
            group.places[m]
            for group in self._groups if wanted.intersection(group.clients)
            for m in modules if m in group.places
        ]  # fmt: skip
        make = torch.empty if full else torch.zeros
        dtype_A = common_dtype([p.dtype_A for p in places])
        dtype_B = common_dtype([p.dtype_B for p in places])
        name = self._device.name
        return (
            make(len(modules), n_components, in_, dtype=dtype_A, device=name),
            make(len(modules), out, n_components, dtype=dtype_B, device=name),
        )


@dataclass
class _Part:
    """The part of a stack that one group of clients fills.

    Attributes:
        chosen: indices of the stack's clients, ascending.
        ranks: the stack's columns of each of these clients.
        members: the chosen clients that belong to the group.
    """

    group: _Group
    chosen: Sequence[int]
    ranks: Sequence[int]
    device: str
    members: list[int] = field(init=False)
    _rows: Tensor | None = field(init=False, default=None)
    _columns: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {k: i for i, k in enumerate(self.group.clients)}
        self.members = [k for k in self.chosen if k in numbers]
        if len(self.members) < len(self.group.clients):
            self._rows = torch.tensor([numbers[k] for k in self.members]).to(self.device)

    def put(self, module: str, lora_A: Tensor, lora_B: Tensor) -> None:
        """Copy the members' factors into one module's sides, (sum_rank, in) and (out, sum_rank)."""
        place, n = self.group.places[module], len(self.members)
        rank, in_, out = place.rank, lora_A.shape[1], lora_B.shape[0]
        rows = self.group.side(self._rows, place.dtype_A, place.begin_A, rank * in_)
        columns = self.group.side(self._rows, place.dtype_B, place.begin_B, out * rank)
        columns = columns.view(n, out, rank).permute(1, 0, 2)
        if n == len(self.chosen) and set(self.ranks) == {rank}:
            lora_A.view(n, rank, in_).copy_(rows.view(n, rank, in_))
            lora_B.view(out, n, rank).copy_(columns)
            return
        where = self._where(rank)
        lora_A.index_copy_(0, where, rows.reshape(n * rank, in_).to(lora_A.dtype))
        lora_B.index_copy_(1, where, columns.reshape(out, n * rank).to(lora_B.dtype))

    def _where(self, rank: int) -> Tensor:
        """Indices of the members' columns in the stack, `rank` of each."""
        if rank not in self._columns:
            starts, start = {}, 0
            for k, r in zip(self.chosen, self.ranks, strict=True):
                starts[k], start = start, start + r
            columns = [starts[k] + j for k in self.members for j in range(rank)]
            self._columns[rank] = torch.tensor(columns).to(self.device)
        return self._columns[rank]


def cache_on_device(
    round_: Round,
    device: Device,
    each: Callable[
        [Callable[[tuple[Adapter, Tensor]], None], Sequence[tuple[Adapter, Tensor]]], Iterable[None]
    ],
) -> DeviceCache | None:
    """Read, check and copy the files of all clients.

    Args:
        each: calls a function with every item, on threads, and yields the results.

    Returns:
        None if the files do not fit, a client is no plain file, a tensor needs more than a copy, or
        there is a previous adapter to subtract.

    Raises:
        ClientLost: a file changed.
    """
    if device.dtype != torch.float64 or round_.previous is not None:
        return None
    found: dict[tuple[object, ...], tuple[dict[str, _Place], list[int]]] = {}
    total = 0
    for k, adapter in enumerate(round_.adapters):
        places = _places_in_file(adapter)
        if places is None:
            return None
        total += _data_bytes(adapter)
        signature = (_data_bytes(adapter), *places.items())
        found.setdefault(signature, (places, []))[1].append(k)
    if total > _SHARE * device.memory:
        return None
    groups = []
    for places, clients in found.values():
        pitch = -(-_data_bytes(round_.adapters[clients[0]]) // _ALIGNED) * _ALIGNED
        data = torch.empty(len(clients), pitch, dtype=torch.uint8, device=device.name)
        groups.append(_Group(places, clients, data))
    rows = [(round_.adapters[k], g.data[i]) for g in groups for i, k in enumerate(g.clients)]
    device.wait()  # the rows were allocated on this stream, and are filled on others
    for _ in each(partial(_copy, device), rows):
        pass
    return DeviceCache(round_, device, groups)


def _places_in_file(adapter: Adapter) -> dict[str, _Place] | None:
    """Places of an adapter's factors in its file, by module; None if they cannot be used as they
    are: no safetensors file, float64, not aligned, or recompressed when read."""
    file = adapter.source
    if not isinstance(file, SafetensorsFile):
        return None
    places = {}
    for name, module in adapter.modules.items():
        entries = file.tensors[module.key_A], file.tensors[module.key_B]
        dtypes = [getattr(torch, TORCH_DTYPES[entry.dtype]) for entry in entries]
        sizes = [dtype.itemsize for dtype in dtypes]
        if module.components < module.rank:  # reading recompresses the factors
            return None
        if max(sizes) > 4 or any(e.begin % n for e, n in zip(entries, sizes, strict=True)):
            return None
        places[name] = _Place(
            module.rank, dtypes[0], entries[0].begin, dtypes[1], entries[1].begin
        )  # fmt: skip
    return places


def _data_bytes(adapter: Adapter) -> int:
    """Bytes of the tensors in an adapter's file."""
    file = adapter.source
    assert isinstance(file, SafetensorsFile)
    return file.size - file.data_start


@contextlib.contextmanager
def _losing(adapter: Adapter) -> Iterator[SafetensorsFile]:
    """An adapter's file; errors in reading it are raised as `ClientLost`."""
    file = adapter.source
    assert isinstance(file, SafetensorsFile)
    with losing(adapter):
        yield file


def _copy(device: Device, item: tuple[Adapter, Tensor]) -> None:
    """Read one file, check its bytes, and copy them into its row on the device."""
    adapter, row = item
    with _losing(adapter) as file:
        for run in runs(file.tensors.values(), _PIECE_BYTES):
            data = torch.frombuffer(file.raw(*(e.name for e in run)), dtype=torch.uint8)
            buffer = torch.empty(len(data), dtype=torch.uint8, pin_memory=device.pinned)
            buffer.copy_(data)  # by torch, which lets other threads run meanwhile
            row[run[0].begin : run[-1].end].copy_(buffer, non_blocking=True)
    device.wait()
