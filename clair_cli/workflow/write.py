"""An adapter as it will stand in files, made module by module from exact delta weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config_source import HEADER_FIELD
from clair_cli.adapters.fused_output import FusedPair, fused_pairs, targets_of
from clair_cli.adapters.output_format import OutputFormat
from clair_cli.adapters.write import config_json, merged_config, with_dense
from clair_cli.errors import OutputError
from clair_cli.formats.safetensors.writer import SafetensorsParts
from clair_cli.maths.factors.factored_svd import FactoredSVD
from clair_cli.maths.merge.rounding import WrittenModule, write_modules
from clair_cli.output.adapter_files import AdapterFiles, adapter_files
from clair_cli.settings import Settings
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.heads import MergedHead
from clair_cli.workflow.plan import Cut, Plan, relative
from clair_cli.workflow.provenance import HEADER_KEY, header_text
from clair_cli.workflow.result_limits import check_adapter


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter as it will stand in a file.

    Attributes:
        tensors: by tensor name, if they were kept. config: the adapter config.
        files: their bytes.
        format: whose names the tensors have.
        plan: how it is written.
        error: norm of (exact - written) delta weights over that of the exact; None for zero.
        heads: the dense tensors in it.
        base_model: as the config names it, or None.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]
    files: AdapterFiles
    format: str
    plan: Plan
    error: float | None
    heads: tuple[MergedHead, ...] = ()
    base_model: object = None


def _empty_head(head: MergedHead) -> Tensor:
    return torch.empty(head.tensor.shape, dtype=getattr(torch, head.dtype), device="meta")


def cut_modules(how: Cut, modules: Sequence[str], exact: FactoredSVD) -> dict[str, WrittenModule]:
    """Some modules' factors as they will be written.

    Args:
        exact: their delta weights, in the order of the names.

    Raises:
        OutputError: they do not fit the dtype.
    """
    found: dict[str, WrittenModule] = {}
    every = write_modules(exact, how.rank, how.scaling, how.torch_dtype)
    for module, written, values in zip(modules, every, exact.values, strict=True):
        if written is None:
            raise OutputError(
                f"module {module!r} does not fit {how.dtype}: its largest singular value is "
                f"{float(values[0]):.3g}",
                hint="choose a wider --dtype",
            )
        found[module] = written
    return found


class AdapterWriter:
    """Collects one adapter's modules in files, as soon as they are made.

    Args:
        plan: how it is written. Its modules are those of the adapter.
        adapters: the clients whose config fields are followed.
        output: how all of the run's adapters are written.
        heads: the dense tensors beside the LoRA; none where the format has no names for them.
        destination: gets the file's bytes. Where it is one file, that stands alone, and its header
            holds the config.
        merged: content and weight of each client that is merged, for the header of one file.

    Raises:
        OutputError: no reader would accept such an adapter; see `check_adapter`.
    """

    def __init__(
        self,
        plan: Plan,
        adapters: Sequence[Adapter],
        output: OutputFormat,
        settings: Settings,
        destination: Destination,
        heads: Sequence[MergedHead] = (),
        merged: Sequence[tuple[str, float]] = (),
    ) -> None:
        self.plan = plan
        output = output.placed(one_file=destination.one_file, in_folder=destination.in_folder)
        self._output, self._destination = output, destination
        self._config_inside = destination.one_file or not output.has_config_file
        self._tensors: dict[str, Tensor] = {}
        self._error = 0.0
        modules, scale = sorted(plan.module_error_by_rank), plan.scale
        fused = fused_pairs(adapters, modules, output)
        self._fused = {module: pair for pair in fused for module in pair.members}
        self._waiting: dict[str, dict[str, tuple[Tensor, Tensor]]] = defaultdict(dict)
        alone = [m for m in modules if m not in self._fused]
        config = merged_config(adapters, alone, plan.cut.rank, scale.alpha)
        if fused:
            config |= targets_of(fused, config, adapters)
        config = {**config, **_base_given(settings, config), "use_rslora": scale.use_rslora}
        config = with_dense(config, adapters, {head.tensor.kind for head in heads})
        self._base_model = config["base_model_name_or_path"]
        self._provenance = ""
        if destination.one_file and destination.version is not None and merged:
            self._provenance = header_text(
                destination.version, self._base_model, plan.error, merged
            )
        self._config = output.config(config, modules, scale.scaling)
        self._heads = heads
        self._file = self._begin_file(modules, settings)

    def _begin_file(self, modules: Sequence[str], settings: Settings) -> SafetensorsParts:
        """The file's header: everything but the values is known. A PEFT folder has a file of its
        own for the config."""
        output, scaling, cut = self._output, self.plan.scale.scaling, self.plan.cut
        header = {"format": "pt"}
        if self._config_inside:
            header = output.header(self._config, modules, scaling)
        if self._provenance:
            header = {**header, HEADER_KEY: self._provenance}
        empty = {m: self._empty(m) for m in modules}
        tensors = output.tensors({m: e for m, e in empty.items() if m not in self._fused}, scaling)
        for pair in {pair.path: pair for pair in self._fused.values()}.values():
            tensors |= pair.empty(*empty[next(iter(pair.members))])
        tensors |= {self._head_name(head): _empty_head(head) for head in self._heads}
        file = SafetensorsParts(tensors, header, self._destination.draft())
        inside = header.get(HEADER_FIELD, "") if self._config_inside else config_json(self._config)
        check_adapter(
            settings.limit, rank=cut.rank, names=tensors, config_bytes=len(inside),
            header_bytes=file.header_bytes, file_bytes=file.file_bytes,
        )  # fmt: skip
        return file

    def _empty(self, module: str) -> tuple[Tensor, Tensor]:
        (rows, columns), cut = self._output.layouts[module].matrix, self.plan.cut
        lora_A = torch.empty(cut.rank, columns, dtype=cut.torch_dtype, device="meta")
        return lora_A, torch.empty(rows, cut.rank, dtype=cut.torch_dtype, device="meta")

    def put(self, module: str, written: WrittenModule) -> None:
        """Add one module's factors; they are written and hashed when it is their turn."""
        factors = {module: (written.lora_A, written.lora_B)}
        if module in self._fused:
            tensors = self._of_experts(self._fused[module], factors)
        else:
            tensors = self._output.tensors(factors, self.plan.scale.scaling)
        for name, tensor in tensors.items():
            if self._destination.keep_tensors:
                self._tensors[name] = tensor
            self._file.add(name, tensor)
        self._error = math.hypot(self._error, written.error)

    def _of_experts(
        self, pair: FusedPair, factors: dict[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of a layer of fused experts, once all its experts were put."""
        waiting = self._waiting[pair.path]
        waiting |= factors
        if len(waiting) < len(pair.members):
            return {}
        return pair.tensors(self._waiting.pop(pair.path))

    def _head_name(self, head: MergedHead) -> str:
        return self._output.dense_name(head.tensor.name, head.tensor.module)

    def put_head(self, head: MergedHead, tensor: Tensor) -> None:
        """Add one dense tensor."""
        if self._destination.keep_tensors:
            self._tensors[self._head_name(head)] = tensor
        self._file.add(self._head_name(head), tensor)

    def finish(self) -> WrittenAdapter:
        """The adapter, once every module and every dense tensor was put."""
        text = None if self._config_inside else config_json(self._config)
        files = adapter_files(self._file, text, self._output.weights_name)
        return WrittenAdapter(
            self._tensors, self._config, files, self._output.format, self.plan,
            relative(self._error, self.plan.norm), tuple(self._heads), self._base_model,
        )  # fmt: skip


def _base_given(settings: Settings, config: Mapping[str, object]) -> dict[str, object]:
    """The base model's name that the user gives; a revision is one of the clients' own name."""
    name = settings.base_model
    if name is None or name == config["base_model_name_or_path"]:
        return {}
    return {"base_model_name_or_path": name, "revision": None}
