"""The hold-out is the same part of every class, and nothing is trained on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_runs import QUICK
from small_images import make_images

import dim.distillation.distill
from dim.data.holdout import holdout_mask
from dim.distillation.distill import distill
from dim.execution.device_data import DeviceData
from dim.presets import preset


def test_every_class_gives_the_same_part_and_keeps_one_image() -> None:
    labels = np.repeat(np.arange(4), [100, 40, 2, 1])
    held = holdout_mask(labels, 4, 0.05, seed=0)
    assert np.bincount(labels[held], minlength=4).tolist() == [5, 2, 1, 0]
    assert (held == holdout_mask(labels, 4, 0.05, seed=0)).all()
    assert (held != holdout_mask(labels, 4, 0.05, seed=1)).any()


@pytest.mark.slow
def test_nothing_is_trained_on_the_hold_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DeviceData] = []

    class Recorded(DeviceData):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(dim.distillation.distill, "DeviceData", Recorded)
    data = make_images()
    distill(data, preset("tiny", data=data, overrides={**QUICK, "stage1.steps": 1}), tmp_path / "run", device="cpu")
    trained, held = (
        {image.numpy().tobytes() for image in part.images.gather(torch.arange(len(part.labels_N)))} for part in made
    )
    everything = {image.transpose(2, 0, 1).tobytes() for image in data.train_images}
    assert trained | held == everything
    assert not trained & held
    assert (tmp_path / "run" / "deployment.json").exists()
