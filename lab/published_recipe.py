"""The published recipe (DiM, arXiv 2303.04707) as one would write it down: the rival that `lab/distill_speed.py` times.

Stage 1 is WGAN-GP with class heads, one critic step per generator step. Stage 2 adds the distance between the
log-probabilities that a classifier gives to real and to generated images of the same labels; the classifier starts
afresh every epoch and makes sixteen SGD steps on real images before every generator step. What the published code loses
in data loader workers is not held against it: images are gathered from one array in memory. The layers and the
augmentations are dim's own. Tuned, it also has networks that lie in memory as dim's do (channels_last) and fused
optimisers, so that only the recipe differs.

Shapes: N batch, Z latent dimension, K classes, C channels, H = W image_px.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.augment import augment
from dim.networks.discriminator import LEAKY_SLOPE, ProjectionDiscriminator

SGD_STEPS = 16
"""Classifier steps before every generator step."""
PENALTY_WEIGHT, MATCHING_WEIGHT = 10.0, 0.01
LR, BETAS = 1e-4, (0.0, 0.9)


class TwoHeads(nn.Module):
    """A critic and a class head on the convolutions of dim's own discriminator, without its group statistics.

    Args:
        body: built with a group size of 1; its embedding of the classes goes unused.
        num_classes: K.
    """

    def __init__(self, body: ProjectionDiscriminator, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.classes = nn.Linear(body.critic.in_features, num_classes)

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's values, `[N]`, and class logits, `[N, K]`."""
        hidden = F.leaky_relu(self.body.first(images_NCHW), LEAKY_SLOPE)
        for block in self.body.blocks:
            hidden = block(hidden)
        hidden = F.leaky_relu(self.body.last(hidden), LEAKY_SLOPE)
        hidden = F.leaky_relu(self.body.head(hidden.flatten(1)), LEAKY_SLOPE)
        return self.body.critic(hidden)[:, 0], self.classes(hidden)


class PublishedRecipe:
    """The networks, optimisers and steps of both stages.

    Args:
        generator: `(latents_NZ, labels_N) -> images_NCHW`.
        critic: `images_NCHW -> (critic_N, class_logits_NK)`.
        classifiers: one per architecture; all epochs of an architecture cost the same.
        images_NCHW: uint8, on the device.
        labels_N: int64, on the device.
        batch: N, in all three loops.
        augment_policy: of what the classifiers see.
        bf16: forward passes under autocast.
        tuned: networks in the memory layout of dim's own, and fused optimisers.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        classifiers: list[nn.Module],
        images_NCHW: Tensor,
        labels_N: Tensor,
        *,
        batch: int,
        augment_policy: str,
        bf16: bool,
        tuned: bool = False,
    ) -> None:
        self.device, self.tuned = images_NCHW.device, tuned
        self.generator, self.critic = self._placed(generator), self._placed(critic)
        self.classifiers = [self._placed(classifier) for classifier in classifiers]
        self.images_NCHW, self.labels_N = images_NCHW, labels_N
        self.num_classes = int(labels_N.max()) + 1
        self.batch, self.policy, self.bf16 = batch, augment_policy, bf16
        fused = tuned or None  # None: as torch chooses
        self.generator_optimiser = torch.optim.Adam(self.generator.parameters(), lr=LR, betas=BETAS, fused=fused)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=LR, betas=BETAS, fused=fused)
        self.classifier_optimisers = [
            torch.optim.SGD(c.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused)
            for c in self.classifiers
        ]

    def _placed(self, network: nn.Module) -> nn.Module:
        if not self.tuned:
            return network.to(self.device)
        layout = getattr(network, "memory_format", torch.channels_last)  # of a classifier, what suits it
        return network.to(self.device, memory_format=layout)

    def stage1_step(self) -> None:
        """One critic step and one generator step."""
        real, labels = self._real_batch()
        self._critic_step(real, labels)
        loss, _, _ = self._generator_loss()
        self._generator_step(loss)

    def stage2_step(self, number: int) -> None:
        """Sixteen steps of one classifier, then a critic step and a generator step that matches its outputs."""
        classifier, optimiser = self.classifiers[number], self.classifier_optimisers[number]
        classifier.train()
        for _ in range(SGD_STEPS):
            self._classifier_step(classifier, optimiser)
        real, labels = self._real_batch()
        self._critic_step(real, labels)
        loss, fake, fake_labels = self._generator_loss()
        # Pairs share their label and nothing else: a real image for every generated one.
        paired = self._real_images(fake_labels)
        classifier.requires_grad_(False)
        with self._autocast():
            with torch.no_grad():
                real_logits = classifier(augment(paired, self.policy))
            fake_logits = classifier(augment(fake, self.policy))
        classifier.requires_grad_(True)
        difference = F.log_softmax(real_logits.float(), dim=1) - F.log_softmax(fake_logits.float(), dim=1)
        self._generator_step(loss + MATCHING_WEIGHT * difference.square().mean())

    def _classifier_step(self, classifier: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        images, labels = self._real_batch()
        with self._autocast():
            logits = classifier(augment(images, self.policy))
        optimiser.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    def _critic_step(self, real: Tensor, labels: Tensor) -> None:
        fake_labels = torch.randint(self.num_classes, (self.batch,), device=self.device)
        weight = torch.rand(self.batch, 1, 1, 1, device=self.device)
        with torch.no_grad(), self._autocast():
            fake = self.generator(self._latents(), fake_labels).float()
        between = (weight * real + (1 - weight) * fake).requires_grad_(True)
        with self._autocast():
            real_critic, real_classes = self.critic(real)
            fake_critic, fake_classes = self.critic(fake)
            between_critic, _ = self.critic(between)
        (gradient,) = torch.autograd.grad(between_critic.float().sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        loss = fake_critic.float().mean() - real_critic.float().mean() + PENALTY_WEIGHT * penalty
        loss = loss + F.cross_entropy(real_classes.float(), labels)
        loss = loss + F.cross_entropy(fake_classes.float(), fake_labels)
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()

    def _generator_loss(self) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.randint(self.num_classes, (self.batch,), device=self.device)
        self.critic.requires_grad_(False)
        with self._autocast():
            fake = self.generator(self._latents(), labels).float()
            critic, classes = self.critic(fake)
        self.critic.requires_grad_(True)
        return F.cross_entropy(classes.float(), labels) - critic.float().mean(), fake, labels

    def _generator_step(self, loss: Tensor) -> None:
        self.generator_optimiser.zero_grad()
        loss.backward()
        self.generator_optimiser.step()

    def _real_batch(self) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.labels_N), (self.batch,), device=self.device)
        return self.images_NCHW[index].float() / 127.5 - 1, self.labels_N[index]

    def _real_images(self, labels: Tensor) -> Tensor:
        """A random real image of each label; the classes are equally large and lie one after the other."""
        per_class = len(self.labels_N) // self.num_classes
        index = labels * per_class + torch.randint(per_class, labels.shape, device=self.device)
        return self.images_NCHW[index].float() / 127.5 - 1

    def _latents(self) -> Tensor:
        return torch.randn(self.batch, self.generator.latent_dim, device=self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
