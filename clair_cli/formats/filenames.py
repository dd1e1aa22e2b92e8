"""Names of files that adapters are read from and written to. Opens nothing."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SUFFIX = ".safetensors"
PIPELINE_WEIGHTS = "pytorch_lora_weights.safetensors"  # where diffusers looks in a folder
MLX_WEIGHTS = "adapters.safetensors"  # where mlx-lm looks in a folder
MAIN_WEIGHTS = (WEIGHTS, PIPELINE_WEIGHTS, MLX_WEIGHTS)
"""Names of the adapter among the `.safetensors` files of a folder, the first choice first."""


FILE_SUFFIXES = frozenset((".bin", ".ckpt", ".gguf", ".json", ".npz", ".onnx", ".pt", ".pth"))
"""Suffixes of weights files and configs in other formats; no output folder's name may have one."""

BESIDE = frozenset(("report.json", "README.md"))
"""Files of an output folder besides the adapter's."""
OWN_FILES = BESIDE | {WEIGHTS, CONFIG, PIPELINE_WEIGHTS}
"""Files that clair may write into a folder; `--force` replaces only folders that hold no others."""


def is_weights(name: str) -> bool:
    """Whether a file's name is that of a safetensors file, in letters of either case."""
    return name.lower().endswith(SUFFIX)


def is_one_file(output: Path) -> bool:
    """Whether a merged adapter is to be one file rather than a PEFT folder.

    >>> is_one_file(Path("m.safetensors")), is_one_file(Path("M.SAFETENSORS"))
    (True, True)
    >>> is_one_file(Path("merged"))
    False
    """
    return output.name.lower().endswith(SUFFIX)
