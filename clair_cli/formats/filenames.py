"""Names of files that adapters are read from and written to. Opens nothing."""

from __future__ import annotations

import re

from clair_cli.store.address import Place, RemotePath

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SUFFIX = ".safetensors"
MLX_WEIGHTS = "adapters.safetensors"  # mlx-lm's, beside an adapter_config.json of its own
PIPELINE_WEIGHTS = "pytorch_lora_weights.safetensors"  # where diffusers looks in a folder
MAIN_WEIGHTS = (WEIGHTS, PIPELINE_WEIGHTS, MLX_WEIGHTS)
"""Names of the adapter among the `.safetensors` files of a folder, the first choice first."""


FILE_SUFFIXES = frozenset((".bin", ".ckpt", ".gguf", ".json", ".npz", ".onnx", ".pt", ".pth"))
"""Suffixes of weights files and configs in other formats; no output folder's name may have one."""

BESIDE = frozenset(("report.json", "README.md"))
"""Files of an output folder besides the adapter's."""
OWN_FILES = BESIDE | {WEIGHTS, CONFIG, MLX_WEIGHTS, PIPELINE_WEIGHTS}
"""Files that clair may write into a folder; `--force` replaces only folders that hold no others."""


def is_weights(name: str) -> bool:
    """Whether a file's name is that of a safetensors file, in letters of either case."""
    return name.lower().endswith(SUFFIX)


def is_one_file(output: Place) -> bool:
    """Whether a merged adapter is to be one file rather than a PEFT folder.

    >>> from pathlib import Path
    >>> is_one_file(Path("m.safetensors")), is_one_file(Path("M.SAFETENSORS"))
    (True, True)
    >>> is_one_file(Path("merged"))
    False
    """
    return output.name.lower().endswith(SUFFIX)


ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz")
"""Suffixes of archives, which are never unpacked."""


def no_folder_hint(path: Place) -> str:
    """What to do about a file that was given where the folder of clients should be."""
    if path.name.lower().endswith(ARCHIVES):
        return "archives are not unpacked: unpack it, if you trust its senders, and give the folder"
    return "put the clients' adapters into one folder and give that folder"


def not_here_hint(path: Place) -> str:
    """What to do about a path where nothing is and that looks like an address; else "".

    >>> from pathlib import Path
    >>> bool(not_here_hint(Path("https://example.org/x"))), not_here_hint(Path("clients"))
    (True, '')
    """
    text = path.as_posix()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) and not isinstance(path, RemotePath):
        return "nothing is fetched from a network: download the adapters, and give their folder"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.exists():
        return "if that is a name on a hub: download the adapters, and give their folder"
    return ""
