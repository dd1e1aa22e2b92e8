"""A refinement in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clair_cli.words.refined import refined_words
from tests.fake_report import fake_report


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((None, None), "can't be known without --noise, or --weights"),
        ((0.1, 0.3), "that takes about 20% off a client's error"),
        ((0.1, -0.3), "that takes about 10% off a client's error"),
        ((0.0, -0.3), "no gain is expected"),
    ],
)
def test_the_gain(gains: tuple[float | None, ...], words: str) -> None:
    refined = fake_report(command="refine").refined
    assert refined is not None
    clients = tuple(
        replace(client, gain=gain, kept_local=False)
        for client, gain in zip(refined.clients, gains, strict=False)
    )
    said = refined_words(replace(refined, side="both", clients=clients))
    assert said.startswith("what the clients do not share is averaged on both sides of their upd")
    assert words in said and "kept" not in said
    kept = (replace(clients[0], kept_local=True), clients[1])
    assert refined_words(replace(refined, clients=kept)).endswith(
        "; 1 kept as they are, as refinement is not sure to help"
    )
