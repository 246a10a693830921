"""Refine the fixed latents of a bundle from before there was `deployment.refine_steps`, without distilling again.

    python scripts/refine.py BUNDLE --data DATA

Needs the package with its `train` extra, and the data that the bundle was distilled from. The pool of the run is gone,
so two ConvNet-3 are trained and kept at three ages; they see the run's training images alone, augmented as students
are. What the bundle draws by a seed stays the same, so its accuracy rows of streams are kept, under the content id that
they were measured with; those of fixed sets are dropped, and must be measured again (`dim eval`).
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dim.allocator import keep_freed_memory
from dim.augment import augment, default_policy
from dim.cli.evaluate import split_seed
from dim.data import ImageSet, load_data
from dim.device_data import DeviceData, seed_of, step_generator, to_signed
from dim.evaluate import other_origin
from dim.export.card import read_record
from dim.export.publish import finish, staged
from dim.holdout import holdout_mask
from dim.pool import MOMENTUM, WEIGHT_DECAY, PoolMember, classifier_shape
from dim.refinement import UNTRAINED, Refinement
from dim.runtime.bundle_files import check_file, copy_bundle, load_manifest, update_bundle
from dim.runtime.errors import BadValueError, DimError
from dim.runtime.fixed_latents import MAX_LATENTS_BYTES, read_fixed_latents, write_fixed_latents
from dim.runtime.graph import MAX_ONNX_BYTES, check_graph
from dim.runtime.manifest import Manifest
from dim.runtime.manifest_check import CANONICAL_ONNX, FIXED_LATENTS
from dim.torch_engine import OnnxGraph

TRAINED, AGES, LR, BATCH = 2, (50, 200, 600), 0.02, 64
"""ConvNets that are trained, the SGD steps after which they are kept, their learning rate and batch."""
SEED = 0
CPU = torch.device("cpu")


def refine(bundle_path: Path, data: ImageSet, *, steps: int, width: int) -> Manifest:
    """Refine the fixed latents of a bundle in its place; it stays as it was until the new one passed its checks.

    Args:
        bundle_path: with fixed latents.
        data: what it was distilled from, whole.
        steps: as `deployment.refine_steps`.
        width: channels of the ConvNets.

    Raises:
        BadValueError: the bundle has no fixed latents, or the data are others.
        DimError: the bundle is damaged, or the new one does not pass its checks.
    """
    if steps < 1:
        raise BadValueError(f"--steps is {steps}; it must be at least 1.")
    if bundle_path.is_symlink():
        raise BadValueError(f"{bundle_path} is a link: name the folder that it points to.")
    manifest = load_manifest(bundle_path)
    record = {"agreements": []} | read_record(bundle_path, manifest)
    if "refined" in record or manifest.distill_config.get("deployment", {}).get("refine_steps"):
        raise BadValueError(f"The fixed latents of {bundle_path} are refined already.")
    if FIXED_LATENTS not in manifest.files:
        raise BadValueError(f"{bundle_path} has no fixed latents to refine.")
    if data.classes != manifest.classes or (data.height, data.channels) != (manifest.height, manifest.channels):
        raise BadValueError(f"{bundle_path} was distilled from other classes or other sizes than these data have.")
    if warning := other_origin(bundle_path, manifest, data):
        raise BadValueError(warning)
    training = _training(manifest.distill_config, data)
    file = check_file(bundle_path, manifest, FIXED_LATENTS, max_bytes=MAX_LATENTS_BYTES)
    refinement = Refinement(
        _network(bundle_path, manifest),
        torch.from_numpy(read_fixed_latents(file, manifest).copy()),
        _judges(data, training, width),
        training,
        steps=steps,
        policy=default_policy(data.name),
        seed=SEED,
    )
    start = time.monotonic()
    for index in range(refinement.total):
        loss = refinement.step(index)
        if (index + 1) % 100 == 0 or index + 1 == refinement.total:
            done = f"{index + 1:,} of {refinement.total:,} steps"
            print(f"{done}, distance {float(loss):.4f}, {time.monotonic() - start:.0f} s", flush=True)
    latents = write_fixed_latents(refinement.result().numpy())
    rows = [row for row in manifest.accuracy if row.get("mode") != "fixed" or row.get("source") == "real"]
    with staged(bundle_path) as path:
        if load_manifest(bundle_path).manifest_sha256 != manifest.manifest_sha256:
            raise BadValueError(f"{bundle_path} was changed by another process meanwhile: run the command again.")
        copy_bundle(bundle_path, path)
        update_bundle(path, add_files={FIXED_LATENTS: latents}, accuracy=rows)
        return finish(path, record | {"refined": {"steps": steps, "width": width}})


def _training(config: Mapping[str, Any], data: ImageSet) -> DeviceData:
    """The run's training images: without what it held out for the choice among several spreads."""
    held = np.zeros(len(data.train_labels), bool)
    deployment = config.get("deployment", {})
    if len(deployment.get("latent_stds", ())) > 1:
        part, seed = float(deployment.get("holdout", 0.05)), int(config.get("seed", 0))
        held = holdout_mask(data.train_labels, len(data.classes), part, seed)
    return DeviceData(data.train_images[~held], data.train_labels[~held].astype(np.int64), len(data.classes), CPU)


