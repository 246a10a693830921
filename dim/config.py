"""The configuration of a distillation: one frozen dataclass per stage, checked once, written as JSON into the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from dim.policy import parse_policy
from dim.runtime.errors import BadValueError
from dim.runtime.storage.records import FieldError, from_plain, to_plain


class _FieldError(BadValueError, FieldError):
    """A field is out of range; `from_dict` tells it by its place in the whole configuration.

    Args:
        owner: the dataclass that has the field.
        name: of the field.
        expected: what it must be, as the end of a sentence.
    """

    def __init__(self, owner: object, name: str, expected: str) -> None:
        self.field, self.found, self.expected = name, getattr(owner, name), expected
        self._sentence = f"{type(owner).__name__}.{name} is {self.found!r}; it must be {expected}."
        ValueError.__init__(self, self._sentence)

    def __str__(self) -> str:
        return self._sentence

    def __reduce__(self) -> tuple[type[BadValueError], tuple[str]]:
        """Travel between processes without the dataclass."""
        return BadValueError, (self._sentence,)


def _check_between(owner: object, name: str, low: float, high: float) -> None:
    if not low <= getattr(owner, name) <= high:
        raise _FieldError(owner, name, f"between {low:,} and {high:,}")


def _check_one_of(owner: object, name: str, allowed: Collection[str]) -> None:
    if getattr(owner, name) not in allowed:
        raise _FieldError(owner, name, f"one of {', '.join(allowed)}")


def _check_policy(owner: object, name: str) -> None:
    """Refuse alternatives: real and generated images, augmented apart, would each get their own."""
    policy = getattr(owner, name)
    try:
        alternatives = parse_policy(policy)
    except BadValueError as error:
        raise _FieldError(owner, name, f"a policy of augmentations ({str(error).rstrip('.')})") from error
    if len(alternatives) > 1:
        raise _FieldError(owner, name, "without alternatives, joined by bars, which are for students alone")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The network that is distilled and deployed."""

    kind: str = "resize"
    """`resize`: resize + convolution; `paper`: the published transposed convolutions."""
    latent_dim: int = 64
    """Length of a latent vector; the paper uses 100."""
    width: int = 32
    """Channels at full resolution; they double at every halving of the resolution, up to `max_width`. Of the kind
    `paper`: of every layer."""
    max_width: int = 128
    """Upper bound on the channels of a layer."""
    conditioning: str = "input"
    """`input`: a class embedding beside the latents; `norm`: per-class gain and bias in every batch norm as well."""
    mirrored: bool = False
    """Whether images whose last latent is positive are flipped horizontally; for classes that survive it. A
    discriminator whose images are flipped cannot observe orientation, so that without this the generator draws every
    object facing one way, and students that do not flip learn less (docs/concepts/how-it-works.md)."""

    def __post_init__(self) -> None:
        _check_one_of(self, "kind", ("resize", "paper"))
        if self.mirrored and self.kind == "paper":
            raise BadValueError("generator.mirrored is for the kind resize; the published generator flips nothing.")
        _check_between(self, "latent_dim", 1, 4096)
        _check_between(self, "width", 1, 1024)
        _check_between(self, "max_width", self.width, 2048)
        _check_one_of(self, "conditioning", ("input", "norm"))


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The network that tells real images from generated ones; thrown away after distillation."""

    kind: str = "projection"
    """`projection`: Miyato and Koyama 2018 (arXiv 1802.05637) on a flattened head; `paper`: critic and class heads."""
    width: int = 32
    """Channels at full resolution, doubled at every halving up to `max_width`. Of the kind `paper`: of every layer."""
    max_width: int = 128
    """Upper bound on the channels of a layer."""
    group_size: int = 4
    """Consecutive images of one class over which the standard deviation is a feature (Karras 2017); 1 turns it off."""
    patch_px: int = 1
    """Side in pixels, 1 or 2, of the patches whose pixels the first convolution takes as channels. With 2, the layers
    at full resolution are left out, and a step of `best` on a CPU takes three quarters of its time."""

    def __post_init__(self) -> None:
        _check_one_of(self, "kind", ("projection", "paper"))
        _check_between(self, "patch_px", 1, 2)
        if self.patch_px > 1 and self.kind == "paper":
            raise BadValueError("discriminator.patch_px is for the kind projection; the published critic sees pixels.")
        _check_between(self, "width", 1, 1024)
        _check_between(self, "max_width", self.width, 2048)
        _check_between(self, "group_size", 1, 64)


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Losses and optimisers of the adversarial training, in both stages."""

    loss: str = "logistic"
    """`logistic` with a lazy R1 penalty (arXiv 1801.04406), or `wgan-gp-ac`, the paper's WGAN-GP with class heads."""
    generator_lr: float = 2e-4
    """Adam's learning rate for the generator, lower than the discriminator's (arXiv 1706.08500): at equal rates every
    class of digits collapsed to one image. Decays linearly to `final_lr_fraction` of itself."""
    discriminator_lr: float = 5e-4
    """Adam's learning rate for the discriminator."""
    beta1: float = 0.0
    """Adam's first decay rate."""
    beta2: float = 0.99
    """Adam's second decay rate."""
    final_lr_fraction: float = 1.0
    """Learning rate of the last step as a fraction of the first."""
    r1_gamma: float = 0.5
    """Gamma of the R1 penalty, which enters the loss as gamma / 2; the logistic loss only."""
    r1_every: int = 8
    """Discriminator steps between R1 penalties, each then weighted by this number (arXiv 1912.04958)."""
    discriminator_steps: int = 1
    """Discriminator steps before every generator step, each on images of its own."""
    augment: str = "crop=0.1"
    """Differentiable augmentation of what the discriminator sees (arXiv 2006.10738); empty: none."""
    ema_halflife_kimg: float = 10.0
    """Half-life of the generator's moving average, in thousands of generated images; 0 keeps the raw weights."""

    def __post_init__(self) -> None:
        _check_one_of(self, "loss", ("logistic", "wgan-gp-ac"))
        for name in ("generator_lr", "discriminator_lr"):
            _check_between(self, name, 1e-8, 1.0)
        for name in ("beta1", "beta2"):
            _check_between(self, name, 0.0, 0.99999)
        _check_between(self, "final_lr_fraction", 0.0, 1.0)
        _check_between(self, "r1_gamma", 0.0, 1e4)
        _check_between(self, "r1_every", 1, 10_000)
        _check_between(self, "discriminator_steps", 1, 100)
        _check_between(self, "ema_halflife_kimg", 0.0, 1e6)
        _check_policy(self, "augment")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of distillation."""

    steps: int
    """Generator steps; 0 skips the stage."""
    batch_size: int
    """Real images per step, over all processes; as many are generated."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Losses and optimisers."""

    def __post_init__(self) -> None:
        _check_between(self, "steps", 0, 100_000_000)
        _check_between(self, "batch_size", 2, 65_536)


