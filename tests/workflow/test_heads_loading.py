"""PEFT's own loader on merged adapters with a head, biases and token rows: the averaged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cohorts import clair

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]  # see tests/conftest.py

N = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "head": {},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "token rows": {"trainable_token_indices": [1, 5]},
    "embedding": {"target_modules": ["query", "word_embeddings"]},
    "head of two layers": {},
    "head of two layers, bias all": {"bias": "all"},
}


@pytest.fixture
def base(tmp_path: Path, variant: str) -> Callable[[], Any]:
    """Makes the base model: a BERT of one layer that tells three classes apart, or a RoBERTa, whose
    head has two."""
    import torch
    import transformers

    name = "Roberta" if "two layers" in variant else "Bert"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=40, num_labels=3, max_position_embeddings=16, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    model.save_pretrained(tmp_path / "base")
    kind = transformers.AutoModelForSequenceClassification
    return lambda: kind.from_pretrained(tmp_path / "base")


def trained(base: Callable[[], Any], k: int, fields: dict[str, Any]) -> Any:
    """One client: what is trained, moved by something common and something of its own."""
    import peft
    import torch

    torch.manual_seed(1)
    config = {"r": 2, "target_modules": ["query", "value"], **fields}
    model = peft.get_peft_model(base(), peft.LoraConfig(task_type="SEQ_CLS", **config))
    common, own = torch.Generator().manual_seed(2), torch.Generator().manual_seed(100 + k)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=common)
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=own)
    return model.eval()


def whole(model: Any) -> dict[str, Any]:
    """Every weight of the model with the adapter merged into it."""
    import torch

    merged = model.merge_and_unload().state_dict()
    return {key: value.double() for key, value in merged.items() if value.dtype == torch.float32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_merged_adapter_gives_the_averaged_model(
    tmp_path: Path, base: Callable[[], Any], variant: str
) -> None:
    import peft
    import torch

    models = []
    for k in range(N):
        models.append(trained(base, k, VARIANTS[variant]))
        models[-1].save_pretrained(tmp_path / "clients" / f"c{k}")
    result = clair(
        "merge", tmp_path / "clients", "-o", tmp_path / "out", "--rank", "full", "--fresh"
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("benign") >= N

    each = [whole(model) for model in models]
    averaged = base()
    state = {key: sum(one[key] for one in each).div(N).float() for key in each[0]}
    assert not averaged.load_state_dict(state, strict=False).unexpected_keys
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "out").eval()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        found, wanted = loaded(tokens).logits, averaged.eval()(tokens).logits
        plain = base().eval()(tokens).logits
    assert float((found - wanted).abs().max()) < 1e-4
    assert float((plain - wanted).abs().max()) > 0.1
