"""The rows of measured accuracy that `dim inspect` shows."""

from typing import Any

from dim.runtime.inspection.accuracy_summary import format_accuracy, summarise_accuracy


def row(subject: str, mean: float, **changes: Any) -> dict[str, Any]:
    plain = {"subject": subject, "mode": "stream", "ipc": 10, "arch": "convnet3", "recipe": "a", "epochs": 100}
    return {**plain, "labels": "hard", "accuracy_mean": mean, "accuracy_std": 0.25, **changes}


def test_a_generated_row_stands_beside_its_own_control() -> None:
    rows = [row("real", 90.0), row("real", 80.0, recipe="b"), row("generated", 88.0)]
    (line,) = summarise_accuracy(rows)
    assert (line.network, line.mode, line.ipc, line.generated, line.real) == (
        "convnet3", "stream", 10, "88.0 ± 0.2", "90.0 ± 0.2",
    )  # fmt: skip


def test_the_longest_training_counts_then_the_recipe_that_suits_real_images() -> None:
    rows = [
        row("generated", 70.0, epochs=1000),
        row("generated", 90.0),
        row("generated", 60.0, epochs=1000, recipe="b"),
    ]
    assert [line.generated for line in summarise_accuracy(rows)] == ["70.0 ± 0.2"]
    rows += [row("real", 75.0, epochs=1000, recipe="b"), row("real", 74.0, epochs=1000)]
    assert [(line.generated, line.real) for line in summarise_accuracy(rows)] == [("60.0 ± 0.2", "75.0 ± 0.2")]


def test_all_lines_are_of_one_recipe_and_length_and_name_their_width() -> None:
    rows = [row("generated", mean, ipc=ipc, epochs=1000) for ipc, mean in ((1, 50.0), (10, 60.0))]
    rows += [row("generated", 70.0, ipc=50, epochs=1000, recipe="b"), row("generated", 80.0, ipc=100)]
    rows += [row("generated", 61.0, epochs=1000, width=32), row("generated", 62.0, epochs=1000, width=32, seeds=[0, 1])]
    lines = summarise_accuracy(rows)
    assert {(line.recipe, line.epochs) for line in lines} == {("a", 1000)}
    assert [(line.network, line.ipc, line.generated) for line in lines] == [
        ("convnet3", 1, "50.0 ± 0.2"), ("convnet3", 10, "60.0 ± 0.2"), ("convnet3 (width 32)", 10, "62.0 ± 0.2"),
    ]  # fmt: skip
    assert summarise_accuracy([row("real", 90.0)]) == []


def test_order_and_number_of_lines() -> None:
    rows = [row("generated", 50.0, arch="resnet18")]
    rows += [row("generated", 50.0, mode=mode, ipc=ipc) for mode in ("fixed", "stream") for ipc in (50, 1)]
    lines = summarise_accuracy(rows, most=4)
    assert [(line.network, line.mode, line.ipc) for line in lines] == [
        ("convnet3", "stream", 1), ("convnet3", "stream", 50), ("convnet3", "fixed", 1), ("convnet3", "fixed", 50),
    ]  # fmt: skip


def test_soft_labels_and_rows_of_strangers_do_no_harm() -> None:
    strange = [{}, {"subject": "generated"}, row("generated", 1.0, labels="soft"), row("generated", True, ipc="x")]
    lines = summarise_accuracy(strange)
    assert [(line.ipc, line.generated, line.real) for line in lines] == [
        (0, "-", "-")
    ]  # the other recipe has no length
    assert format_accuracy({"accuracy_mean": 97.25, "accuracy_std": None}) == "97.2"
