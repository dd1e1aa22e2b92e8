"""The recipes of docs/federated.md, to be run."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "federated.md"


def recipe(title: str) -> str:
    """The first Python block after a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    block = re.search(r"^```python\n(.*?)^```", found[1], re.MULTILINE | re.DOTALL)
    assert block is not None, title
    return block[1]
