"""mlx-lm's tensor names: `<module>.lora_a` and `<module>.lora_b`, the transposes of PEFT's factors.

Source: ml-explore/mlx-lm, mlx_lm/tuner/lora.py (`LoRALinear`: `lora_a` (in, rank), `lora_b`
(rank, out), `scale * (x @ lora_a) @ lora_b`; `LoRAEmbedding`: `lora_a` (entries, rank), `lora_b`
(rank, dim)) and mlx_lm/tuner/utils.py (`load_adapters`, which refuses any other tensor).
"""

from __future__ import annotations

import re

from clair_cli.adapters.names.parts import TensorPart

_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
# What mlx-lm's models call their embeddings (mlx_lm/models): the names of the two factors are those
# of a linear layer.
_EMBEDDINGS = frozenset(
    ("embed_tokens", "embed_in", "embeddings", "tok_embeddings", "word_embeddings", "wte", "wpe")
)


def mlx_name(key: str) -> TensorPart | None:
    """One of mlx-lm's names, or None.

    >>> mlx_name("model.layers.0.self_attn.q_proj.lora_a").part
    'A'
    """
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    module = match["module"]
    embedding = module.rpartition(".")[2] in _EMBEDDINGS
    return TensorPart("mlx", "A" if match["side"] == "a" else "B", module, embedding=embedding)


def layer_key(path: str) -> str:
    """What mlx-lm's `keys` call a module: its path in its block, or in the model if it is in none.

    >>> layer_key("model.layers.12.mlp.up_proj"), layer_key("lm_head")
    ('mlp.up_proj', 'lm_head')
    """
    match = re.fullmatch(r"(?:.*?\.)?\d+\.(.+)", path)
    return path if match is None else match[1]
