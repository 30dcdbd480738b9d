"""Which GPUs a host has, and how its slots share them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperfarm.errors import UsageError
from hyperfarm.worker.commands import parse_devices, parse_slots
from hyperfarm.worker.devices import automatic_slots, cores, present, share


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two GPUs, as nvidia-smi lists them."""
    script = tmp_path / "nvidia-smi"
    lines = "GPU 0: Tesla T4 (UUID: GPU-1)\\nGPU 1: Tesla T4 (UUID: GPU-2)\\n"
    script.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("devices", "slots", "each"),
    [
        ((), 2, [(), ()]),
        (("0", "1"), 2, [("0",), ("1",)]),
        (("0", "1", "2", "3"), 2, [("0", "2"), ("1", "3")]),
        (("0", "1", "2"), 2, [("0", "2"), ("1",)]),
        (("0", "1"), 5, [("0",), ("1",), ("0",), ("1",), ("0",)]),
    ],
)
def test_sharing_out(devices: tuple[str, ...], slots: int, each: list[tuple[str, ...]]) -> None:
    assert share(devices, slots) == each


def test_gpus_are_found(nvidia: None) -> None:
    assert present() == ("0", "1")
    assert parse_devices("auto") == ("0", "1")
    assert automatic_slots(present()) == 2
    assert parse_slots("auto", present()) == 2


def test_what_the_environment_allows_is_all_there_is(nvidia: None) -> None:
    assert present({"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
    assert present({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert present({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


def test_without_gpus_there_is_a_slot_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert present() == ()
    assert parse_devices("auto") is None
    assert parse_slots("auto", ()) == cores() >= 1


def test_options() -> None:
    assert parse_devices("none") == ()
    assert parse_devices("0, 2") == ("0", "2")
    assert parse_slots("3", ()) == 3
    for text in ("0,0", "", "0,"):
        with pytest.raises(UsageError, match="--devices"):
            parse_devices(text)
    for text in ("0", "many", "-1", "1025", "²"):
        with pytest.raises(UsageError, match="--slots"):
            parse_slots(text, ())
