"""Tensor names: what is paired, and what is refused under which name."""

from __future__ import annotations

import pytest

from clair_cli.errors import RejectedClient
from clair_cli.formats.keys import pair_keys

P = "base_model.model."


def shapes(*names: str, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (2, 2)) | more


def both(stem: str, end: str = ".weight") -> list[str]:
    return [f"{stem}.lora_A{end}", f"{stem}.lora_B{end}"]


@pytest.mark.parametrize(
    ("stem", "end", "prefix", "module"),
    [
        (f"{P}layers.0.q", ".weight", P, "layers.0.q"),
        ("layers.0.q", ".weight", "", "layers.0.q"),
        (f"{P}layers.0.q", ".default.weight", P, "layers.0.q"),
        (f"{P}layers.0.q", ".client-3.weight", P, "layers.0.q"),
        (f"module.{P}layers.0.q", ".weight", P, "layers.0.q"),
        (f"_orig_mod.{P}_fsdp_wrapped_module.layers.0._orig_mod.q", ".weight", P, "layers.0.q"),
        (f"{P}module.layers.0.q", ".weight", P, "layers.0.q"),
        (f"{P}layers.module.q", ".weight", P, "layers.module.q"),
    ],
)
def test_names_of_one_pair(stem: str, end: str, prefix: str, module: str) -> None:
    found = pair_keys(shapes(*both(stem, end)))
    assert found.prefix == prefix
    assert [(p.module, p.key_A, p.key_B) for p in found.pairs] == [(module, *both(stem, end))]


GOOD = both(f"{P}m")
REFUSED = [
    ([], "holds no tensors"),
    ([f"{P}m.lora_A.weight"], "lora_A has no lora_B beside it"),
    ([f"{P}m.lora_B.weight"], "lora_B has no lora_A beside it"),
    (both(f"{P}m", ".a.weight") + both(f"{P}n", ".b.weight"), "two adapters in one file: 'a'"),
    ([*GOOD, *both("n")], "some tensor names begin with 'base_model.model.' and some do not"),
    ([*GOOD, f"module.{P}m.lora_A.weight"], "two tensors for one lora_A"),
    ([*GOOD, f"{P}e.lora_embedding_A"], "LoRA of an embedding not supported: 1 tensor"),
    ([*GOOD, f"{P}m.lora_magnitude_vector"], "DoRA not supported"),
    ([*GOOD, f"{P}m.lora_magnitude_vector.default.weight"], "DoRA not supported"),
    ([*GOOD, f"{P}m.lora_B.bias"], "LoRA with a bias"),
    ([*GOOD, f"{P}m.bias"], "trained biases not supported"),
    ([*GOOD, f"{P}head.modules_to_save.default.weight"], "modules_to_save"),
    ([*GOOD, f"{P}head.weight"], "full weights not supported: 1 tensor, 'base_model.model.head"),
    ([*GOOD, f"{P}m.base_layer.weight"], "full weights not supported"),
    (both(f"{P}m.base_layer"), "target_parameters"),
    (["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"], "kohya LoRA names"),
    (["transformer.x.lora_down.weight"], "kohya LoRA names"),
    (["unet.to_q_lora.up.weight"], "old diffusers LoRA names"),
    (["unet.to_q.lora.up.weight"], "old diffusers LoRA names"),
    (["double_blocks.0.processor.qkv_lora1.down.weight"], "XLabs"),
    (["lora_unet_x.hada_w1_a"], "LyCORIS"),
    (["lora_unet_x.lokr_w1"], "LyCORIS"),
    ([f"{P}m.lora_E"], "AdaLoRA"),
    ([f"{P}m.ia3_l"], "IA3"),
    (["something.else"], "tensors are not LoRA pairs: 1 tensor, 'something.else'"),
    (["lora_A.weight", "lora_B.weight"], "full weights not supported: 2 tensors"),
    ([f"w{i}.weight" for i in range(5)], "5 tensors, 'w0.weight', 'w1.weight', 'w2.weight' and 2"),
]


@pytest.mark.parametrize(("names", "words"), REFUSED, ids=[w[:30] for _, w in REFUSED])
def test_refusals_name_the_variant(names: list[str], words: str) -> None:
    with pytest.raises(RejectedClient) as caught:
        pair_keys(shapes(*names))
    assert words in caught.value.message


def test_axes_of_convolutions() -> None:
    key_A, key_B = both("conv")
    with pytest.raises(RejectedClient, match=r"convolution.*4 axes") as caught:
        pair_keys({key_A: (2, 3, 3, 3), key_B: (4, 2, 1, 1)})
    assert caught.value.module == "conv"
    with pytest.raises(RejectedClient, match="has 1 axes"):
        pair_keys({key_A: (2, 3), key_B: (4,)})
