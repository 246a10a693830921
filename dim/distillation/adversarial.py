"""Adversarial training of a conditional GAN: its networks and optimisers, and one step of each.

Shapes: N batch (this process's share), Z latent dimension, C channels, H = W image_px.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dim.augment import augment
from dim.config import AdversarialConfig, DistillConfig
from dim.execution.cuda_graphs import GraphedSteps, capturable_lr, set_lr
from dim.execution.device import autocast_dtype
from dim.execution.device_data import DeviceData, seed_of, step_generator, to_signed
from dim.execution.distributed import World
from dim.networks.batch_norm import refresh_statistics
from dim.networks.discriminator import build_discriminator
from dim.networks.generator import build_generator
from dim.runs.record import ImageSpec

PENALTY_WEIGHT = 10.0
"""Weight of WGAN-GP's gradient penalty (arXiv 1704.00028), as published."""
STATISTICS_BATCH_SIZE = 256
"""Of the batches over which the generator's batch statistics are averaged."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The randomness of one step, already cut to this process's share."""

    labels_N: Tensor
    real_NCHW: Tensor
    """float, -1 to 1."""
    fake_labels_N: Tensor
    """Labels of the images that the discriminator is shown as generated."""
    discriminator_latents_NZ: Tensor
    generator_latents_NZ: Tensor
    generator: torch.Generator
    """For the augmentations that follow."""


