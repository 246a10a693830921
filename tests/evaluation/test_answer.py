"""The answer of an evaluation in words, and what is said to doubt."""

from typing import Any

import pytest

from dim.evaluation.answer import answer_in_words, chance_margin, find_main_row, list_warnings
from dim.evaluation.results import Row


def row(source: str, accuracy: float, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "source": source, "accuracy_mean": accuracy, "accuracy_std": 0.1, "seeds": [0, 1, 2], "mode": "stream",
        "ipc": 10, "arch": "convnet3", "width": None, "labels": "hard", "recipe": "default", "epochs": 1000,
        "precision": "fp32", "test_images": 10_000, "diverged": 0, "data_bytes": 1_267_684, "archive": None,
    }  # fmt: skip
    return fields | changes  # type: ignore[return-value]


AVIF = {"codec": "avif", "quality": 20, "images_per_class": 4741, "max_bytes": 1_267_684}


def test_the_answer_is_what_a_student_reaches_beside_real_images_and_an_archive() -> None:
    rows = [row("bundle", 98.3), row("real", 98.52), row("archive", 97.9, archive=AVIF), row("bundle", 99.0, ipc=50)]
    assert answer_in_words(rows) == [
        "A ConvNet-3 trained on these images reaches 98.3 %, 0.2 points below real images for as many steps (10 images "
        "per class in every epoch, 3 students).",
        "The best archive of real images in the generator's 1.3 MB (AVIF, quality 20, 4,741 per class) gives 97.9 %: "
        "the generator is 0.4 points above it.",
    ]
    assert list_warnings(rows) == ["The test split has 10,000 images: differences below 0.4 points may be chance."]
    fixed = [row("bundle", 90.0, mode="fixed", width=32, seeds=[0], accuracy_std=None)]
    assert answer_in_words(fixed) == [
        "A ConvNet-3 of width 32 trained on these images reaches 90.0 % (10 images per class in all, one student)."
    ]
    assert answer_in_words([row("real", 98.0)]) == [] and list_warnings([row("real", 98.0)]) == []


def test_few_real_images_are_one_sentence() -> None:
    rows = [row("bundle", 98.3), row("bundle", 97.0, ipc=50)]
    for percent, alone, both in ((1.0, 96.85, 97.46), (5.0, 97.57, 97.51), (2.5, 1.0, None)):
        rows.append(row("few", alone, real_percent=percent))
        rows += [row("mixed", both, real_percent=percent)] if both is not None else []
    assert answer_in_words(rows)[1:] == [
        "On 1 and 5 % of the real images it reaches 96.8 and 97.6 %, with generated images in every batch 97.5 and "
        "97.5 %."
    ]
    assert answer_in_words([row("bundle", 98.3), row("few", 1.0, real_percent=1.0, ipc=50)])[1:] == []


def test_what_cannot_carry_the_answer_is_said() -> None:
    few = [
        row("bundle", 90.0, test_images=200, accuracy_std=None, seeds=[0], epochs=100),
        row("real", 80.0, epochs=100),
    ]
    assert list_warnings(few) == [
        "The test split has 200 images: differences below 5.9 points may be chance.",
        "One student per row: how much students differ is not known; --seeds 3 tells.",
        "A short look: 100 of the 1,000 published epochs; --preset full takes all.",
    ]
    noisy = [row("bundle", 63.0, accuracy_std=2.5), row("real", 66.0, accuracy_std=0.5, diverged=1)]
    assert list_warnings(noisy) == [
        "The test split has 10,000 images: differences below 1.3 points may be chance.",
        "1 students diverged: their last loss was not finite.",
    ]
    noisy[0]["accuracy_std"] = 3.5
    assert "The difference from real images is within what 3 students differ by." in list_warnings(noisy)


def test_the_row_that_answers_is_streamed_hard_and_of_ten_images_per_class() -> None:
    rows = [row("bundle", 1, ipc=50), row("bundle", 2, labels="soft"), row("bundle", 3), row("bundle", 4, mode="fixed")]
    main = find_main_row(rows)
    assert main is not None and main["accuracy_mean"] == 3
    assert find_main_row([]) is None


def test_chance_is_half_the_width_of_an_interval_and_never_nothing() -> None:
    # sqrt(2 * 0.25 / 10,000) is 0.707 points.
    assert chance_margin(50, 10_000) == pytest.approx(1.96 * 0.7071, rel=1e-3)
    assert 0 < chance_margin(100, 100) < chance_margin(90, 100)
