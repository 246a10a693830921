"""What is said about sources on which results are doubtful."""

import numpy as np
from data_samples import random_images

from dim.data.cautions import find_cautions
from dim.data.image_set import ImageSet


def _set(train: list[int], test: list[int]) -> ImageSet:
    train_labels, test_labels = (np.repeat(np.arange(len(counts)), counts) for counts in (train, test))
    return ImageSet(
        name="x",
        classes=tuple("abcdefgh"[: len(train)]),
        train_images=random_images(len(train_labels), 8, 1),
        train_labels=train_labels,
        test_images=random_images(len(test_labels), 8, 1),
        test_labels=test_labels,
        licence="",
        note="",
    )


def test_a_usual_set_gets_none() -> None:
    assert find_cautions(_set([10, 500], [20, 20])) == ()


def test_each_doubt_is_one_sentence() -> None:
    assert find_cautions(_set([10, 501], [20, 20])) == (
        "class 'b' has 501 training images and 'a' 10, more than 50 to 1, while every class is drawn equally often",
    )
    assert find_cautions(_set([10, 10], [20, 19])) == (
        "fewer than 20 test images in 1 of 2 classes ('b'), so accuracies are rough",
    )
    assert find_cautions(_set([9, 9, 9, 9, 10], [20] * 5)) == (
        "fewer than 10 training images in 4 of 5 classes ('a', 'b', 'c', ...)",
    )
    assert len(find_cautions(_set([9, 500], [1, 1]))) == 3
    assert find_cautions(_set([10], [20])) == (
        "'a' is the only class, so classifiers have nothing to tell apart: "
        "images are matched by untrained features, and accuracies say nothing",
    )
