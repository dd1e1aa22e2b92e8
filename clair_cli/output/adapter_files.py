"""The files of one adapter: its weights, and the folder that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from clair_cli.formats.filenames import CONFIG, PIPELINE_WEIGHTS, WEIGHTS
from clair_cli.formats.safetensors.writer import Parts, SafetensorsParts
from clair_cli.output.draft import Draft


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's bytes.

    Attributes:
        weights: the safetensors file, or its draft.
        folder: the files of the folder that holds this adapter, by name.
        sha256: of `weights`, hex.
        config_sha256: of the folder's config file, hex; None if it has none.
    """

    weights: Parts | Draft
    folder: Mapping[str, bytes | Parts | Draft]
    sha256: str
    config_sha256: str | None


def adapter_files(made: SafetensorsParts, config: str | None, name: str = WEIGHTS) -> AdapterFiles:
    """The files of an adapter whose tensors are all there.

    Args:
        config: for the folder's `adapter_config.json`; None if it is in the header.
        name: of the weights file beside a config.
    """
    draft, sha256 = made.sink, made.sha256()
    assert draft is None or isinstance(draft, Draft)
    weights: Parts | Draft = made.parts() if draft is None else draft
    if config is None:
        return AdapterFiles(weights, {PIPELINE_WEIGHTS: weights}, sha256, None)
    text = config.encode("utf-8")
    folder: dict[str, bytes | Parts | Draft] = {name: weights, CONFIG: text}
    return AdapterFiles(weights, folder, sha256, hashlib.sha256(text).hexdigest())
