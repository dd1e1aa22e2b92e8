"""How long a number may be in JSON of strangers."""

from __future__ import annotations

import pytest

from clair_cli.formats.strict_json import parse_strict


@pytest.mark.parametrize(
    ("longest", "longer"),
    [("9" * 20, "9" * 21), ("-" + "9" * 19, "-" + "9" * 20), ("0." + "1" * 62, "0." + "1" * 63)],
    ids=["integer", "negative", "float"],
)
def test_the_longest_numbers(longest: str, longer: str) -> None:
    assert float(parse_strict(longest.encode(), "it", 100)) == float(longest)
    with pytest.raises(ValueError, match=f"a number of {len(longer)} digits"):
        parse_strict(longer.encode(), "it", 100)