CLASSIFIER_NAMES = (
    "convnet3",
    "resnet10",
    "resnet10-half",
    "resnet18",
    "resnet18-half",
    "resnetap10",
    "resnetap10-half",
    "resnetap18",
    "resnetap18-half",
    "vgg11",
    "densenet",
    "mlp",
)
"""Every name that `dim.networks.classifiers.build_classifier` knows."""
PAPER_POOL = ("convnet3", "resnet10", "resnet18", "resnetap10", "resnetap18")
"""The paper's pool of classifiers."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The classifiers whose logits are matched (paper, section 3.3)."""

    kind: str = "kept"
    """`kept`: trained once, snapshots of several ages stay on the device; `fresh`: one per epoch, as published."""
    architectures: tuple[str, ...] = PAPER_POOL
    """Names that `build_classifier` knows."""
    width: int = 0
    """Channels of the first layer; 0 takes each architecture's own default."""
    ages: tuple[int, ...] = (50, 200, 800)
    """SGD steps after which a snapshot of each classifier is kept; `kept` only."""
    steps_between: int = 16
    """SGD steps on real images before every generator step; `fresh` only."""
    epoch_steps: int = 780
    """Generator steps that share one classifier; `fresh` only."""
    batch_size: int = 64
    """Images per SGD step."""
    lr: float = 0.01
    """SGD's learning rate, with momentum 0.9 and weight decay 5e-4."""
    augment: str = "crop=0.1"
    """Augmentation of the classifiers' training images."""

    def __post_init__(self) -> None:
        _check_one_of(self, "kind", ("kept", "fresh"))
        if not self.architectures:
            raise _FieldError(self, "architectures", "at least one classifier")
        if not set(self.architectures) <= set(CLASSIFIER_NAMES):
            raise _FieldError(self, "architectures", f"some of {', '.join(CLASSIFIER_NAMES)}")
        if not self.ages or list(self.ages) != sorted(set(self.ages)) or self.ages[0] < 1:
            raise _FieldError(self, "ages", "increasing positive numbers of steps")
        _check_between(self, "width", 0, 1024)
        _check_between(self, "steps_between", 0, 10_000)
        _check_between(self, "epoch_steps", 1, 10_000_000)
        _check_between(self, "batch_size", 1, 65_536)
        _check_between(self, "lr", 1e-8, 10.0)
        _check_policy(self, "augment")


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """What stage 2 adds to the adversarial loss."""

    loss: str = "distribution"
    """`distribution`: per-class distances between distributions of logits and features; `paper`: squared difference of
    log-probabilities of independent pairs, which shrinks when the generator collapses; `none`: a control."""
    weight: float = 1.0
    """Weight of the matching loss; the paper's is 0.01, which a preset with the loss `paper` takes unless it is set."""
    feature_weight: float = 1.0
    """Weight of the features beside the logits; `distribution` only."""
    cross_entropy: float = 0.0
    """Weight of the classifiers' cross-entropy on generated images beside the distance; `distribution` only. It makes
    them surer of generated images; too much of it makes the images of a class alike."""
    augment: str = "crop=0.1"
    """Augmentation of what the classifiers see, drawn anew for real and generated images."""
    classes_per_step: int = 4
    """Classes that share a batch; more images of each make a better estimate; `distribution` only."""

    def __post_init__(self) -> None:
        _check_one_of(self, "loss", ("distribution", "paper", "none"))
        _check_between(self, "weight", 0.0, 1e4)
        _check_between(self, "feature_weight", 0.0, 1e4)
        _check_between(self, "cross_entropy", 0.0, 1e4)
        _check_between(self, "classes_per_step", 1, 1000)
        if self.cross_entropy and self.loss != "distribution":
            raise _FieldError(self, "cross_entropy", f"0 with the loss {self.loss!r}; it belongs to distribution")
        _check_policy(self, "augment")


