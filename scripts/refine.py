"""Refine the first fixed latents of a bundle, without distilling again.

    python scripts/refine.py BUNDLE --data DATA
    python scripts/refine.py BUNDLE --data DATA --again --steps 800 --trained 4 --untrained 24   # on a GPU

Needs the package with its `train` extra, and the data that the bundle was distilled from. The pool of the run is gone,
so a few classifiers are trained and kept at three ages, others for every pass; they see the run's training images
alone, augmented as students are. What the bundle draws by a seed stays the same, so its accuracy rows of streams are
kept, under the content id that they were measured with; those of fixed sets are dropped, and must be measured again
(`dim eval`).
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from changing import change
from torch import Tensor

from dim.allocator import keep_freed_memory
from dim.augment import augment, default_policy
from dim.cli.evaluate import split_seed
from dim.cuda_graphs import own_stream
from dim.data import ImageSet, load_data
from dim.device_data import DeviceData, seed_of, step_generator, to_signed
from dim.distill import choose_device
from dim.evaluate import other_origin
from dim.export.card import read_record
from dim.export.changes import REFINED, passes_of
from dim.export.publish import finish, staged
from dim.holdout import holdout_mask
from dim.pool import MOMENTUM, WEIGHT_DECAY, PoolMember, classifier_shape
from dim.refinement import JUDGES_PER_STEP, UNTRAINED, Refinement
from dim.runtime.bundle_files import check_file, copy_bundle, load_manifest, update_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.fixed_latents import MAX_LATENTS_BYTES, read_fixed_latents, write_fixed_latents
from dim.runtime.graph import MAX_ONNX_BYTES, check_graph
from dim.runtime.manifest import Manifest
from dim.runtime.manifest_check import CANONICAL_ONNX, FIXED_LATENTS
from dim.torch_engine import OnnxGraph

AGES = {"convnet3": (50, 200, 600), "resnet10": (100, 300, 900)}
"""SGD steps after which a classifier is kept."""
LR, BATCH = 0.02, 64
"""Of those steps."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a bundle's record says of one run of this script."""

    steps: int = 400
    """As `deployment.refine_steps`."""
    width: int = 128
    """Channels of the ConvNets."""
    trained: int = 2
    """ConvNets that are trained, each a judge at every age."""
    resnets: int = 1
    """ResNet-10 of a quarter of the width, at least 8, that are trained, each a judge at every age."""
    untrained: int = UNTRAINED
    """ConvNets with fresh weights."""
    judges: int = JUDGES_PER_STEP
    """Of all judges, those that a step asks."""
    cross_entropy: float = 0.2
    """As `deployment.refine_cross_entropy` of the presets for natural images; `draws` and `learners` likewise."""
    draws: int = 2
    """Augmentations of every image per judge, 1 or 2."""
    learners: int = 8
    """ConvNets that learn from the set."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (least := REFINED[name]) <= value < math.inf:
                kind = "a finite number of " if isinstance(least, float) else ""
                raise BadValueError(f"--{name.replace('_', '-')} is {value}; it must be {kind}at least {least:g}.")
        if self.draws > 2:
            raise BadValueError(f"--draws is {self.draws}; it must be 1 or 2.")
        if not self.trained + self.resnets + self.untrained:
            raise BadValueError("--trained, --resnets and --untrained are all 0; there must be a classifier to judge.")


def refine(
    bundle_path: Path, data: ImageSet, how: Pass, *, again: bool = False, device: torch.device | None = None
) -> Manifest:
    """Refine the fixed latents of a bundle in its place; it stays as it was until the new one passed its checks.

    Args:
        bundle_path: with fixed latents.
        data: what it was distilled from, whole.
        how: by which judges, and how long.
        again: go on from latents that are refined already.
        device: where to compute; None for the CPU.

    Raises:
        BadValueError: the bundle has no fixed latents, they are refined already, or the data are others.
        DimError: the bundle is damaged, or the new one does not pass its checks.
    """
    device = device or torch.device("cpu")
    if bundle_path.is_symlink():
        raise BadValueError(f"{bundle_path} is a link: name the folder that it points to.")
    manifest = load_manifest(bundle_path)
    record = {"agreements": []} | read_record(bundle_path, manifest)
    if not again and ("refined" in record or manifest.distill_config.get("deployment", {}).get("refine_steps")):
        raise BadValueError(f"The fixed latents of {bundle_path} are refined already: --again goes on from them.")
    if FIXED_LATENTS not in manifest.files:
        raise BadValueError(f"{bundle_path} has no fixed latents to refine.")
    if data.classes != manifest.classes or (data.height, data.channels) != (manifest.height, manifest.channels):
        raise BadValueError(f"{bundle_path} was distilled from other classes or other sizes than these data have.")
    if warning := other_origin(bundle_path, manifest, data):
        raise BadValueError(warning)
    file = check_file(bundle_path, manifest, FIXED_LATENTS, max_bytes=MAX_LATENTS_BYTES)
    with own_stream(device):
        training = _training(manifest.distill_config, data, device)
        seed = seed_of(SEED, "pass", len(passes_of(record)))
        refinement = Refinement(
            _network(bundle_path, manifest, device),
            torch.from_numpy(read_fixed_latents(file, manifest).copy()).to(device),
            *_judges(data, training, how, seed),
            training,
            steps=how.steps,
            policy=default_policy(data.name),
            seed=seed,
            judges_per_step=how.judges,
            cross_entropy=how.cross_entropy,
            draws=how.draws,
            learners=how.learners,
            fresh=lambda number: _member(data, device, "convnet3", how.width, seed_of(seed, "learner", number)),
        )
        start, losses = time.monotonic(), list[Tensor]()
        for index in range(refinement.total):
            losses.append(refinement.step(index))
            if (index + 1) % 100 == 0 or index + 1 == refinement.total:
                done, loss = f"{index + 1:,} of {refinement.total:,} steps", float(torch.stack(losses).mean())
                print(f"{done}, mean loss {loss:.4f}, {time.monotonic() - start:.0f} s", flush=True)
                losses.clear()
        latents = write_fixed_latents(refinement.result().cpu().numpy())
    rows = [row for row in manifest.accuracy if row.get("mode") != "fixed" or row.get("source") == "real"]
    with staged(bundle_path) as path:
        if load_manifest(bundle_path).manifest_sha256 != manifest.manifest_sha256:
            raise BadValueError(f"{bundle_path} was changed by another process meanwhile: run the command again.")
        copy_bundle(bundle_path, path)
        update_bundle(path, add_files={FIXED_LATENTS: latents}, accuracy=rows)
        return finish(path, record | {"refined": [*passes_of(record), asdict(how)]})


def _training(config: Mapping[str, Any], data: ImageSet, device: torch.device) -> DeviceData:
    """The run's training images: without what it held out for the choice among several spreads."""
    held = np.zeros(len(data.train_labels), bool)
    deployment = config.get("deployment", {})
    if len(deployment.get("latent_stds", ())) > 1:
        part, seed = float(deployment.get("holdout", 0.05)), int(config.get("seed", 0))
        held = holdout_mask(data.train_labels, len(data.classes), part, seed)
    return DeviceData(data.train_images[~held], data.train_labels[~held].astype(np.int64), len(data.classes), device)