class AdversarialTraining:
    """Generator, its exponential moving average (EMA), discriminator and optimisers."""

    def __init__(self, config: DistillConfig, images: ImageSpec, data: DeviceData, world: World) -> None:
        self.config, self.data, self.world, self.device = config, data, world, data.device
        self.autocast_dtype = autocast_dtype(config.autocast, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, "networks"))
            sizes = {"num_classes": images.num_classes, "image_px": images.image_px, "channels": images.channels}
            generator = build_generator(config.generator, **sizes)
            discriminator = build_discriminator(config.discriminator, **sizes)
        layout = torch.channels_last
        self.generator = generator.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.parallel_generator = self._parallel(self.generator)
        self.parallel_discriminator = self._parallel(self.discriminator)
        self.start_stage(config.stage1.adversarial)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by their names in checkpoints."""
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}

    def _parallel(self, network: nn.Module) -> nn.Module:
        if self.world.size == 1:
            return network
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)

    def graphed_steps(self) -> GraphedSteps:
        """An executor for the steps of a stage: CUDA graphs where configuration and device allow them."""
        return GraphedSteps(self.device, wanted=self.config.graphs == "auto" and self.world.size == 1)

    def start_stage(self, adversarial: AdversarialConfig, steps: GraphedSteps | None = None) -> None:
        """Fresh optimisers for a stage whose steps `steps` executes; the networks go on as they are."""
        self.adversarial = adversarial
        self._pattern_counts = Counter(self.penalty_pattern(step) for step in range(adversarial.r1_every))
        steps = steps or GraphedSteps(self.device, wanted=False)

        def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
            return torch.optim.Adam(
                network.parameters(),
                lr=capturable_lr(rate, steps),
                betas=(adversarial.beta1, adversarial.beta2),
                fused=True,
                capturable=steps.recording,
            )

        self.generator_optimiser = adam(self.generator, adversarial.generator_lr)
        self.discriminator_optimiser = adam(self.discriminator, adversarial.discriminator_lr)

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where the configuration and the device want it."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled)

    def draw(self, generator: torch.Generator, batch_size: int, group_size: int) -> Draws:
        """Draw labels, real images and latents of one step.

        Args:
            generator: seeded for the step.
            batch_size: of all processes.
            group_size: consecutive images of one class.
        """
        if self.adversarial.loss == "wgan-gp-ac" and group_size == 1:
            labels = self.data.draw_natural_labels(batch_size, generator)
            shape = (batch_size,)
            fake_labels = torch.randint(self.data.num_classes, shape, device=self.device, generator=generator)
        else:
            labels = fake_labels = self.data.draw_labels(batch_size, group_size, generator)
        real = self.data.draw_images(labels, generator)
        size = (2, batch_size, self.config.generator.latent_dim)
        latents = torch.randn(size, device=self.device, generator=generator) * self.config.latent_std
        cut = self.world.slice
        return Draws(
            labels_N=cut(labels),
            real_NCHW=to_signed(cut(real)),
            fake_labels_N=cut(fake_labels),
            discriminator_latents_NZ=cut(latents[0]),
            generator_latents_NZ=cut(latents[1]),
            generator=generator,
        )

    def augment_share(
        self, images_NCHW: Tensor, policy: str, generator: torch.Generator, *, fill: float = -1.0
    ) -> Tensor:
        """Augment this process's share of a batch with the draws that one process would make for the whole batch."""
        if self.world.size == 1:
            return augment(images_NCHW, policy, generator, fill=fill)
        share = images_NCHW.shape[0]
        before, after = self.world.rank * share, (self.world.size - 1 - self.world.rank) * share
        everyone = F.pad(images_NCHW, (0, 0, 0, 0, 0, 0, before, after))
        return augment(everyone, policy, generator, fill=fill)[before : before + share]

    def set_learning_rates(self, progress: float) -> None:
        """Set both learning rates by linear decay; `progress` runs from 0 to 1 over the stage."""
        a = self.adversarial
        factor = 1.0 + (a.final_lr_fraction - 1.0) * progress
        for optimiser, lr in (
            (self.generator_optimiser, a.generator_lr),
            (self.discriminator_optimiser, a.discriminator_lr),
        ):
            set_lr(optimiser, lr * factor)

    def penalty_pattern(self, step: int) -> tuple[bool, ...]:
        """For every discriminator step of a generator step, whether it has the R1 penalty."""
        a = self.adversarial
        first = step * a.discriminator_steps
        return tuple(a.r1_gamma > 0 and i % a.r1_every == 0 for i in range(first, first + a.discriminator_steps))

    def penalty_pattern_frequency(self, step: int) -> float:
        """Fraction of a stage's steps with the same R1 pattern as `step`; tells how often a CUDA graph will be
        replayed."""
        return self._pattern_counts[self.penalty_pattern(step)] / self._pattern_counts.total()

    def train_discriminator(
        self, generator: torch.Generator, batch_size: int, group_size: int, step: int
    ) -> tuple[Draws, dict[str, Tensor]]:
        """Take the discriminator's steps of the generator step of that number, with draws as of `draw`.

        Returns:
            The last draws, on which the generator's step is to be taken, and the mean of every loss.
        """
        reports = []
        for penalise in self.penalty_pattern(step):
            draws = self.draw(generator, batch_size, group_size)
            reports.append(self.discriminator_step(draws, penalise))
        names = {name for report in reports for name in report}
        return draws, {
            name: torch.stack([report[name] for report in reports if name in report]).mean() for name in sorted(names)
        }

    def discriminator_step(self, draws: Draws, penalise: bool) -> dict[str, Tensor]:
        """Take one optimiser step of the discriminator, with R1 if `penalise`; returns its losses on the device."""
        with torch.no_grad(), self.autocast():
            fake = self.generator(draws.discriminator_latents_NZ, draws.fake_labels_N).float()
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        if self.adversarial.loss == "wgan-gp-ac":
            loss, report = self._paper_discriminator_loss(draws, fake)
        else:
            loss, report = self._logistic_discriminator_loss(draws, fake, penalise)
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimiser.step()
        return report

    def _logistic_discriminator_loss(
        self, draws: Draws, fake_NCHW: Tensor, penalise: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Non-saturating logistic loss, with R1 (arXiv 1801.04406) if `penalise`, in one pass over both halves."""
        a = self.adversarial
        real = self.augment_share(draws.real_NCHW, a.augment, draws.generator)
        fake = self.augment_share(fake_NCHW, a.augment, draws.generator)
        real.requires_grad_(penalise)
        labels = torch.cat([draws.labels_N, draws.fake_labels_N])
        with self.autocast():
            logits = self.parallel_discriminator(torch.cat([real, fake]), labels)
        real_logits, fake_logits = logits.chunk(2)
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        report = {"discriminator_loss": loss.detach(), "real_logit": real_logits.detach().mean()}
        report["fake_logit"] = fake_logits.detach().mean()
        if penalise:
            (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum(dim=(1, 2, 3)).mean()
            loss = loss + (a.r1_gamma / 2 * a.r1_every) * penalty
            report["r1"] = penalty.detach()
        return loss, report

    def _paper_discriminator_loss(self, draws: Draws, fake_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """WGAN-GP plus class heads on real and generated images, as published."""
        real = draws.real_NCHW
        weight = torch.rand(real.shape[0] * self.world.size, device=self.device, generator=draws.generator)
        weight = self.world.slice(weight).view(-1, 1, 1, 1)
        between = (weight * real + (1 - weight) * fake_NCHW).requires_grad_(True)
        with self.autocast():
            critic, classes = self.parallel_discriminator(torch.cat([real, fake_NCHW, between]))
        real_critic, fake_critic, between_critic = critic.float().chunk(3)
        real_classes, fake_classes, _ = classes.float().chunk(3)
        (gradient,) = torch.autograd.grad(between_critic.sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        class_loss = F.cross_entropy(real_classes, draws.labels_N) + F.cross_entropy(fake_classes, draws.fake_labels_N)
        distance = real_critic.mean() - fake_critic.mean()
        loss = PENALTY_WEIGHT * penalty + class_loss - distance
        report = {"discriminator_loss": loss, "real_logit": real_critic.mean(), "fake_logit": fake_critic.mean()}
        return loss, {k: v.detach() for k, v in report.items()}

    def generator_loss(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss and the images_NCHW that it was taken on."""
        self.discriminator.requires_grad_(False)
        with self.autocast():
            fake = self.parallel_generator(draws.generator_latents_NZ, draws.labels_N).float()
            if self.adversarial.loss == "wgan-gp-ac":
                critic, classes = self.discriminator(fake)
                loss = F.cross_entropy(classes.float(), draws.labels_N) - critic.float().mean()
            else:
                shown = self.augment_share(fake, self.adversarial.augment, draws.generator)
                loss = F.softplus(-self.discriminator(shown, draws.labels_N)).mean()
        self.discriminator.requires_grad_(True)
        return loss, fake

    def generator_step(self, loss: Tensor, batch_size: int) -> None:
        """Take one optimiser step of the generator, and one of its moving average."""
        self.generator_optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.generator_optimiser.step()
        halflife = self.adversarial.ema_halflife_kimg * 1000
        keep = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        with torch.no_grad():
            ours, theirs = list(self.ema.parameters()), [p.detach() for p in self.generator.parameters()]
            torch._foreach_lerp_(ours, theirs, 1.0 - keep)

    def copy_ema_generator(self, batches: int = 16) -> nn.Module:
        """Copy the moving average, float32, in evaluation mode, with batch statistics measured anew.

        A moving average of weights has no batch statistics of its own.

        Args:
            batches: over which statistics are averaged.
        """
        network = copy.deepcopy(self.ema)
        generator = step_generator(self.device, self.config.seed, "statistics")
        size, arguments = (STATISTICS_BATCH_SIZE, self.config.generator.latent_dim), []
        for _ in range(batches):
            labels = self.data.draw_labels(size[0], 1, generator)
            latents = torch.randn(size, device=self.device, generator=generator) * self.config.latent_std
            arguments.append((latents, labels))
        refresh_statistics(network, arguments)
        return network  # type: ignore[no-any-return]
