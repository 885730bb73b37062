import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sweeping import Case, sweep

SHARES = {"trees": 0.18, "lists": 0.16, "recipes": 0.26, "texts": 0.16, "tars": 0.16, "folders": 0.08}  # of all inputs


@pytest.fixture
def fuzz(tmp_path, monkeypatch, capsys) -> Callable[..., None]:
    """Sweep a kind of input, as many as its share is of VITWARM_FUZZ inputs, or of 500."""
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)

    def run(kind: str, make: Callable[..., Case], **more) -> None:
        number = max(1, round(SHARES[kind] * int(os.environ.get("VITWARM_FUZZ", "500"))))
        found = sweep(kind, make, Path(tmp_path), number, **more)
        with capsys.disabled():
            print(f"\n{found}")
        assert not found.failures, "\n".join(found.failures[:30])

    return run
