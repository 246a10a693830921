"""The report that a run ends with, finished or not."""

from pathlib import Path

import pytest
from quick_runs import quick
from small_images import make_images

from dim.distillation.distill import distill
from dim.runtime.gallery.report import MAX_REPORT_BYTES


@pytest.mark.slow
def test_a_run_ends_with_samples_losses_and_settings_in_one_file(tmp_path: Path) -> None:
    config = quick(grid_steps=2)
    assert not distill(make_images(), config, tmp_path / "run", device="cpu", time_limit_s=0).finished
    report = tmp_path / "run" / "report.html"
    assert f"stopped at a checkpoint; dim distill --resume --out {tmp_path / 'run'} goes on" in report.read_text()
    assert distill(make_images(), config, tmp_path / "run", device="cpu", resume=True).finished
    page = report.read_text()
    assert len(page.encode()) < MAX_REPORT_BYTES and "The run is finished." in page
    newest = page.index("Samples, stage2, step 6")
    assert newest < page.index("Samples, stage1, step 2") < page.index("<h2>Losses</h2>")
    assert page.count("data:image/png;base64,") == 7
    assert "<td>generator.latent_dim</td><td>8</td>" in page and "<td>discriminator loss</td>" in page
