"""What the cases on a pretend device start from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clair_cli.engine import engine
from clair_cli.engine.device import Device
from tests.engine import pretend


@pytest.fixture(scope="session")
def pretend_device() -> None:
    """Known to torch from now on, since torch can't be told to forget a device: it is no harm to
    the tests that do not ask for it."""
    try:
        pretend.register()
    except ImportError:
        pytest.skip("this torch has no such devices")


@pytest.fixture
def far(pretend_device: None, monkeypatch: pytest.MonkeyPatch) -> Any:
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