def _network(bundle_path: Path, manifest: Manifest, device: torch.device) -> Any:
    """The bundle's generator with gradients: latents `[N, Z]` and labels `[N]` to images in -1..1."""
    model = check_file(bundle_path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(model, manifest)
    graph = OnnxGraph(model, device, rounded=False)

    def draw(latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        levels = graph({"latents": latents_NZ, "labels": labels_N})
        images_NHWC = levels.reshape(-1, manifest.height, manifest.width, manifest.channels)
        return images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1

    return draw


def _judges(data: ImageSet, training: DeviceData, how: Pass, seed: int) -> tuple[list[PoolMember], list[PoolMember]]:
    """Those that are trained, at every age, and those that are not."""
    trained, untrained = list[PoolMember](), list[PoolMember]()
    for arch, count in (("convnet3", how.trained), ("resnet10", how.resnets)):
        for number in range(count):
            member = _member(data, training.device, arch, how.width, seed_of(seed, "trained", number))
            trained += _train(member, training, default_policy(data.name), seed_of(seed, "batches", arch, number))
            print(f"Trained {number + 1} of {count} {arch}, kept at {len(AGES[arch])} ages.", flush=True)
    for number in range(how.untrained):
        untrained.append(_member(data, training.device, "convnet3", how.width, seed_of(seed, "untrained", number)))
    for judge in (*trained, *untrained):
        judge.eval().requires_grad_(False)
    return trained, untrained


def _member(data: ImageSet, device: torch.device, arch: str, width: int, seed: int) -> PoolMember:
    looks = {"classes": data.classes, "channels": data.channels, "image_px": data.height}
    shape = classifier_shape(
        looks | {"mean": data.mean, "std": data.std}, width if arch == "convnet3" else max(8, width // 4)
    )
    torch.manual_seed(seed)
    return PoolMember(arch, shape).to(device)


def _train(member: PoolMember, training: DeviceData, policy: str, seed: int) -> list[PoolMember]:
    """The classifier at every age."""
    optimiser = torch.optim.SGD(member.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    ages, kept = AGES[member.name], []
    for step in range(1, ages[-1] + 1):
        generator = step_generator(training.device, seed, step)
        labels = training.draw_labels(BATCH, 1, generator)
        images = member.normalise(to_signed(training.draw_images(labels, generator)))
        loss = F.cross_entropy(member(augment(images, policy, generator))[1], labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step in ages:
            kept.append(copy.deepcopy(member))
    return kept


def main() -> int:
    """Parse, refine, say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="as of dim distill")
    parser.add_argument("--data-dir", type=Path, help="where the official files are; else $DIM_DATA")
    plain = Pass()
    for name, meaning in (
        ("steps", "how often the latents of every class are moved"),
        ("width", "channels of the ConvNets"),
        ("trained", "ConvNets that are trained"),
        ("resnets", "ResNet-10 of a quarter of the width that are trained"),
        ("untrained", "ConvNets that are not trained"),
        ("judges", "classifiers that every step asks"),
        ("cross_entropy", "weight of the trained classifiers' cross-entropy"),
        ("draws", "augmentations of every image per judge, 1 or 2"),
        ("learners", "ConvNets that learn from the set itself"),
    ):
        default = getattr(plain, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{meaning} (%(default)s)"
        )
    parser.add_argument("--again", action="store_true", help="go on from latents that are refined already")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    options = parser.parse_args()
    keep_freed_memory()

    def refined() -> Manifest:
        manifest = load_manifest(options.bundle)
        data = load_data(
            options.data,
            data_dir=options.data_dir,
            size=manifest.height,
            channels=manifest.channels,
            seed=split_seed(manifest),
        )
        how = Pass(**{field.name: getattr(options, field.name) for field in fields(Pass)})
        return refine(options.bundle, data, how, again=options.again, device=choose_device(options.device))

    return change(options.bundle, refined)


if __name__ == "__main__":
    sys.exit(main())
