"""The report that an evaluation ends with."""

from pathlib import Path

import pytest
from quick_evaluations import run_evaluation
from tiny_bundle import build_tiny_bundle

from dim.data.load import ImageSet
from dim.evaluation.report import write_evaluation_report
from dim.evaluation.subjects import read_subjects
from dim.runtime.gallery.report import MAX_REPORT_BYTES
from dim.runtime.inspection.preview import encode_png


@pytest.mark.slow
def test_an_evaluation_ends_with_tables_and_chart_in_one_file(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options = {"ipcs": (1, 2), "seeds": (0, 1), "modes": ("fixed",)}
    evaluation = run_evaluation(bundle, data, tmp_path / "eval", options)
    page = (tmp_path / "eval" / "report.html").read_text()
    assert evaluation.finished and len(page.encode()) < MAX_REPORT_BYTES
    for row in evaluation.rows:
        assert f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}</td>" in page
    assert page.count("data:image/png;base64,") == 1 and "are not trained yet" not in page
    assert f"<h1>Evaluation on {data.name}</h1>" in page and "What the students saw" in page
    assert page.index("<p>A ConvNet-3 of width ") < page.index("Accuracy on the test split of")
    assert "Accuracy on the test images of every class" in page


def test_quality_and_the_verdict_on_copies_stand_in_the_report(data: ImageSet, tmp_path: Path) -> None:
    numbers = {"precision": 0.912, "recall": 0.5, "density": 1.0, "coverage": 0.75, "fd": 3.254, "kid": 0.00123}
    by_class = {"<i>one</i>": {"precision": 0.31, "recall": 0.32, "density": 0.33, "coverage": 0.34}}
    quality = {"images": 300, "compared_by": "features of a toy", "generated": numbers, "real": numbers}
    copies = {"near_duplicates": 0.125, "expected_duplicates": 0.011, "membership_auc": 0.75}
    copies |= {"generated_distance": 1.5, "held_out_distance": 2.25}
    privacy = {"verdict": "The generator copies training images: many.", "copies": True, "pixels": copies}
    found = {"quality": quality | {"per_class": by_class}, "privacy": privacy}
    (tmp_path / "nearest-pairs.png").write_bytes(encode_png(data.train_images[0].repeat(3, axis=2)))
    page = write_evaluation_report([], [], data, tmp_path, finished=True, found=found).read_text()
    assert page.index("<p>The generator copies training images: many.</p>") < page.index("Quality of the images")
    for cells in (
        ["generated", "0.91", "0.50", "1.00", "0.75", "3.25", "0.0012"],
        ["generated, &lt;i&gt;one&lt;/i&gt;", "0.31", "0.32", "0.33", "0.34", "", ""],
        ["pixels", "12.5 %", "1.1 %", "0.75", "1.50", "2.25"],
    ):
        first, *others = cells
        assert f"<td>{first}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in others) in page
    assert "300 images against as many of the test split, in features of a toy." in page
    # The picture of the nearest pairs shows training images, and a report is sent around.
    assert "data:image/png" not in page


def test_previews_are_shown_and_an_altered_one_is_not(data: ImageSet, tmp_path: Path) -> None:
    preview = encode_png(data.train_images[0].repeat(3, axis=2))
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", extra_files={"preview.png": preview})
    rows = run_evaluation(bundle, data, tmp_path / "eval", {"ipcs": (1,), "seeds": (0,), "modes": ("fixed",)}).rows
    subjects = read_subjects({"<b>first</b>": bundle}, data)
    page = write_evaluation_report(rows, subjects, data, tmp_path / "one", finished=False).read_text()
    assert "Images that &lt;b&gt;first&lt;/b&gt; draws" in page and "<b>" not in page
    assert "Some students are not trained yet: the same command goes on." in page
    (bundle / "preview.png").write_bytes(b"altered")
    page = write_evaluation_report(rows, subjects, data, tmp_path / "two", finished=True).read_text()
    assert "data:image/png" not in page
