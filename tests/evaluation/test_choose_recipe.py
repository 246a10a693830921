"""The choice of a recipe on images held out of the training split."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_evaluations import QUICK_STUDENTS, divide_options

from dim.data.load import ImageSet
from dim.evaluation.choose_recipe import choose_recipe, list_candidates, split_holdout
from dim.runtime.errors import DataError
from dim.students.recipes import DEFAULT, read_recipe

CPU = torch.device("cpu")


def test_the_hold_out_is_cut_from_the_training_split_alone(data: ImageSet, tmp_path: Path) -> None:
    holdout = split_holdout(data)
    assert np.bincount(holdout.test_labels).tolist() == [3, 3, 3] and len(holdout.train_labels) == 81
    together = np.concatenate([holdout.train_images, holdout.test_images]).reshape(90, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, data.train_images.reshape(90, -1)))
    assert np.array_equal(holdout.test_images, split_holdout(data).test_images)
    with pytest.raises(DataError, match=r"class 'zero' has 1 training images; a hold-out needs two\.$"):
        split_holdout(replace(data, train_images=data.train_images[:3], train_labels=data.train_labels[:3]))


def test_nine_recipes_are_to_choose_from() -> None:
    names = [recipe.name for recipe in list_candidates("cifar10")]
    grid = [f"onecycle-{lr}-smooth-{smoothing}" for lr in ("0.03", "0.06", "0.12") for smoothing in ("0", "0.1")]
    assert names == ["published", "condensation", "condensation-all", *grid]
    every = {name: list_candidates(name)[2].augment for name in ("cifar10", "mnist")}
    assert every == {"cifar10": "color_crop_cutout_flip_scale_rotate", "mnist": "color_crop_cutout_scale_rotate"}


def test_the_recipe_that_learns_is_chosen(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(DEFAULT, name="slow", lr=1e-7)
    quick = replace(DEFAULT, name="quick", lr=0.1)
    said: list[str] = []
    protocol, execution = divide_options(
        QUICK_STUDENTS | {"modes": ("fixed",), "seeds": (0,), "epochs": 40, "width": 8}
    )
    monkeypatch.setattr("dim.evaluation.choose_recipe.list_candidates", lambda name: [slow, quick])
    chosen = choose_recipe(data, protocol, execution, out=tmp_path, say=said.append)
    assert chosen == quick and said[-1] == "Chosen on the hold-out: the recipe quick."
    described = json.loads((tmp_path / "recipe.json").read_text())
    assert described["chosen"]["name"] == "quick" and len(described["candidates"]) == 2
    assert described["candidates"][1]["rows"][0]["test_images"] == 9


def test_a_chosen_recipe_is_read_again(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(DEFAULT, name="one", lr=0.03)
    protocol, execution = divide_options(QUICK_STUDENTS | {"modes": ("fixed",), "seeds": (0,)})
    monkeypatch.setattr("dim.evaluation.choose_recipe.list_candidates", lambda name: [one])
    choose_recipe(data, protocol, execution, out=tmp_path)
    assert read_recipe(tmp_path / "recipe.json") == one
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(DataError, match=rf"{name} is not the recipe\.json of an earlier choice: make one with"):
            read_recipe(tmp_path / name)
