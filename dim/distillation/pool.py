"""The pool of classifiers whose outputs stage 2 matches.

`fresh`, as published: a new classifier per epoch, trained by sixteen SGD steps before every generator step. `kept`:
every architecture is trained once and its snapshots at several ages stay on the device, so that a generator step costs
one more forward pass and no training.

Shapes: N batch, C channels, H = W image_px, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dim.augment import augment
from dim.config import DistillConfig, PoolConfig
from dim.distillation.pool_training import train_in_pieces
from dim.distillation.session import Session
from dim.execution.compiled import run_compiled
from dim.execution.device_data import seed_of, to_signed
from dim.networks.batch_norm import span_processes
from dim.networks.classifiers import GAIN_BY_COMPILING, build_classifier
from dim.runs.checkpoint import FOLDER, load_optimiser, optimiser_tensors
from dim.runs.files import make_folder, read_json, remove_file, write_json
from dim.runs.record import ImageSpec
from dim.runs.tensors import check_finite, explain_misfit, load_weights, name_weights, read_tensors, write_tensors
from dim.runtime.errors import RunError

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""SGD of the published recipe."""
MIN_STD = 1e-3
"""Floor of the standard deviation that pixels in [0, 1] are divided by: a channel may be constant."""
MIN_WIDTH_TO_COMPILE, MIN_STEPS_TO_COMPILE = 64, 1000
"""Of the pool's ConvNets, below which `auto` compiles nothing: compiling for training and matching takes a minute."""


class PoolMember(nn.Module):
    """A classifier with the normalisation of its images.

    Args:
        name: an architecture of `build_classifier`.
        images: that it sees.
        width: channels of its first layer; 0 takes the architecture's own default.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, images: ImageSpec, width: int) -> None:
        super().__init__()
        self.name, self.images, self.width = name, images, width
        self.classifier = build_classifier(
            name, images.num_classes, images.channels, images.image_px, width=width or None
        )
        self.std_values = [max(value, MIN_STD) for value in images.std]
        self.compiled = False
        """Whether outputs come from compiled code; `build_member` decides."""
        self.register_buffer("mean", torch.tensor(images.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.std_values).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """-1..1 to zero mean and unit deviation."""
        return ((images_NCHW + 1) / 2 - self.mean) / self.std

    def forward(self, normalised_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, D]` and logits `[N, K]` of normalised, perhaps augmented images."""
        if self.compiled:
            return run_compiled(self.classifier, normalised_NCHW.contiguous(memory_format=torch.channels_last))
        return self.classifier.outputs(normalised_NCHW.contiguous(memory_format=self.classifier.memory_format))

    def describe(self) -> dict[str, Any]:
        """What `dim.export` needs to build it again, as JSON-able values."""
        return {
            "arch": self.name,
            "num_classes": self.images.num_classes,
            "channels": self.images.channels,
            "image_px": self.images.image_px,
            "width": self.width,
            "mean": list(self.images.mean),
            "std": self.std_values,
        }


def build_member(session: Session, name: str, width: int, *seed: int | str) -> PoolMember:
    """A classifier with fresh weights on the device, which the run's seed and `seed` decide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(session.config.seed, *seed))
        member = PoolMember(name, session.images, width)
    member.compiled = session.compiled and name in GAIN_BY_COMPILING
    layout = torch.channels_last if member.compiled else member.classifier.memory_format
    return member.to(session.gan.device, memory_format=layout)  # type: ignore[no-any-return, call-overload]


def wants_compiling(config: DistillConfig) -> bool:
    """Whether a run's classifiers take steps enough to compile those that gain by it."""
    if config.compile == "on":
        return True
    pool = config.pool
    wide = pool.width == 0 or pool.width >= MIN_WIDTH_TO_COMPILE
    return wide and "convnet3" in pool.architectures and pool.ages[-1] >= MIN_STEPS_TO_COMPILE


