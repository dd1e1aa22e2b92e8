"""What mlx-lm itself makes of the adapters that clair writes for it, where mlx is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests.cohorts import Array

pytest.importorskip("mlx.core", reason="mlx is not installed")
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

KEYS = ["self_attn.q_proj", "mlp.up_proj", "lm_head", "model.embed_tokens"]


def base() -> Any:
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama", hidden_size=32, num_hidden_layers=3, intermediate_size=48,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=40,
            head_dim=8, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.freeze()
    return model


def save(folder: Path) -> None:
    """An adapter of the last two of three layers, of the embedding and of the head."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = base()
    fields = {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": KEYS}
    linear_to_lora_layers(model, 2, fields)
    mx.random.seed(1)
    tensors = {
        name: mx.random.normal(value.shape)
        for name, value in tree_flatten(model.trainable_parameters())
        if "lora_" in name
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": 2, "model": "x", "lora_parameters": fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def logits(folder: Path | None) -> Array:
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters

    model = base() if folder is None else load_adapters(base(), str(folder))
    model.eval()
    return np.array(model(mx.array([[1, 2, 3, 7, 9]])))


def test_mlx_lm_gives_the_same_logits(tmp_path: Path) -> None:
    save(tmp_path / "clients" / "a")
    clair_cli.merge(
        tmp_path / "clients", tmp_path / "m", rank="full", dtype="float32", allow_undetermined=True
    )
    clair_cli.convert(tmp_path / "clients" / "a", tmp_path / "p", "peft")
    clair_cli.convert(tmp_path / "p", tmp_path / "n", "mlx")
    wanted = logits(tmp_path / "clients" / "a")
    assert np.array_equal(logits(tmp_path / "n"), wanted)
    assert np.abs(logits(tmp_path / "m") - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(logits(None) - wanted).max() > 0.1 * np.abs(wanted).max()
