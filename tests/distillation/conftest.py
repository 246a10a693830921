"""What the tests of distillation share."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick_runs import quick
from small_images import make_images

from dim.distillation.distill import DistillResult, distill


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert distill(make_images(), quick(), run_dir) == DistillResult(run_dir=run_dir, finished=True)
    return run_dir
