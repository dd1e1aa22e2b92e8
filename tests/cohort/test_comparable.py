"""The majority decides: shapes, bases, flags, module sets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
import torch

from clair_cli.cohort.comparable import check_comparable
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.model import Cohort
from clair_cli.errors import InputRefused
from tests.cohorts import texts
from tests.hostile import config, pair

Shapes = Mapping[str, tuple[int, int]]


def state(shapes: Shapes) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for module, shape in shapes.items():
        tensors |= pair(module, shape=shape)
    return tensors


def cohort(**clients: tuple[Shapes, dict[str, Any]]) -> Cohort:
    return adapters_from_memory(
        {name: (state(shapes), config(**more)) for name, (shapes, more) in clients.items()}
    )


Q: Shapes = {"q": (6, 8)}
QK: Shapes = {"q": (6, 8), "k": (4, 8)}


def names(found: Any) -> list[str]:
    return [adapter.name for adapter in found.adapters]


def test_equal_clients_pass_without_a_word() -> None:
    found = check_comparable(cohort(a=(QK, BASE), b=(QK, BASE), c=(QK, BASE)))
    assert names(found) == ["a", "b", "c"]
    shapes = [(name, layout.matrix) for name, layout in found.layouts.items()]
    assert shapes == [("k", (4, 8)), ("q", (6, 8))]
    assert (found.rejected, texts(found.notes)) == ((), ())


BASE = {"base_model_name_or_path": "org/base"}


def test_a_minority_shape_is_rejected_by_name() -> None:
    found = check_comparable(cohort(a=(QK, {}), b=(QK, {}), c=({"q": (6, 9), "k": (4, 8)}, {})))
    assert names(found) == ["a", "b"]
    assert [entry.message for entry in found.rejected] == [
        "client 'c', module 'q': delta weight has shape (6, 9), 2 of 3 clients have (6, 8)"
    ]


def test_shapes_without_a_majority_end_the_round() -> None:
    with pytest.raises(InputRefused, match=r"module 'q': \(6, 8\) \('a'\); \(6, 9\) \('b'\)"):
        check_comparable(cohort(a=(Q, {}), b=({"q": (6, 9)}, {})))


def test_a_tie_in_a_module_of_few_clients_leaves_it_out() -> None:
    odd = {"x": (3, 3)}
    other = {"x": (3, 4)}
    found = check_comparable(
        cohort(a=(Q, {}), b=(Q, {}), c=(Q, {}), d=({**Q, **odd}, {}), e=({**Q, **other}, {}))
    )
    assert list(found.layouts) == ["q"]
    assert len(found.adapters) == 5
    assert any("module 'x' left out" in note for note in texts(found.notes))


def test_ties_are_told_up_to_a_bound() -> None:
    def with_modules(width: int, n: int) -> Shapes:
        return {**QK, **{f"x{i}": (3, width) for i in range(n)}}

    for n, told in ((20, 20), (21, 21)):
        found = check_comparable(
            cohort(
                **dict.fromkeys("abc", (QK, BASE)),
                d=(with_modules(3, n), BASE), e=(with_modules(4, n), BASE),
            )
        )  # fmt: skip
        assert len(found.notes) == told
    assert texts(found.notes)[-1] == "and 1 more modules left out, whose shapes have no majority"


def test_a_client_without_a_shared_module_is_rejected() -> None:
    found = check_comparable(cohort(a=(QK, {}), b=(Q, {}), c=({"z": (3, 3)}, {})))
    assert names(found) == ["a", "b"]
    assert "client 'c': shares no module with the majority" in found.rejected[0].message
    with pytest.raises(InputRefused, match="no module is shared"):
        check_comparable(cohort(a=({"x": (3, 3)}, {}), b=({"y": (3, 3)}, {})))


@pytest.mark.parametrize(("n_clients", "fewest"), [(2, 1), (3, 2), (4, 2), (5, 3), (9, 3)])
def test_a_common_module_is_one_that_enough_clients_have(n_clients: int, fewest: int) -> None:
    for holders in (fewest, fewest - 1):
        clients = {f"c{k}": (QK if k < holders else Q, BASE) for k in range(n_clients)}
        found = check_comparable(cohort(**clients))
        assert list(found.layouts) == (["k", "q"] if holders == fewest else ["q"])
        assert names(found) == list(clients)


@pytest.mark.parametrize(
    ("count", "last"), [(20, "1 module ('x19') absent"), (21, "and 1 more notes on modules")]
)
def test_twenty_groups_of_absent_modules_are_noted(count: int, last: str) -> None:
    """Each module is one that two clients lack, and each time two others."""
    lacking = list(combinations(range(7), 2))[:count]
    clients = {
        f"c{k}": (
            {**Q, **{f"x{i:02}": (3, 3) for i, two in enumerate(lacking) if k not in two}},
            BASE,
        )
        for k in range(7)
    }
    notes = texts(check_comparable(cohort(**clients)).notes)
    assert len(notes) == count and notes[-1].startswith(last)


def test_modules_that_few_have_are_left_out_in_one_note() -> None:
    """However many they are, and whoever has them."""
    many: Shapes = {**Q, **{f"x{i:02}": (3, 3) for i in range(20)}}
    found = check_comparable(
        cohort(a=(many, BASE), b=(many, BASE), **dict.fromkeys("cdefg", (Q, BASE)))
    )
    assert list(found.layouts) == ["q"] and len(found.adapters) == 7
    assert texts(found.notes) == (
        "20 modules ('x00', 'x01', 'x02' and 17 more) left out: fewer than 3 of 7 clients have "
        "each (2 clients ('a', 'b'))",
    )
    every = check_comparable(cohort(a=(many, BASE), **dict.fromkeys("bcdefg", (Q, BASE))), "union")
    assert len(every.layouts) == 21


def test_module_sets() -> None:
    clients = cohort(a=(QK, BASE), b=(QK, BASE), c=(Q, BASE))
    for modules in ("common", "union"):
        found = check_comparable(clients, modules)  # type: ignore[arg-type]
        assert list(found.layouts) == ["k", "q"]
        assert texts(found.notes) == (
            "1 module ('k') absent from 1 client ('c'): a zero update there",
        )
    shared = check_comparable(clients, "intersection")
    assert list(shared.layouts) == ["k", "q"] and names(shared) == ["a", "b", "c"]
    assert texts(shared.notes) == (
        "1 module ('k') absent from 1 client ('c'): left out where such a client is merged",
    )
    strict = check_comparable(clients, "same")
    assert names(strict) == ["a", "b"]
    assert "client 'c': lacks 1 module ('k') that most clients have" in strict.rejected[0].message
    with pytest.raises(ValueError, match="one of common, union"):
        check_comparable(clients, "all")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [20, 21])
def test_at_most_twenty_notes_say_who_lacks_what(count: int) -> None:
    whole: Shapes = {f"m{k:02}": (6, 8) for k in range(count)}
    clients = {
        f"c{k:02}": ({m: shape for m, shape in whole.items() if m != f"m{k:02}"}, BASE)
        for k in range(count)
    }
    notes = texts(check_comparable(cohort(**clients)).notes)
    assert notes[0] == "1 module ('m00') absent from 1 client ('c00'): a zero update there"
    more = ("and 1 more notes on modules absent from some clients",)
    assert notes[20:] == (() if count == 20 else more)


def test_intersection_rejects_who_lacks_most_of_the_majoritys_modules() -> None:
    """One who lacks half of them still counts."""
    whole: Shapes = dict.fromkeys("klmq", (6, 8))
    half, less = (dict.fromkeys(some, (6, 8)) for some in ("kl", "k"))
    found = check_comparable(
        cohort(a=(whole, BASE), b=(whole, BASE), c=(whole, BASE), d=(half, BASE), e=(less, BASE)),
        "intersection",
    )
    assert names(found) == ["a", "b", "c", "d"] and list(found.layouts) == list("klmq")
    assert [entry.message for entry in found.rejected] == [
        "client 'e': lacks 3 modules ('l', 'm', 'q') that most clients have, more than half of "
        "those 4"
    ]


@pytest.mark.parametrize("modules", ["common", "union"])
def test_far_more_modules_than_the_majority_has(modules: Any) -> None:
    """Beside two modules of the majority, 4 x 2 + 16 others may be."""
    for beyond, kept in ((24, True), (25, False)):
        many: Shapes = {**QK, **{f"x{i:02}": (1, 1) for i in range(beyond)}}
        found = check_comparable(
            cohort(a=(QK, BASE), b=(QK, BASE), c=(QK, BASE), odd=(many, BASE)), modules
        )
        assert ("odd" in names(found)) is kept
    assert [entry.message for entry in found.rejected] == [
        "client 'odd': has 25 modules beyond the 2 that most clients have, at most 24 may be "
        "('x00', 'x01', 'x02' and 22 more)"
    ]
    assert found.rejected[0].hint == "" and len(found.layouts) == 2


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        (BASE, {"base_model_name_or_path": "org/other"}, "is 'org/other', 2 of 3 clients have"),
        ({}, {"fan_in_fan_out": True}, "fan_in_fan_out is true, 2 of 3 clients have false"),
        ({}, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', 2 of 3 clients have"),
    ],
)
def test_config_minorities(ours: dict[str, Any], other: dict[str, Any], words: str) -> None:
    found = check_comparable(cohort(a=(Q, ours), b=(Q, ours), c=(Q, other)))
    assert names(found) == ["a", "b"]
    assert words in found.rejected[0].message
    with pytest.raises(
        InputRefused, match=r"no majority for .*\('[ac]'\); 1 client has .*\('[ac]'\)"
    ):
        check_comparable(cohort(a=(Q, ours), c=(Q, other)))


def test_local_and_missing_bases_are_notes() -> None:
    local = {"base_model_name_or_path": "/data/models/base/"}
    found = check_comparable(cohort(a=(Q, BASE), b=(Q, BASE), c=(Q, local), d=(Q, {})))
    assert names(found) == ["a", "b", "c", "d"]
    assert texts(found.notes) == ("base model not named by 1 client: 'd'",)
    odd = {"base_model_name_or_path": "/data/models/other"}
    found = check_comparable(cohort(a=(Q, BASE), b=(Q, BASE), c=(Q, odd)))
    assert names(found) == ["a", "b", "c"]
    assert (
        "local path that can't be compared: 1 client has '/data/models/other'"
        in texts(found.notes)[0]
    )


def test_two_named_clients_of_many_do_not_end_the_round() -> None:
    other = {"base_model_name_or_path": "org/other"}
    clients: dict[str, Any] = {f"c{i}": (Q, {}) for i in range(5)}
    found = check_comparable(cohort(a=(Q, BASE), b=(Q, other), **clients))
    assert len(found.adapters) == 7
    assert any("base_model_name_or_path differs" in note for note in texts(found.notes))


def test_a_shared_init_is_a_warning() -> None:
    pissa = {"init_lora_weights": "pissa", "revision": "v1"}
    found = check_comparable(cohort(a=(Q, pissa), b=(Q, pissa | {"revision": "v2"})))
    assert names(found) == ["a", "b"]
    assert any("all clients used init_lora_weights 'pissa'" in note for note in texts(found.notes))
    assert any("revisions differ" in note for note in texts(found.notes))


def test_no_client_is_left() -> None:
    with pytest.raises(InputRefused, match="no usable client"):
        check_comparable(Cohort(adapters=()))


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "corda", "eva", "lora_ga"])
def test_an_init_that_all_must_share(init: str) -> None:
    """Accepted with a warning where all have it; who has another, or says nothing, goes."""
    same = {"init_lora_weights": init}
    found = check_comparable(cohort(a=(Q, same), b=(Q, same), c=(Q, same)))
    assert names(found) == ["a", "b", "c"]
    assert any(
        f"all clients used init_lora_weights '{init}'" in note for note in texts(found.notes)
    )
    found = check_comparable(cohort(a=(Q, same), b=(Q, same), c=(Q, {})))
    assert names(found) == ["a", "b"]
    assert f"2 of 3 clients have '{init}'" in found.rejected[0].message
    found = check_comparable(cohort(a=(Q, same), b=(Q, {}), c=(Q, {})))
    assert names(found) == ["b", "c"]
    with pytest.raises(InputRefused, match="no majority for init_lora_weights"):
        check_comparable(cohort(a=(Q, same), b=(Q, {})))


def test_a_client_that_says_nothing_of_its_init_goes() -> None:
    kohya = {"q.lora_down.weight": torch.ones(2, 8), "q.lora_up.weight": torch.ones(6, 2)}
    fields = config(init_lora_weights="pissa")
    clients = {"a": (state(Q), fields), "b": (state(Q), fields), "k": (kohya, None)}
    found = check_comparable(adapters_from_memory(clients))
    assert names(found) == ["a", "b"]
    assert "its init_lora_weights is not known, the other clients have 'pissa'" in (
        found.rejected[0].message
    )


def test_one_config_does_not_part_with_clients_that_have_none() -> None:
    """Whose init is not known is taken for ordinary, unless most say what all must share."""
    kohya = {"q.lora_down.weight": torch.ones(2, 8), "q.lora_up.weight": torch.ones(6, 2)}
    silent: dict[str, Any] = {f"k{i}": (kohya, None) for i in range(3)}
    pissa = (state(Q), config(init_lora_weights="pissa"))
    found = check_comparable(adapters_from_memory({**silent, "a": pissa}))
    assert names(found) == ["k0", "k1", "k2"]
    assert "init_lora_weights is 'pissa', 3 of 4 clients have an ordinary one" in (
        found.rejected[0].message
    )
    plain = (state(Q), config())
    found = check_comparable(adapters_from_memory({**silent, "a": pissa, "b": plain}))
    assert names(found) == ["b", "k0", "k1", "k2"]
    olora = (state(Q), config(init_lora_weights="olora"))
    with pytest.raises(InputRefused, match="no majority for init_lora_weights"):
        check_comparable(
            adapters_from_memory({"a": pissa, "b": olora, "k0": silent["k0"], "k1": silent["k1"]})
        )


def test_two_configs_of_many_do_not_end_the_round() -> None:
    kohya = {"q.lora_down.weight": torch.ones(2, 8), "q.lora_up.weight": torch.ones(6, 2)}
    clients: dict[str, Any] = {f"k{i}": (kohya, None) for i in range(3)}
    clients |= {"a": (state(Q), config()), "b": (state(Q), config(fan_in_fan_out=True))}
    found = check_comparable(adapters_from_memory(clients))
    assert len(found.adapters) == 5
    assert any("fan_in_fan_out differs: 1 client has false ('a')" in n for n in texts(found.notes))
    local = {"base_model_name_or_path": "/data/base"}
    other = {"base_model_name_or_path": "org/other"}
    found = check_comparable(cohort(a=(Q, BASE), b=(Q, other), c=(Q, local), d=(Q, local)))
    assert len(found.adapters) == 4
    assert any("base_model_name_or_path differs" in note for note in texts(found.notes))


def test_one_name_means_one_kind_of_layer() -> None:
    """An embedding's update is a matrix of its own, even where the shapes agree."""
    embedding = {f"base_model.model.q.lora_embedding_{s}": t
                 for s, t in (("A", torch.ones(2, 8)), ("B", torch.ones(6, 2)))}  # fmt: skip
    clients = {"a": (state(Q), config()), "b": (state(Q), config()), "e": (embedding, config())}
    found = check_comparable(adapters_from_memory(clients))
    assert names(found) == ["a", "b"]
    assert "delta weight has shape (8, 6) (embedding), 2 of 3 clients have (6, 8)" in (
        found.rejected[0].message
    )