@dataclass(frozen=True, kw_only=True)
class DeploymentConfig:
    """What is chosen and added after training, from training images alone.

    See `dim.distillation.choices` and `dim.distillation.teacher`.
    """

    latent_stds: tuple[float, ...] = ()
    """Standard deviations of the latents to choose from (GaFi, arXiv 2305.10118); empty keeps `latent_std`."""
    holdout: float = 0.05
    """Fraction of every class's training images that nothing is trained on, for the choice among several
    `latent_stds`."""
    fixed_latents: int = 0
    """Latents per class chosen for fixed sets; 0 writes none."""
    candidates: int = 500
    """Latents per class to choose from."""
    refine_steps: int = 0
    """Gradient steps on the fixed latents of every class for sets of one image, and then for sets of ten
    (`dim.distillation.refinement`); 0 leaves them as chosen. 12 classes share a step for sets of ten, so 100 classes
    take five times as many steps as ten do, and 1,000 fifty times."""
    refine_cross_entropy: float = 0.0
    """Weight of the trained classifiers' cross-entropy beside the distance of means."""
    refine_draws: int = 1
    """Augmentations of every image per classifier, 1 or 2; with two, their variance does not count in the distance."""
    refine_learners: int = 0
    """Classifiers that learn from the refined set meanwhile, instead of from real images."""
    teacher: str = ""
    """Architecture of a classifier that gives soft labels, trained on the real images; empty trains none."""
    teacher_width: int = 0
    """Channels of its first layer; 0 takes the architecture's own: 1.3 MB for a ConvNet-3 of 32x32 images."""
    teacher_steps: int = 2000
    """SGD steps of the teacher, by the students' default recipe."""

    def __post_init__(self) -> None:
        if any(not 0.1 <= std <= 10 for std in self.latent_stds):
            raise _FieldError(self, "latent_stds", "numbers between 0.1 and 10")
        _check_between(self, "holdout", 0.001, 0.5)
        _check_between(self, "candidates", 1, 100_000)
        _check_between(self, "fixed_latents", 0, self.candidates)
        _check_between(self, "refine_steps", 0, 1_000_000)
        _check_between(self, "refine_cross_entropy", 0, 100)
        _check_between(self, "refine_draws", 1, 2)
        _check_between(self, "refine_learners", 0, 1000)
        if self.teacher:
            _check_one_of(self, "teacher", CLASSIFIER_NAMES)
        _check_between(self, "teacher_width", 0, 1024)
        _check_between(self, "teacher_steps", 1, 10_000_000)


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which of the generator's images the bundle draws; see `dim.distillation.certainty_filter`."""

    candidates: int = 0
    """Candidates per class that are judged, a multiple of 8; 0 judges none, and every index has latents of its own.
    They take an eighth of a byte each in the bundle."""
    keep: float = 0.7
    """Part of every class's candidates that is accepted: those of whose label the judges are surest."""
    judge: str = "pool"
    """`pool`: the oldest classifier of every architecture; `teacher`: the bundle's teacher."""

    def __post_init__(self) -> None:
        _check_between(self, "candidates", 0, 2**24)
        if self.candidates % 8:
            raise _FieldError(self, "candidates", "a multiple of 8")
        _check_between(self, "keep", 0.01, 1.0)
        _check_one_of(self, "judge", ("pool", "teacher"))


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything that decides what a distillation produces, beside the data."""

    name: str
    """Name of the run and of the bundle."""
    preset: str
    """The preset that this configuration started from."""
    seed: int = 0
    """Seed of every draw."""
    latent_std: float = 1.0
    """Standard deviation of the latents, in training and deployment."""
    autocast: str = "auto"
    """`bf16`, `off`, or `auto`: bf16 where the device has bf16 matrix instructions."""
    compile: str = "auto"
    """`torch.compile` for the classifiers that gain by it, ConvNet-3: `on`, `off`, or `auto`: on a CPU with a C++
    compiler, for pools that are wide and old enough."""
    graphs: str = "auto"
    """CUDA graphs of the steps: `auto`, on a GPU in one process, or `off`. Steps of stage 1 with networks of 64 to 256
    channels and one discriminator step took 28.5 ms without them and 9.1 with them on average (H100, 32x32 colour,
    batch 128, bf16)."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The generator."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator."""
    stage1: StageConfig
    """The conditional GAN."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """The classifiers of stage 2."""
    stage2: StageConfig
    """Matching."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    """The matching loss of stage 2."""
    deployment: DeploymentConfig = field(default_factory=DeploymentConfig)
    """What is chosen after training."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which candidates are drawn."""
    checkpoint_steps: int = 500
    """Steps between checkpoints; an interruption loses at most this many."""
    grid_steps: int = 500
    """Steps between sample grids."""
    log_steps: int = 50
    """Steps between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        _check_between(self, "seed", 0, 2**63 - 1)
        _check_between(self, "latent_std", 1e-3, 100.0)
        _check_one_of(self, "autocast", ("auto", "bf16", "off"))
        _check_one_of(self, "compile", ("auto", "on", "off"))
        _check_one_of(self, "graphs", ("auto", "off"))
        for name in ("checkpoint_steps", "grid_steps", "log_steps"):
            _check_between(self, name, 1, 10_000_000)
        if self.wants_choices and self.pool.kind != "kept":
            raise BadValueError("deployment.latent_stds and fixed_latents need the kept pool: set pool.kind to 'kept'.")
        if self.filter.candidates and self.pool.kind != "kept":
            raise BadValueError("filter.candidates needs the kept pool: set pool.kind to 'kept'.")
        if self.filter.candidates and self.filter.judge == "teacher" and not self.deployment.teacher:
            raise BadValueError("filter.judge is 'teacher' and there is none: set deployment.teacher to 'convnet3'.")
        paper = self.stage1.adversarial.loss == "wgan-gp-ac"
        if paper != (self.discriminator.kind == "paper"):
            raise BadValueError("The loss 'wgan-gp-ac' and the discriminator 'paper' belong together.")

    @property
    def wants_choices(self) -> bool:
        """Whether anything is chosen with the pool after training."""
        return bool(self.deployment.latent_stds or self.deployment.fixed_latents)


def to_dict(config: DistillConfig) -> dict[str, Any]:
    """The configuration as JSON-able values, tuples as lists."""
    return to_plain(config)


def from_dict(values: Mapping[str, Any]) -> DistillConfig:
    """The inverse of `to_dict`; fields that are missing have their defaults.

    Raises:
        BadValueError: a field is unknown, missing without a default, of another type or out of range.
    """
    return from_plain(DistillConfig, values, "The configuration", error=BadValueError, defaults=True)
