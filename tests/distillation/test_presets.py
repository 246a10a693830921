"""Presets fit any data, survive JSON, and values that cannot be are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from quick_runs import quick
from small_images import make_images

from dim.config import (
    AdversarialConfig,
    DistillConfig,
    MatchingConfig,
    PoolConfig,
    StageConfig,
    from_dict,
    to_dict,
)
from dim.data.load import load_data
from dim.distillation.distill import distill
from dim.networks.generator import ResizeGenerator, build_generator
from dim.presets import PRESETS, preset
from dim.runtime.errors import BadValueError


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fit_digits_and_survive_json(name: str) -> None:
    config = preset(name, data=load_data("digits"))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.preset == name and config.name == "digits"


@pytest.mark.parametrize(
    ("name", "channels", "per_class", "small", "best"),
    [
        ("mnist", 1, 6000, "", ""),
        ("scans", 1, 999, "crop=0.07", "crop=0.07"),
        ("scans", 1, 1000, "", ""),
        ("photos", 3, 6000, "", ""),
        ("photos", 3, 999, "crop=0.07", "crop=0.07"),
        ("cifar10", 3, 5000, "flip", "flip"),
        ("cifar100", 3, 500, "flip_crop=0.07", "flip_crop"),
        ("fashion-mnist", 1, 6000, "flip", "flip"),
    ],
)
def test_the_discriminator_sees_many_images_less_augmented(
    name: str, channels: int, per_class: int, small: str, best: str
) -> None:
    data: Any = SimpleNamespace(
        name=name, classes=("a", "b"), class_counts=(per_class - 9, per_class + 9), height=28, channels=channels
    )
    for preset_name, expected in (("small", small), ("best", best)):
        config = preset(preset_name, data=data)
        assert {config.stage1.adversarial.augment, config.stage2.adversarial.augment} == {expected}
        assert config.generator.mirrored == expected.startswith("flip")


@pytest.mark.parametrize(("image_px", "channels", "most_bytes"), [(28, 1, 5_000_000), (32, 3, 11_000_000)])
def test_a_bundle_of_best_has_a_few_megabytes(image_px: int, channels: int, most_bytes: int) -> None:
    data: Any = SimpleNamespace(
        name="photos", classes=tuple("0123456789"), class_counts=(6000,) * 10, height=image_px, channels=channels
    )
    config = preset("best", data=data).generator
    generator = build_generator(config, num_classes=10, image_px=image_px, channels=channels)
    assert isinstance(generator, ResizeGenerator)
    weights = sum(parameter.numel() for parameter in generator.parameters())
    # Export turns the class's half of the first layer into one row per class.
    weights -= generator.first.out_features * (config.latent_dim - 10)
    fp32_fp16_and_int8 = weights * (4 + 2 + 1)
    assert 0.8 * most_bytes < fp32_fp16_and_int8 < most_bytes


@pytest.mark.parametrize(
    ("channels", "per_class", "num_classes", "candidates", "cross_entropy"),
    [
        (3, 5000, 10, 16_384, 0.3),
        (3, 1000, 32, 16_384, 0.3),
        (3, 1000, 33, 0, 0.3),
        (3, 999, 10, 0, 0),
        (1, 6000, 10, 0, 0),
    ],
)
def test_best_makes_the_pool_surer_and_judges_candidates_where_that_was_tried(
    channels: int, per_class: int, num_classes: int, candidates: int, cross_entropy: float
) -> None:
    data: Any = SimpleNamespace(
        name="photos",
        classes=tuple(map(str, range(num_classes))),
        class_counts=(per_class,) * num_classes,
        height=32,
        channels=channels,
    )
    config = preset("best", data=data)
    assert (config.filter.candidates, config.filter.keep, config.filter.judge) == (candidates, 0.7, "pool")
    assert config.matching.cross_entropy == cross_entropy
    others = [preset(name, data=data) for name in PRESETS if name != "best"]
    assert not any(other.filter.candidates or other.matching.cross_entropy for other in others)


@pytest.mark.parametrize("loss", ["paper", "none"])
def test_another_matching_loss_leaves_out_the_cross_entropy_of_the_preset(loss: str) -> None:
    data: Any = SimpleNamespace(name="x", classes=("a", "b"), class_counts=(5000,) * 2, height=32, channels=3)
    assert preset("best", data=data, overrides={"matching.loss": loss}).matching.cross_entropy == 0
    with pytest.raises(BadValueError, match="cross_entropy is 0.1; it must be 0"):
        preset("best", data=data, overrides={"matching.loss": loss, "matching.cross_entropy": 0.1})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_published_loss_has_its_published_weight_unless_it_is_set(name: str) -> None:
    def weight(**overrides: object) -> float:
        return preset(name, data=load_data("digits"), overrides=overrides).matching.weight

    assert weight() == (0.01 if name == "paper" else 1.0)
    assert weight(**{"matching.loss": "paper"}) == 0.01
    for order in (("matching.loss", "matching.weight"), ("matching.weight", "matching.loss")):
        assert weight(**{field: {"matching.loss": "paper", "matching.weight": 0.5}[field] for field in order}) == 0.5
    assert preset(name, data=load_data("digits"), overrides={"matching.loss": "none"}).matching.weight == weight()


@pytest.mark.slow
def test_the_published_recipe_runs_with_its_own_networks(tmp_path: Path) -> None:
    data = make_images(image_px=8, per_class=16)
    small = {"stage1.steps": 1, "stage2.steps": 1, "pool.steps_between": 1, "stage1.batch_size": 4}
    config = preset("paper", data=data, overrides={**small, "stage2.batch_size": 4, "pool.batch_size": 4})
    assert config.matching.loss == "paper" and config.stage1.adversarial.loss == "wgan-gp-ac"
    distill(data, config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "pool.json").read_text())[0]["arch"] in config.pool.architectures


def test_values_that_cannot_be(tmp_path: Path) -> None:
    data = make_images()
    with pytest.raises(BadValueError, match="no preset named 'huge': choose one of"):
        preset("huge", data=data)
    with pytest.raises(BadValueError, match="no field 'stage1.stepz'"):
        preset("tiny", data=data, overrides={"stage1.stepz": 3})
    with pytest.raises(BadValueError, match="configuration's field stage1.steps is -1; it must be between 0 and 100,0"):
        quick(**{"stage1.steps": -1})
    with pytest.raises(BadValueError, match=r"stage1.batch_size is 22; it must be a multiple of 4"):
        distill(data, quick(**{"stage1.batch_size": 22}), tmp_path / "run")
    with pytest.raises(
        BadValueError, match=r"stage2.batch_size is 5; it must be a multiple of 2 \(1 processes, matched"
    ):
        distill(data, quick(**{"stage2.batch_size": 5, "discriminator.group_size": 1}), tmp_path / "run")
    with pytest.raises(BadValueError, match="multiples of 8 and 28 pixels, not 12"):
        images = make_images(image_px=12)
        distill(images, preset("paper", data=images), tmp_path / "run")
    with pytest.raises(BadValueError, match="belong together"):
        DistillConfig(
            name="x",
            preset="x",
            stage1=StageConfig(steps=1, batch_size=4, adversarial=AdversarialConfig(loss="wgan-gp-ac")),
            stage2=StageConfig(steps=1, batch_size=4),
        )
    with pytest.raises(BadValueError, match="must be one of distribution, paper, none"):
        MatchingConfig(loss="sinkhorn")
    with pytest.raises(
        BadValueError,
        match=r"^AdversarialConfig.augment is 'crop_typo'; it must be a policy of augmentations \(Unknown augmentation "
        r"step 'typo' in policy 'crop_typo': join",
    ):
        AdversarialConfig(augment="crop_typo")
    for config in (AdversarialConfig, MatchingConfig, PoolConfig):
        bars = rf"^{config.__name__}.augment is 'flip\|crop'; it must be without alternatives, joined by bars"
        with pytest.raises(BadValueError, match=bars):
            config(augment="flip|crop")
    with pytest.raises(BadValueError, match="The configuration has the unknown field colour"):
        from_dict({**to_dict(quick()), "colour": 1})
    assert not (tmp_path / "run").exists()
