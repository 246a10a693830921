#!/usr/bin/env python3
"""What a certainty filter is worth to a bundle: its surest candidates against all of them, nothing trained anew.

    python -m lab.filter_worth --bundle runs/cifar10/cifar10.dim --data cifar10 --out runs/filter

The bundle's teacher judges the first candidates of every class. Students learn from a stream of all, and of the surest
part; `lab/image_measures.py` compares both with real test images, as a classifier sees them that has not judged. The
filtered bundle, of sampling version 2, is written to OUT as well. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dim.data.load import load_data
from dim.distillation.certainty_filter import choose_surest
from dim.execution.device_data import seed_of
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.files import read_checked_file, write_bundle
from dim.runtime.bundle_format.names import ACCEPTED
from dim.runtime.engines.draw_in_parts import choose_rows_per_run
from dim.runtime.sampling.latents import draw_latents, order_slice
from dim.runtime.sampling.philox import FILTERED_SAMPLING
from dim.runtime.sets.soft_labels import open_teacher
from dim.runtime.storage.below import replace_file
from lab.image_measures import compare_images, take_balanced, teach, train_judge

RECIPES = ("condensation", "default")
COMPARED_PER_CLASS = 500


def main() -> int:
    """Judge, write the filtered bundle, teach, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="with a teacher")
    parser.add_argument("--data", required=True, help="the dataset that it was distilled from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=8192, help="per class, a multiple of 8")
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.7], help="parts that are kept")
    parser.add_argument("--ipc", type=int, default=10, help="images per class and epoch")
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--width", type=int, default=64, help="of a student, a ConvNet-3")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with open_bundle(options.bundle, threads=options.threads, precision="auto", say=print) as bundle:
        key = seed_of(0, bundle.manifest.content_id, "candidates")
        images, certainty_KM = judge_candidates(bundle, key, options.candidates, options.out / "candidates.npz")
        for keep in options.keep:
            if keep < 1:
                write_filtered(
                    bundle, key, choose_surest(certainty_KM, keep).numpy(), options.out / f"keep-{keep:g}.dim"
                )
    data = load_data(options.data)
    judge = train_judge(data, options.out / "judge.safetensors")
    real = judge.look(*take_balanced(data.test_images, data.test_labels.astype(np.int64), COMPARED_PER_CLASS))
    num_classes = len(data.classes)
    epochs = int(min(options.keep) * options.candidates) // options.ipc
    labels, _ = order_slice([epochs * options.ipc] * num_classes, 0, num_classes * epochs * options.ipc)
    for keep in options.keep:
        chosen_KM = choose_surest(certainty_KM, keep).numpy()
        columns = [np.flatnonzero(row)[: epochs * options.ipc] for row in chosen_KM]
        stream = np.stack([images[k][column] for k, column in enumerate(columns)], axis=1).reshape(
            -1, *images.shape[2:]
        )
        path = options.out / f"keep-{keep:g}.json"
        row: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"keep": keep, "epochs": epochs}
        if "recall" not in row:
            row |= compare_images(real, judge.look(*take_balanced(stream, labels, COMPARED_PER_CLASS)))
        for recipe in RECIPES:
            for seed in range(len(row.setdefault(recipe, [])), options.students):
                row[recipe].append(
                    teach(
                        data,
                        stream,
                        labels,
                        recipe=recipe,
                        ipc=options.ipc,
                        epochs=epochs,
                        width=options.width,
                        seed=seed,
                    )
                )
                row["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
                replace_file(path.parent, path.name, (json.dumps(row, indent=1) + "\n").encode())
        print(json.dumps(row), flush=True)
    return 0


def judge_candidates(bundle: Bundle, key: int, count: int, path: Path) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """Draw candidates and take the teacher's probability of their label; images uint8 [K, M, H, W, C], float [K, M]."""
    manifest, teacher = bundle.manifest, open_teacher(bundle, torch.get_num_threads())
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return kept["images"], torch.from_numpy(kept["certainty"])
    rows = bundle.engine.batch or choose_rows_per_run(manifest)
    images, certainty = [], []
    for label in range(manifest.num_classes):
        labels_M = np.full(count, label, np.int64)
        latents = draw_latents(key, labels_M, np.arange(count), manifest.latent_dim, manifest.latent_std)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            images.append(bundle.engine.run(latents[part], labels_M[part]))
            certainty.append(torch.from_numpy(teacher(images[-1])).float().softmax(dim=1)[:, label])
        print(f"class {label} judged", file=sys.stderr, flush=True)
    images_KM = np.concatenate(images).reshape(manifest.num_classes, count, *images[0].shape[1:])
    certainty_KM = torch.cat(certainty).reshape(manifest.num_classes, count).float()
    np.savez(path, images=images_KM, certainty=certainty_KM.numpy())
    return images_KM, certainty_KM


def write_filtered(bundle: Bundle, key: int, accepted_KM: NDArray[np.bool_], path: Path) -> None:
    """Write the bundle with accepted candidates; what was measured of the other one is left out."""
    manifest = bundle.manifest
    names = [name for name in manifest.files if name.endswith((".onnx", ".npz", ".md"))]
    files = {name: read_checked_file(bundle.path, manifest, name) for name in names}
    sampling = replace(manifest.sampling, sampling_version=FILTERED_SAMPLING)
    description = replace(manifest.description, sampling=sampling, accuracy=())
    write_bundle(path, description, {**files, ACCEPTED: write_accepted(key, accepted_KM)}, overwrite=path.exists())


if __name__ == "__main__":
    sys.exit(main())
