"""How many threads a distillation takes."""

from __future__ import annotations

import pytest
import torch

from dim.execution.threads import default_threads, use_cpu_threads
from dim.runtime.cores import usable_cores
from dim.runtime.errors import BadValueError


def test_threads_are_set_inside_and_put_back() -> None:
    before = torch.get_num_threads()
    with use_cpu_threads(other := 1 if before > 1 else 2):
        assert torch.get_num_threads() == other != before
    with use_cpu_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
    with pytest.raises(BadValueError, match="threads is 0; it must lie between 1 and"), use_cpu_threads(0):
        pass


def test_every_usable_core_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads() == torch.get_num_threads()
