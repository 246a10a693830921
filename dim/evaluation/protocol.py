"""What an evaluation measures (`EvalProtocol`) and how it runs (`Execution`); both are checked without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dim.config import CLASSIFIER_NAMES
from dim.runtime.choose_engine import settle_precision
from dim.runtime.cores import check_threads
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, DeviceError
from dim.students.recipes import Recipe, resolve_recipe

if TYPE_CHECKING:
    import torch

MODES = ("fixed", "stream")
LABELS = ("hard", "soft")
CONTROLS = ("real", "archive")
HOLDOUT = "holdout"
"""Name of the recipe that is chosen on images held out of the training split."""


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """Which students are trained on every subject, and how; all that decides an accuracy but the machine.

    Raises:
        BadValueError: a field is out of range.

    Examples:
        >>> EvalProtocol(ipcs=(10,), archs=("convnet3",), width=32, epochs=100)
    """

    ipcs: tuple[int, ...] = (10, 50, 1)
    """Images per class and epoch, in the order in which they are run."""
    modes: tuple[str, ...] = MODES
    """`fixed`, the set that `dim generate` writes; `stream`, fresh images in every epoch."""
    archs: tuple[str, ...] = ("convnet3",)
    """Names of `dim.networks.classifiers`."""
    width: int | None = None
    """Width of every classifier; None for the published ones."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One student each: of its weights, its augmentation and the order of its images."""
    epochs: int = 1000
    """Passes over `ipc` images per class, in both modes."""
    recipe: str | Recipe = "default"
    """`default`, `published`, `reference`, `condensation` or `condensation-all` (see
    `dim.students.recipes.resolve_recipe`); a finished recipe; or `holdout`, the best of several on real images held out
    (`dim.evaluation.choose_recipe`)."""
    labels: tuple[str, ...] = ("hard",)
    """`hard`, `soft` (logits of the teacher of the first bundle) or both."""
    controls: tuple[str, ...] = CONTROLS
    """What stands beside a bundle: `real`, as many images or steps; `archive`, beside streams, the best compressed
    archive of real images of as many bytes as the file that the stream is drawn from. Without a bundle, `real`."""
    real_percents: tuple[float, ...] = ()
    """Parts of every class's real images, in percent: students are trained on them alone and with as many generated
    images added to every batch, at the steps of `stream`."""
    whole_epochs: int = 0
    """Epochs over the whole training split, as a row of its own; 0 for none."""

    quality: bool = False
    """Whether the images of the first bundle are compared with real ones: FD, KID, precision, recall, density and
    coverage (`dim.evaluation.quality`)."""
    privacy: bool = False
    """Whether copies of training images are looked for among the images of the first bundle."""
    features: str = ""
    """`MODULE:FUNCTION`, what `quality` and `privacy` compare images by; empty for a classifier trained here on real
    training images."""

    def __post_init__(self) -> None:
        self._check_names("mode", self.modes, MODES)
        self._check_names("classifier", self.archs, CLASSIFIER_NAMES)
        self._check_names("kind of labels", self.labels, LABELS)
        self._check_names("control", self.controls, CONTROLS)
        for field in ("modes", "ipcs", "archs", "seeds", "labels"):
            values = getattr(self, field)
            if field == "seeds" and not values and (self.quality or self.privacy):
                continue  # the images alone are looked at
            if not values or len(set(values)) != len(values):
                raise BadValueError(f"`{field}` is {list(values)}; give at least one, and each once.")
        for name, numbers, low in [
            ("ipc", self.ipcs, 1),
            ("seed", self.seeds, 0),
            ("epochs", (self.epochs,), 1),
            ("whole_epochs", (self.whole_epochs,), 0),
        ]:
            for number in numbers:
                if number < low:
                    raise BadValueError(f"`{name}` is {number}; it must be at least {low}.")
        for percent in self.real_percents:
            if not 0 < percent <= 100:
                raise BadValueError(f"`real_percents` holds {percent:g}; it must lie above 0 and not above 100.")
        if self.recipe != HOLDOUT:
            resolve_recipe(self.recipe, "")

    @staticmethod
    def _check_names(kind: str, names: Sequence[str], allowed: Sequence[str]) -> None:
        for name in names:
            if name not in allowed:
                raise BadValueError(f"There is no {kind} '{name}'; there are {', '.join(allowed)}.")


