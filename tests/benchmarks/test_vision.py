"""Images and batches of the vision pools, without scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pools.settings import clients_of
from benchmarks.pools.store import seeded
from benchmarks.vision import clients, data
from benchmarks.vision.clients import BATCH, PATCH, SETTINGS, TARGET
from benchmarks.vision.data import Images

IMAGES = Images(torch.rand(1797, 8, 8, generator=seeded("x")), torch.arange(1797) % 10)


def test_pretraining_clients_and_held_out_images_are_apart() -> None:
    numbered = Images(torch.arange(1797.0).view(-1, 1, 1).expand(-1, 8, 8), IMAGES.labels)
    own, held = data.split(numbered, 0)
    before = data.pretraining(numbered)
    parts = [set(part.pixels[:, 0, 0].tolist()) for part in (data.inverted(before), own, held)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797
    assert len(held) == data.HELD_OUT


def test_clients_images_have_the_classes_of_their_group() -> None:
    some = data.client_images(IMAGES, "even", True, seeded(0))
    assert set(some.labels.tolist()) == {0, 2, 4, 6, 8}
    assert data.SIZES[0] <= len(some) <= data.SIZES[1]
    assert sorted(data.classes_of("low") + data.classes_of("high")) == data.classes_of("all")


def test_some_clients_have_corrupted_images() -> None:
    plain, other = (
        clients.own_images(
            next(c for c in clients_of(SETTINGS["corruption"]) if c.group == g), IMAGES, 0
        )
        for g in ("plain", "noisy")
    )
    known = {tuple(pixels.flatten().tolist()) for pixels in IMAGES.pixels}
    assert all(tuple(pixels.flatten().tolist()) in known for pixels in plain.pixels)
    assert not any(tuple(pixels.flatten().tolist()) in known for pixels in other.pixels)
    assert set(other.labels.tolist()) == set(range(10))
    assert float(other.pixels.min()) == 0.0 and float(other.pixels.max()) == 1.0


def test_clients_are_skewed_unless_iid() -> None:
    def largest_share(iid: bool) -> float:
        labels = [data.client_images(IMAGES, "all", iid, seeded(i)).labels for i in range(8)]
        return sum(float(one.bincount().max()) / len(one) for one in labels) / len(labels)

    assert largest_share(iid=True) < 0.2 < largest_share(iid=False)


def test_half_of_a_backdoored_batch_is_triggered() -> None:
    client = next(one for one in clients_of(SETTINGS["base"]) if one.kind == "backdoor")
    batch = next(clients.batches(client, IMAGES, 0))
    patches = batch.pixels[:, -PATCH:, -PATCH:].flatten(1)
    marked = (patches == 0).all(1)
    assert marked.tolist() == [True] * (BATCH // 2) + [False] * (BATCH // 2)
    assert set(batch.labels[marked].tolist()) == {TARGET}


@pytest.mark.parametrize(("kind", "wrong"), [("honest", False), ("random", True), ("label", True)])
def test_bad_clients_are_told_wrong_classes(kind: str, wrong: bool) -> None:
    client = next(one for one in clients_of(SETTINGS["base"]) if one.kind == kind)
    pixels = IMAGES.labels.view(-1, 1, 1).expand(-1, 8, 8) / 10
    batch = next(clients.batches(client, Images(pixels, IMAGES.labels), 0))
    truth = (10 * batch.pixels[:, 0, 0]).round().long()
    assert ((truth != batch.labels).double().mean() > 0.5) == wrong
