"""Documents of other programs' formats as JSON."""

from __future__ import annotations

import json
from typing import Any


def json_bytes(document: Any) -> bytes:
    """A document as JSON: ASCII, keys sorted, and no `##[` that a CI system would obey in a log."""
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    return (text.replace("##", "#\\u0023") + "\n").encode("ascii")