def _optimiser(member: PoolMember, config: PoolConfig) -> torch.optim.SGD:
    parameters = member.parameters()
    return torch.optim.SGD(parameters, lr=config.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def _train_step(
    session: Session, member: PoolMember, optimiser: torch.optim.SGD, generator: torch.Generator
) -> dict[str, Tensor]:
    """One SGD step on real images; every process makes the same one."""
    config, gan = session.config.pool, session.gan
    labels = gan.data.draw_labels(config.batch_size, 1, generator)
    images = member.normalise(to_signed(gan.data.draw_images(labels, generator)))
    with gan.autocast():
        _, logits = member(augment(images, config.augment, generator))
    loss = F.cross_entropy(logits.float(), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return {"loss": loss.detach()}


class KeptPool:
    """Snapshots of every architecture at every age, on the device, in evaluation mode and without gradients."""

    def __init__(self, members: list[PoolMember], seed: int) -> None:
        self.members, self.seed = members, seed

    def member_for(self, step: int) -> PoolMember:
        """The classifier of a generator step, chosen by (seed, step) alone."""
        return self.members[seed_of(self.seed, "pool choice", step) % len(self.members)]

    def steps_left(self, step: int, steps: int) -> float:
        """Expected number of the remaining generator steps, of `steps` in all, that draw the same classifier."""
        return (steps - step) / len(self.members)


def prepare_pool(session: Session) -> KeptPool | None:
    """Train the pool, or read it from the run directory, where every finished architecture is kept.

    Under `torchrun` the processes share the architectures out, train side by side, and send each other the results.
    At the end `pool.safetensors` and `pool.json` take their place, with which the export checks int8.

    Returns:
        The pool; None if the time limit stopped its training, and a checkpoint was made.

    Raises:
        DivergedError: a classifier's loss is not finite.
    """
    config, world = session.config.pool, session.world
    snapshots = [
        [build_member(session, name, config.width, "pool", number) for _ in config.ages]
        for number, name in enumerate(config.architectures)
    ]
    members = [member for of_one in snapshots for member in of_one]
    if _is_written(session.run_dir, members):
        load_snapshots(members, session.run_dir, "pool.safetensors")
    else:
        finished = all(
            _train_snapshots(session, snapshots[number], number)
            for number in range(world.rank, len(snapshots), world.size)
        )
        if world.any_true(not finished, session.gan.device):
            return None
        for number, of_one in enumerate(snapshots):
            _broadcast(of_one, number % world.size, world.size)
        if world.is_main:
            write_classifiers(session.run_dir, "pool", members)
    if world.is_main:
        for number in range(len(snapshots)):  # the same tensors again
            remove_file(session.run_dir, f"{FOLDER}/pool-{number}.safetensors")
    for member in members:
        fold_batch_norms(member.eval().requires_grad_(False))
    return KeptPool(members, session.config.seed)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into its weights, in place, in evaluation mode.

    The network computes the same up to rounding, and a ResNet's part in a step of stage 2 takes 0.8 of its time (bf16,
    CPU).
    """
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (before, after) in enumerate(pairwise(list(sequence))):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                sequence[index], sequence[index + 1] = fuse_conv_bn_eval(before, after), nn.Identity()


def _train_snapshots(session: Session, snapshots: list[PoolMember], number: int) -> bool:
    """Train one classifier to the last age, or read what was kept of it; `snapshots` receives its weights at every age.

    Returns False if the time limit stopped it.
    """
    config = session.config.pool
    name, partial = f"{FOLDER}/pool-{number}.safetensors", f"{FOLDER}/pool-{number}-unfinished.safetensors"
    if (session.run_dir / name).exists():
        load_snapshots(snapshots, session.run_dir, name)
        remove_file(session.run_dir, partial)
        return True
    member = copy.deepcopy(snapshots[0]).train()
    optimiser = _optimiser(member, config)
    total = config.ages[-1]
    steps = session.gan.graphed_steps()

    def step(index: int) -> Tensor:
        seed = seed_of(session.config.seed, "pool", number, index)
        report = steps.take(
            "sgd", lambda draws: _train_step(session, member, optimiser, draws), left=total - index, seed=seed
        )
        return report["loss"]

    def report(done: int) -> None:
        session.report("pool", number * total + done, total * len(config.architectures))

    if not train_in_pieces(
        session,
        member,
        optimiser,
        step,
        total,
        what=f"The pool's {member.name}",
        name=partial,
        report=report,
        snapshots=dict(zip(config.ages, snapshots, strict=True)),
    ):
        return False
    make_folder(session.run_dir, FOLDER)
    write_tensors(session.run_dir, name, name_weights(_number_classifiers(snapshots)))
    remove_file(session.run_dir, partial)
    return True


def _number_classifiers(members: Sequence[PoolMember]) -> dict[str, nn.Module]:
    return {str(number): member.classifier for number, member in enumerate(members)}


def load_snapshots(members: Sequence[PoolMember], run_dir: Path, name: str) -> None:
    """Load the weights that `write_classifiers` wrote of these classifiers, in the same order.

    Raises:
        RunError: the file is missing, damaged, or of other classifiers.
    """
    tensors = read_tensors(run_dir, name)
    with explain_misfit(run_dir, name):
        check_finite(tensors)
        load_weights(_number_classifiers(members), tensors)


def _broadcast(members: list[PoolMember], source: int, world_size: int) -> None:
    if world_size > 1:
        for member in members:
            for tensor in member.state_dict().values():
                dist.broadcast(tensor, source)


def write_classifiers(run_dir: Path, kind: str, members: list[PoolMember]) -> None:
    """Write classifiers as `<kind>.safetensors`, keys `<i>.<name>`, and what they are as `<kind>.json`."""
    write_tensors(run_dir, f"{kind}.safetensors", name_weights(_number_classifiers(members)))
    write_json(run_dir, f"{kind}.json", [member.describe() for member in members])


def _is_written(run_dir: Path, members: list[PoolMember]) -> bool:
    """Whether an earlier call wrote this pool; its description comes last."""
    if not all((run_dir / f"pool.{kind}").exists() for kind in ("json", "safetensors")):
        return False
    try:
        return bool(read_json(run_dir, "pool.json") == [member.describe() for member in members])
    except RunError:
        return False


class FreshPool:
    """The published pool: a random architecture per epoch, trained between generator steps.

    Its weights and momentum are part of the session's checkpoints.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.config = session, session.config.pool
        self.epoch = -1
        self.is_new = False
        """Whether the last call of `member_for` began with another classifier."""

    def steps_left(self, step: int, steps: int) -> int:
        """Number of generator steps left with this epoch's classifier, this one included, of `steps` in all."""
        return min(self.config.epoch_steps - step % self.config.epoch_steps, steps - step)

    def member_for(self, step: int) -> PoolMember:
        """Train this epoch's classifier for `steps_between` steps and return it."""
        epoch = step // self.config.epoch_steps
        self.is_new = epoch != self.epoch
        if self.is_new:
            self._start(epoch)
            if step % self.config.epoch_steps and self.session.extra:
                self._restore(self.session.extra)
        self.member.train()
        # Every process trains on the whole batch, so its own statistics are those of one process.
        self._span_processes(False)
        left = self.steps_left(step, self.session.config.stage2.steps) * self.config.steps_between
        for number in range(self.config.steps_between):
            seed = seed_of(self.session.config.seed, "fresh", step, number)
            self.steps.take("sgd", self._learn, left=left - number, seed=seed)
        # As published, the classifier stays in training mode while it is matched; only its weights are frozen. It then
        # sees a share of the batch, and its statistics are those of all shares.
        self._span_processes(True)
        return self.member

    def _learn(self, generator: torch.Generator) -> dict[str, Tensor]:
        return _train_step(self.session, self.member, self.optimiser, generator)

    def _span_processes(self, together: bool) -> None:
        for norm in self.norms:
            norm.local_only = not together

    def _start(self, epoch: int) -> None:
        names = self.config.architectures
        name = names[seed_of(self.session.config.seed, "fresh choice", epoch) % len(names)]
        self.epoch = epoch
        self.member = build_member(self.session, name, self.config.width, "fresh", epoch)
        self.norms = span_processes(self.member)
        self.optimiser = _optimiser(self.member, self.config)
        self.steps = self.session.gan.graphed_steps()

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        load_weights({"classifier.model": self.member}, tensors)
        load_optimiser("classifier.optimiser", self.optimiser, tensors)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to go on in the middle of an epoch."""
        weights = name_weights({"classifier.model": self.member})
        return weights | optimiser_tensors("classifier.optimiser", self.optimiser)

    def write(self) -> None:
        """Write the last classifier as the run's pool."""
        if self.epoch < 0:
            # Resumed after the last step, so that no step has started it.
            self._start((self.session.config.stage2.steps - 1) // self.config.epoch_steps)
            self._restore(self.session.extra)
        write_classifiers(self.session.run_dir, "pool", [self.member])
