"""Settings for every test: one thread, no display, nothing of the user's own caches or settings."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

# A shared machine stalls at random, so no test may fail for being slow; examples are the same in every run.
settings.register_profile("dim", deadline=None, derandomize=True)
settings.load_profile("dim")


@pytest.fixture(autouse=True, scope="session")
def private_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Point `$DIM_CACHE` and `$DIM_DATA` to empty folders, and forget `$DIM_BUNDLE`."""
    folder = tmp_path_factory.mktemp("user")
    os.environ["DIM_CACHE"] = str(folder / "cache")
    os.environ["DIM_DATA"] = str(folder / "data")
    os.environ.pop("DIM_BUNDLE", None)
    return folder
