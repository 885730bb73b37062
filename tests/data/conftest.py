from pathlib import Path

import pytest
from tarmaking import samples, write_tar


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Three uneven tars with 7, 1 and 12 samples."""
    counts, first, paths = (7, 1, 12), 0, []
    for number, count in enumerate(counts):
        paths.append(write_tar(tmp_path / f"train-{number:03d}.tar", samples(count, first=first)))
        first += count
    return paths
