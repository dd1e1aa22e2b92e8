"""`convert`: one adapter from one format to another, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from clair_cli.cohort.load import load_one
from clair_cli.engine.own_process import importing, is_ours
from clair_cli.errors import InputRefused, RejectedClient, UsageError
from clair_cli.formats.filenames import is_one_file
from clair_cli.formats.limits import Limits
from clair_cli.output.objects import check_output
from clair_cli.output.publish import Output, publish
from clair_cli.output.targets import check_folder_name
from clair_cli.remark import Remark
from clair_cli.settings import CONVERTIBLE, OPTIONS
from clair_cli.store.address import Place, place_of
from clair_cli.store.lookup import looked_up
from clair_cli.workflow.destination import Destination

Target = Literal["peft", "kohya", "diffusers", "mlx"]


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` wrote.

    Attributes:
        output: as given.
        given_format, format: of the tensor names read and written.
        modules: how many there are.
        lost: what is not in the result, or only rounded; one phrase each.
        notes: remarks on the adapter that was read.
    """

    output: str
    given_format: str
    format: str
    modules: int
    lost: tuple[str, ...]
    notes: tuple[Remark, ...]


def convert(
    source: str | Place,
    output: str | Place,
    tensor_names: Target,
    *,
    force: bool = False,
    assume_alpha: float | Literal["rank"] | None = None,
    limit: Mapping[str, int | str] | Sequence[str] | Limits = (),
) -> ConvertResult:
    """Write one adapter in another format: factors as they are, the scale where readers look.

    Args:
        source: an adapter's folder, or a `.safetensors` file with its config next to it.
        output: `NAME.safetensors`, or a folder to be.
        tensor_names: the format to write.
        force: replace an existing output.
        assume_alpha: alpha of a file without any config, or "rank".
        limit: other limits on the input, as in {"file": "8G"}.

    Raises:
        UsageError: a wrong path or option, or modules that have no name in the format.
        InputRefused: no adapter that can be read, or converted without changing what it does.
        OutputError: the result could not be written.
    """
    if tensor_names not in CONVERTIBLE:
        raise UsageError(f"tensor_names is {tensor_names!r}, expected one of "
                         f"{', '.join(map(repr, CONVERTIBLE))}")  # fmt: skip
    given: dict[str, Any] = {"force": force, "assume_alpha": assume_alpha, "limit": limit}
    options = {name: OPTIONS[name].value(name, value) for name, value in given.items()}
    for name, path in (("source", source), ("output", output)):
        if not str(path):
            raise UsageError(f"{name} is an empty path")
    source, output = looked_up(place_of(source)), place_of(output)
    one_file = is_one_file(output)
    if not one_file:
        check_folder_name(output, or_file=True)
    check_output(output, force=force, kind="file" if one_file else "folder", inputs=_inputs(source))
    cohort = load_one(source, limits=options["limit"], assume_alpha=options["assume_alpha"])
    for refused in cohort.rejected:
        raise InputRefused(refused.message, hint=refused.hint)
    (adapter,) = cohort.adapters
    with importing():
        import numpy  # noqa: F401  # torch goes on without it

        from clair_cli.workflow.convert import convert_adapter
    with closing(Destination(output, one_file=one_file, keep_tensors=not is_ours())) as destination:
        try:
            done = convert_adapter(adapter, tensor_names, destination, options["limit"])
        except RejectedClient as error:
            raise InputRefused(f"{source}: {error.message}", hint=error.hint) from None
        content = done.files.weights if one_file else done.files.folder
        publish([Output(output, content, force)])
    return ConvertResult(
        output.as_posix(), adapter.format, done.format, len(adapter.modules), done.lost,
        adapter.notes,
    )  # fmt: skip


def _inputs(source: Place) -> list[Place]:
    """What is read: nothing may be written to or into it. A single file's config lies beside it."""
    return [source] if source.is_dir() else [source, source.with_suffix(".json")]