PROTOCOLS = {
    "quick": EvalProtocol(ipcs=(10, 50), epochs=100, width=32),
    "full": EvalProtocol(archs=("convnet3", "resnet18")),
    "reference": EvalProtocol(ipcs=(10,), modes=("stream",), recipe="reference"),
}
"""By name: `quick`, a first answer in minutes on two cores for small grey images, a tenth of the epochs with a narrow
ConvNet-3; `full`, the protocol of the published tables; `reference`, that of the DiM code itself, batches of 10, 25 and
50 at 1, 10 and 50 images per class: 4,000 steps of 25 at ten."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """On what, how fast and how long students are trained. The defaults use the whole machine.

    Raises:
        BadValueError: a field is out of range.
    """

    device: str = "auto"
    """`auto`, `cpu` or `gpu`, for the students; `gpu` fails where there is none."""
    precision: str = "auto"
    """`auto`, `fp32` or `bf16`, for the students; a result of one is no result of the other."""
    threads: int | None = None
    """CPU threads in all; None for every core this process may use."""
    jobs: int | None = None
    """Students trained side by side, sharing the threads; None for one per thread on a CPU, at most 8, where there is
    enough to do, and for one on a GPU. On two busy cores, two jobs of one thread made 16 steps per second together, one
    job of two threads 1; on an H100 under NVIDIA MPS, seven jobs took 75 s for 90 students of 32x32 colour images."""
    graphs: bool = True
    """Whether students on a GPU are trained by CUDA graphs."""
    compile: str = "auto"
    """`torch.compile` for students that gain by it, ConvNet-3: `on`, `off`, or `auto`: on a CPU with a C++ compiler,
    where there is enough to do."""
    engine: EngineOptions = EngineOptions()
    """What draws the images; without a precision they are drawn in fp32, with "auto" in bf16 where
    this machine has it. Its threads are those of a job."""
    torch_draws: bool = False
    """Draw the images by PyTorch on the students' device, in the precision of `engine`."""
    resume: bool = True
    """Take finished students from the folder of the results; False trains all of them again."""
    time_limit_s: float | None = None
    """Start no student after so many seconds; those in training are finished."""

    def __post_init__(self) -> None:
        for field, allowed in [
            ("device", ("auto", "cpu", "gpu")),
            ("precision", ("auto", "fp32", "bf16")),
            ("compile", ("auto", "on", "off")),
        ]:
            if getattr(self, field) not in allowed:
                names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise BadValueError(f"`{field}` is {getattr(self, field)!r}; it must be {names}.")
        check_threads(self.threads)
        for field, low in [("jobs", 1), ("time_limit_s", 0)]:
            number = getattr(self, field)
            if number is not None and number < low:
                raise BadValueError(f"`{field}` is {number}; it must be at least {low}.")

    @property
    def image_engine(self) -> str:
        """Name of the engine that was asked for; empty where it is left to choose."""
        if self.torch_draws:
            from dim.torch_engine.engine import TORCH

            return TORCH
        return "" if self.engine.engine == "auto" else self.engine.engine

    @property
    def image_precision(self) -> str:
        """Precision in which the images are drawn."""
        if self.torch_draws and self.engine.precision == "auto":
            return "fp32"
        return settle_precision(self.engine).precision or "fp32"

    def choose_device(self) -> torch.device:
        """Return the device of the students.

        Raises:
            DeviceError: a GPU is asked for and there is none.
        """
        import torch

        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise DeviceError(
                f"torch {torch.__version__} finds no GPU: use --device cpu, or install a CUDA build of torch."
            )
        return torch.device("cuda")

    def choose_precision(self) -> str:
        """Return the precision of the students: `fp32` or `bf16`."""
        from dim.students.train import choose_precision

        return choose_precision(self.precision, self.choose_device())
