"""Evaluates bundles: fresh classifiers are trained on generated images and tested once on real ones.

Every generated row has controls, trained in the same run by the same recipe with the same seeds. They are random real
images at equal images per class, real images at equal steps (the upper limit of `stream`), the best compressed archive
of real images in at most the generator's bytes, and other bundles. Every student has its own file. So an interruption
loses at most one student, and a table can be made at any time.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim.data.image_set import ImageSet
from dim.evaluation.archive import Archive
from dim.evaluation.choose_archive import choose_archive
from dim.evaluation.choose_recipe import TimeOverError, choose_recipe
from dim.evaluation.measure import Evaluation, Say, measure
from dim.evaluation.plan import plan_cells
from dim.evaluation.protocol import HOLDOUT, EvalProtocol, Execution
from dim.evaluation.quality.assess import assess
from dim.evaluation.quality.features import load_extractor
from dim.evaluation.report import write_evaluation_report
from dim.evaluation.results import write_results
from dim.evaluation.subjects import Bundles, describe_other_origin, read_subjects
from dim.networks.classifiers import build_classifier
from dim.runtime.errors import BadValueError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress


def evaluate(
    bundles: Bundles,
    data: ImageSet,
    protocol: EvalProtocol | None = None,
    execution: Execution | None = None,
    *,
    out: str | Path,
    for_record: bool = False,
    say: Say = say_to_log,
    progress: ProgressOption = None,
) -> Evaluation:
    """Train classifiers on what bundles draw and on real images, and test each once on the real test split.

    Args:
        bundles: a bundle's folder, or several by the names that tables show, of which the first decides how many bytes
            the controls may take; `{}` runs the controls alone.
        data: the dataset that they were distilled from (see `dim.evaluation.subjects.load_source_data`).
        protocol: what is measured; None for ConvNet-3 as published. `dim.evaluation.protocol.PROTOCOLS` has others.
        execution: device, precision, threads, jobs, engine and time limit; None for the whole machine.
        out: folder of the results: `cells/*.json`, `results.json`, `accuracy.png`, `report.html`, the archives of real
            images, and `archive/` and `recipe/` with the students that choose the archive and the recipe. Students that
            are there already are not trained again.
        for_record: the accuracy is meant for the bundle's manifest: refuse one that was distilled from other data.
        say: gets a sentence about every choice made here.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Counts the students; a
            callable is called from another thread where there are several jobs.

    Returns:
        The results; unfinished where the time limit left students untrained, and the same call goes on.

    Raises:
        BadValueError: an argument is out of range, or a bundle is not of this dataset.
        BundleError: a bundle is missing or altered, or has no teacher for soft labels.
        DeviceError: the device is not to be had.
        OutputError: `out` cannot be written.

    Examples:
        >>> protocol = EvalProtocol(ipcs=(10,), width=32, epochs=100)
        >>> accuracy = evaluate("mnist.dim", load_data("mnist"), protocol, out="eval/mnist")
    """
    protocol, execution, out = protocol or EvalProtocol(), execution or Execution(), Path(out)
    deadline = None if execution.time_limit_s is None else time.monotonic() + execution.time_limit_s
    subjects = read_subjects(bundles, data)
    if "soft" in protocol.labels and not subjects:
        raise BadValueError("Soft labels come from a bundle's teacher, so they need a bundle.")
    if "soft" in protocol.labels:
        subjects[0].teacher_sha256  # noqa: B018  # refuses a bundle without one now, not after the archive's students
    if (protocol.quality or protocol.privacy) and not subjects:
        raise BadValueError("Quality and privacy are those of a bundle's images, so they need a bundle.")
    if protocol.features:
        load_extractor(protocol.features)  # a wrong name shall be said now, not after hours of students
    for arch in protocol.archs:
        build_classifier(arch, len(data.classes), data.channels, data.height, protocol.width)
    for subject in subjects:
        if warning := describe_other_origin(subject, data):
            if for_record:
                raise BadValueError(f"{warning} Such accuracy is not recorded: leave out --record.")
            say(f"Caution: {warning}")
    with show_progress(progress) as report:
        settings: dict[str, Any] = {"deadline": deadline, "say": say, "progress": report}
        try:
            if protocol.recipe == HOLDOUT:
                recipe = choose_recipe(data, protocol, execution, out=out / "recipe", **settings)
                protocol = replace(protocol, recipe=recipe)
            archives: list[Archive] = []
            if subjects and protocol.seeds and "archive" in protocol.controls and "stream" in protocol.modes:
                archive = choose_archive(data, subjects, protocol, execution, out=out / "archive", **settings)
                archives = [archive] if archive else []
        except TimeOverError as over:
            say(str(over))
            # The file of an earlier call is not this one's.
            write_results([], data, out, finished=False)
            recipe_or_name = "default" if protocol.recipe == HOLDOUT else protocol.recipe
            planned = plan_cells(data, subjects, replace(protocol, recipe=recipe_or_name), execution)
            return Evaluation(out=out, results=(), students_left=len(planned))
        evaluation = measure(subjects, data, protocol, execution, out, archives=archives, **settings)
        if subjects and evaluation.finished and (protocol.quality or protocol.privacy):
            found = assess(subjects[0], data, protocol, execution, out, say=say, progress=report)
            write_results(evaluation.results, data, out, finished=True, found=found)
            evaluation = replace(evaluation, found=found)
        if evaluation.results or evaluation.found:
            write_evaluation_report(
                evaluation.rows, subjects, data, out, finished=evaluation.finished, found=evaluation.found
            )
    if not evaluation.finished:
        say(str(TimeOverError(evaluation)))
    return evaluation
