"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from perception.model.devices import find_device, find_dtype


def test_the_best_device_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))
    assert find_device() == torch.device("meta") and find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert find_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here .*; give cpu") as raised:
        find_device(name)
    assert "\n" not in str(raised.value)


def test_precisions() -> None:
    assert find_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'fp8'; known: float32, float16, bfloat16"):
        find_dtype("fp8")