def _network(bundle_path: Path, manifest: Manifest) -> Any:
    """The bundle's generator with gradients: latents `[N, Z]` and labels `[N]` to images in -1..1."""
    model = check_file(bundle_path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(model, manifest)
    graph = OnnxGraph(model, CPU, rounded=False)

    def draw(latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        levels = graph({"latents": latents_NZ, "labels": labels_N})
        images_NHWC = levels.reshape(-1, manifest.height, manifest.width, manifest.channels)
        return images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1

    return draw


def _judges(data: ImageSet, training: DeviceData, width: int) -> list[PoolMember]:
    looks = {"classes": data.classes, "channels": data.channels, "image_px": data.height}
    shape = classifier_shape(looks | {"mean": data.mean, "std": data.std}, width)
    judges = []
    for number in range(TRAINED):
        judges += _train(_member(shape, "trained", number), training, default_policy(data.name), number)
        print(f"Trained {number + 1} of {TRAINED} ConvNets, kept at {len(AGES)} ages.", flush=True)
    judges += [_member(shape, "untrained", number) for number in range(UNTRAINED)]
    return [judge.eval().requires_grad_(False) for judge in judges]


def _member(shape: Mapping[str, Any], *seed: int | str) -> PoolMember:
    torch.manual_seed(seed_of(SEED, *seed))
    return PoolMember("convnet3", shape)


def _train(member: PoolMember, training: DeviceData, policy: str, number: int) -> list[PoolMember]:
    """The classifier at every age."""
    optimiser = torch.optim.SGD(member.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    kept = []
    for step in range(1, AGES[-1] + 1):
        generator = step_generator(training.device, SEED, "judge", number, step)
        labels = training.draw_labels(BATCH, 1, generator)
        images = member.normalise(to_signed(training.draw_images(labels, generator)))
        loss = F.cross_entropy(member(augment(images, policy, generator))[1], labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step in AGES:
            kept.append(copy.deepcopy(member))
    return kept


def main() -> int:
    """Parse, refine, say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="as of dim distill")
    parser.add_argument("--data-dir", type=Path, help="where the official files are; else $DIM_DATA")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=128, help="channels of the ConvNets")
    options = parser.parse_args()
    keep_freed_memory()
    try:
        manifest = load_manifest(options.bundle)
        data = load_data(
            options.data,
            data_dir=options.data_dir,
            size=manifest.height,
            channels=manifest.channels,
            seed=split_seed(manifest),
        )
        manifest = refine(options.bundle, data, steps=options.steps, width=options.width)
    except DimError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped; {options.bundle} is as it was.", file=sys.stderr)
        return 130
    print(f"Bundle: {options.bundle}, content id {manifest.content_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
