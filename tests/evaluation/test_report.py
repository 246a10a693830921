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
