"""What the cases on a pretend device start from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clair_cli.engine import engine
from clair_cli.engine.device import Device
from tests.pretend import device as pretend


@pytest.fixture(autouse=True, scope="session")
def registered() -> None:
    try:
        pretend.register()
    except ImportError:
        pytest.skip("this torch has no such devices")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call something with everything on the device; it must have done some work."""

    def call(
        function: Any, *args: Any, products: torch.dtype = torch.float64, **options: Any
    ) -> Any:
        before = len(pretend.counted)
        with monkeypatch.context() as patch:
            device = Device(pretend.NAME, products)
            patch.setattr(engine, "choose_device", lambda wanted: device)
            result = function(*args, **options)
        assert len(pretend.counted) > before + 20
        return result

    return call
