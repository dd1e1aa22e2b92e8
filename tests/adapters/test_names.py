"""Tensor names: what is paired, and what is refused under which name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clair_cli.adapters.layout import layout_of
from clair_cli.adapters.names.pair import pair_keys
from clair_cli.errors import RejectedClient

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
        ("base_model.module.model.layers.0.q", ".weight", P, "layers.0.q"),
        (f"module._orig_mod.module.{P}layers.0._fsdp_wrapped_module.q", ".weight", P, "layers.0.q"),
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
    ([*GOOD, f"{P}e.lora_embedding_A"], "lora_A has no lora_B beside it"),
    ([f"{P}e.lora_embedding_A", f"{P}e.lora_B.weight"], "names of two kinds"),
    ([*GOOD, f"{P}m.lora_magnitude_vector"], "DoRA not supported"),
    ([*GOOD, f"{P}m.lora_magnitude_vector.default.weight"], "DoRA not supported"),
    ([f"{P}head.weight"], "full weights not supported: 1 tensor, 'base_model.model.head"),
    ([*GOOD, f"{P}head.weight", f"{P}m.lora_diag"], "KaSA"),
    ([*GOOD, f"{P}head.weight", f"{P}odd"], "tensors are not LoRA pairs: 1 tensor, 'base_m"),
    ([*GOOD, f"{P}head.weight", f"{P}head.modules_to_save.x.weight"], "two tensors for 'head.w"),
    (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "x.bias"], "full weights"),
    (both(f"{P}m.base_layer.out_proj"), "multi-head attention not supported"),
    (["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"], "lora_A has no lora_B beside it"),
    (["unet.to_q_lora.up.weight"], "lora_B has no lora_A beside it"),
    ([*GOOD, f"{P}n.alpha"], "alpha without the factors it scales: 'base_model.model.n.alpha'"),
    ([*GOOD, f"{P}n.lora_down.weight", f"{P}n.lora_up.weight"], "two formats in one file: 'kohya'"),
    (["unet.x.to_q_lora.up.weight", "unet.x.to_q.lora.up.weight"], "two tensors for one lora_B"),
    (["double_blocks.0.processor.qkv_lora1.down.weight"], "XLabs"),
    (["lora_unet_x.hada_w1_a", "lora_unet_x.alpha"], "LoHa not supported"),
    ([f"{P}m.hada_w1_a"], "LoHa not supported"),
    (["lora_unet_x.lokr_w1"], "LoKr not supported"),
    (["lora_unet_x.lora_mid.weight"], "Tucker LoCon"),
    (["lora_unet_x.oft_blocks"], "LyCORIS"),
    (["lora_unet_x.dora_scale"], "DoRA"),
    ([*GOOD, f"{P}m.lora_diag"], "KaSA"),
    ([f"{P}m.lora_E"], "AdaLoRA"),
    ([f"{P}m.ia3_l"], "IA3"),
    (
        [
            f"model.layers.0.self_attention.linear_qkv.adapter.linear_{s}.weight"
            for s in ("in", "out")
        ],
        "NeMo's LoRA names (linear_in, linear_out) not supported: 2 tensors",
    ),
    (["layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"], "NeMo's LoRA"),
    (
        ["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"],
        "torchtune's LoRA names (lora_a, lora_b) not supported: 2 tensors",
    ),
    (["blocks.0.attn.linear_in.weight", "blocks.0.attn.linear_out.weight"], "full weights"),
    (["something.else"], "tensors are not LoRA pairs: 1 tensor, 'something.else'"),
    (["lora_A.weight", "lora_B.weight"], "full weights not supported: 2 tensors"),
    ([f"w{i}.weight" for i in range(5)], "5 tensors, 'w0.weight', 'w1.weight', 'w2.weight' and 2"),
]


@pytest.mark.parametrize(("names", "words"), REFUSED, ids=[w[:30] for _, w in REFUSED])
def test_refusals_name_the_variant(names: list[str], words: str) -> None:
    with pytest.raises(RejectedClient) as caught:
        pair_keys(shapes(*names))
    assert words in caught.value.message


def test_lora_by_other_names_gets_a_hint() -> None:
    for key, word in (("x.adapter.linear_in.weight", "NeMo"), ("x.lora_a.weight", "torchtune")):
        with pytest.raises(RejectedClient) as caught:
            pair_keys(shapes(key))
        assert word in caught.value.hint


K = "lora_unet_down_blocks_0_attentions_1_proj_in"
OLD = "unet.down_blocks.0.attn1.processor"
TEXT = "text_encoder.text_model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("factors", "module", "format_", "inside"),
    [
        ((f"{K}.lora_down.weight", f"{K}.lora_up.weight"), K, "kohya", True),
        (("t.x.lora_down.weight", "t.x.lora_up.weight"), "t.x", "kohya", True),
        (
            (f"{OLD}.to_out_lora.down.weight", f"{OLD}.to_out_lora.up.weight"),
            "unet.down_blocks.0.attn1.to_out.0",
            "diffusers",
            True,
        ),
        (
            (f"{TEXT}.to_out_lora.down.weight", f"{TEXT}.to_out_lora.up.weight"),
            f"{TEXT}.out_proj",
            "diffusers",
            True,
        ),
        (
            (f"{TEXT}.q_proj.lora_linear_layer.down.weight",
             f"{TEXT}.q_proj.lora_linear_layer.up.weight"),
            f"{TEXT}.q_proj",
            "diffusers",
            True,
        ),
        (("unet.x.to_q.lora.down.weight", "unet.x.to_q.lora.up.weight"), "unet.x.to_q",
         "diffusers", True),
        (tuple(both("unet.x.to_q")), "unet.x.to_q", "diffusers", True),
        (tuple(both(f"{P}unet.x.to_q")), "unet.x.to_q", "peft", False),
        (tuple(both("transformer.h.0.c_attn")), "transformer.h.0.c_attn", "peft", False),
        (tuple(both("transformer.transformer_blocks.0.attn.to_q")),
         "transformer.transformer_blocks.0.attn.to_q", "diffusers", True),
        ((f"{P}e.lora_embedding_A", f"{P}e.lora_embedding_B"), "e", "peft", False),
        ((f"{P}e.lora_embedding_A.x", f"{P}e.lora_embedding_B.x"), "e", "peft", False),
    ],
)  # fmt: skip
def test_other_formats(factors: tuple[str, str], module: str, format_: str, inside: bool) -> None:
    found = pair_keys(shapes(*factors))
    (pair,) = found.pairs
    assert (pair.module, pair.key_A, pair.key_B) == (module, *factors)
    assert (found.format, found.scale_inside) == (format_, inside)
    assert pair.embedding == ("embedding" in factors[0])


def test_alphas_go_with_their_module() -> None:
    names = [*both(f"{P}m"), f"{P}m.alpha", *both(f"{P}n"), f"{P}n.alpha"]
    found = pair_keys(shapes(*names))
    assert [pair.key_alpha for pair in found.pairs] == [f"{P}m.alpha", f"{P}n.alpha"]
    assert (found.format, found.scale_inside) == ("peft", True)
    assert not pair_keys(shapes(*names[:-1])).scale_inside


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        (f"{P}head.weight", "head.weight", "dense"),
        ("head.dense.bias", "head.dense.bias", "dense"),
        (f"module.{P}head.modules_to_save.default.out.gamma", "head.out.gamma", "dense"),
        (f"{P}e.base_layer.weight", "e.base_layer.weight", "dense"),
        (f"{P}m.lora_B.bias", "m.lora_B.bias", "lora_bias"),
        (f"{P}m.lora_B.default.bias", "m.lora_B.bias", "lora_bias"),
        (f"{P}e.token_adapter.trainable_tokens_delta",
         "e.token_adapter.trainable_tokens_delta", "rows"),
        (f"{P}e.token_adapter.trainable_tokens_delta.default",
         "e.token_adapter.trainable_tokens_delta", "rows"),
    ],
)  # fmt: skip
def test_what_is_trained_as_a_whole_beside_the_pairs(key: str, name: str, kind: str) -> None:
    found = pair_keys(shapes(*GOOD, key))
    assert [(d.name, d.key, d.kind) for d in found.dense] == [(name, key, kind)]


def test_a_second_copy_of_a_heads_bias_is_left() -> None:
    """PEFT writes both names with bias "all"; they are one tensor."""
    names = [*GOOD, f"{P}head.bias", f"{P}head.modules_to_save.bias"]
    assert [d.name for d in pair_keys(shapes(*names)).dense] == ["head.bias"]


@pytest.mark.parametrize(
    "key", [f"{P}head.original_module.weight", f"{P}e.token_adapter.base_layer.weight"]
)
def test_the_base_models_copy_in_a_dump_from_memory_is_nobodys_training(key: str) -> None:
    assert pair_keys(shapes(*GOOD, key)).dense == ()


LAYOUTS = [
    ((2, 8), (6, 2), False, "linear", (6, 8), (6, 8)),
    ((2, 9), (6, 2), True, "embedding", (9, 6), (6, 9)),
    ((2, 3, 5), (4, 2, 1), False, "convolution", (4, 3, 5), (4, 15)),
    ((2, 3, 1, 1), (4, 2, 1, 1), False, "convolution", (4, 3, 1, 1), (4, 3)),
    ((2, 3, 3, 5), (4, 2, 1, 1), False, "convolution", (4, 3, 3, 5), (4, 45)),
    ((2, 3, 2, 2, 2), (4, 2, 1, 1, 1), False, "convolution", (4, 3, 2, 2, 2), (4, 24)),
]


@pytest.mark.parametrize(("a", "b", "embedding", "kind", "weight", "matrix"), LAYOUTS)
def test_layouts(a: Any, b: Any, embedding: bool, kind: str, weight: Any, matrix: Any) -> None:
    layout, rank = layout_of(a, b, embedding=embedding)
    assert (layout.kind, layout.weight, layout.matrix, rank) == (kind, weight, matrix, 2)
    lora_A, lora_B = torch.randn(a), torch.randn(b)
    flat_A, flat_B = layout.flat(lora_A, lora_B)
    assert (flat_B @ flat_A).shape == matrix
    again_A, again_B = layout.stored(flat_A, flat_B)
    assert torch.equal(again_A, lora_A)
    assert torch.equal(again_B, lora_B)


@pytest.mark.parametrize(
    ("a", "b", "embedding", "words"),
    [
        ((2, 3), (4,), False, "lora_A has 2 axes, shape (2, 3), and lora_B has 1 axis"),
        ((2,), (4,), False, "1 axis"),
        ((2, 3, 3, 3), (4, 2), False, "4 axes"),
        ((2, 3, 3, 3), (4, 2, 3, 3), False, "lora_B of a convolution has kernel (3, 3)"),
        ((4, 2, 8), (4, 6, 2), False, "are stacked factors, one pair for each of 4 experts"),
        ((2, 8, 3), (6, 2, 3), False, "lora_B of a convolution has kernel (3,)"),
        ((4, 3, 3, 3), (8, 2, 1, 1), False, "grouped convolution (2 groups) is not supported"),
        ((4, 3, 3, 3), (8, 3, 1, 1), False, "lora_A has rank 4 but lora_B has rank 3"),
        ((4, 3), (8, 2), False, "lora_A has rank 4 but lora_B has rank 2"),
        ((2, 3, 1), (4, 2, 1), True, "3 axes"),
    ],
)
def test_shapes_that_are_no_product(a: Any, b: Any, embedding: bool, words: str) -> None:
    with pytest.raises(RejectedClient) as caught:
        layout_of(a, b, embedding=embedding)
    assert words in caught.value.message
