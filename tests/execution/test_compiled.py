"""Compiled ConvNets learn what plain ones learn, students share their code, and whoever cannot compile is told so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from parallel_runs import metrics
from quick_runs import quick, weights
from small_images import make_images
from torch import Tensor

from dim.distillation.distill import distill
from dim.distillation.pool import wants_compiling
from dim.execution import compiled
from dim.execution.compiled import can_compile
from dim.networks.classifiers import build_classifier
from dim.runtime.errors import BadValueError, DeviceError
from dim.students.recipes import DEFAULT
from dim.students.train import StudentSpec, train_student

# Torch's compiler meets warnings of its own, and hides one in a way that does not work where warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
CPU = torch.device("cpu")
SPEC = StudentSpec(
    arch="convnet3",
    width=8,
    num_classes=3,
    channels=1,
    image_px=12,
    mean=(0.5,),
    std=(0.25,),
    recipe=replace(DEFAULT, augment="crop"),
    precision="fp32",
)
SHORT = {
    "autocast": "off",
    "stage1.steps": 2,
    "stage2.steps": 3,
    "pool.architectures": ("convnet3", "mlp"),
    "log_steps": 1,
    "checkpoint_steps": 1,
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
}


@pytest.fixture(autouse=True)
def graphs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and differentiate as the real compiler does, and run the graphs without making code of them."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    forget()
    yield
    forget()


def forget() -> None:
    compiled._compiled.cache_clear()
    compiled._find_obstacle.cache_clear()
    torch.compiler.reset()


def batches(channels: int = 1) -> Iterator[tuple[Tensor, Tensor, None]]:
    generator = torch.Generator().manual_seed(0)
    kept = []
    for count in (8, 5):
        pixels = torch.randint(256, (count, 12, 12, channels), generator=generator, dtype=torch.uint8)
        kept.append((pixels.permute(0, 3, 1, 2), torch.randint(3, (count,), generator=generator), None))
    return cycle(kept)


def count_graphs(monkeypatch: pytest.MonkeyPatch) -> torch._dynamo.testing.CompileCounterWithBackend:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    return counter


@pytest.mark.parametrize("channels", [1, 3])
def test_a_compiled_student_learns_what_a_plain_one_learns(channels: int) -> None:
    plain_spec = replace(SPEC, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    results = {}
    for steps in (1, 6):
        for fast in (False, True):
            spec = replace(plain_spec, compiled=fast)
            results[fast] = train_student(spec, batches(channels), steps, seed=3, device=CPU)
        assert results[True][1] == pytest.approx(results[False][1], rel=1e-3)
    assert results[True][0].state_dict().keys() == results[False][0].state_dict().keys()
    for fast, plain in zip(results[True][0].parameters(), results[False][0].parameters(), strict=True):
        assert fast.is_contiguous()
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_students_of_one_kind_share_the_code_and_so_do_short_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = count_graphs(monkeypatch)
    for seed in range(3):
        train_student(replace(SPEC, compiled=True), batches(), 4, seed=seed, device=CPU)
    assert counter.frame_count == 1
    for width in range(1, 10):  # past eight networks, torch's own limit
        train_student(replace(SPEC, compiled=True, width=width), batches(), 1, seed=0, device=CPU)
    assert counter.frame_count == 9


def test_other_networks_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = count_graphs(monkeypatch)
    spec = replace(SPEC, arch="resnet10", compiled=True)
    assert not spec.runs_compiled
    train_student(spec, batches(), 1, seed=0, device=CPU)
    assert counter.frame_count == 0


@pytest.mark.slow
def test_real_compiled_code_takes_the_step_of_plain_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set so that it is restored")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    assert can_compile("on", CPU)
    losses = [
        train_student(replace(SPEC, compiled=fast), batches(), 2, seed=1, device=CPU)[1] for fast in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert any((tmp_path / "cache" / "compiled").rglob("*.so"))


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    lines: list[str] = []
    assert not can_compile("auto", CPU, lines.append)
    obstacle = "there is no C++ compiler (install g++, or name yours in CXX)"
    assert lines == [f"ConvNets run without torch.compile, which takes longer: {obstacle}."]
    assert not can_compile("off", CPU, lines.append) and not can_compile("auto", torch.device("cuda"), lines.append)
    assert len(lines) == 1
    with pytest.raises(DeviceError, match=r"^torch.compile does not work here: there is no C\+\+ compiler"):
        distill(make_images(), quick(**SHORT, compile="on"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_compiler_that_does_not_work_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", _broken)
    lines: list[str] = []
    assert not can_compile("auto", CPU, lines.append)
    assert len(lines) == 1 and "out of luck" in lines[0]


def test_code_that_cannot_be_made_in_the_middle_is_an_error_and_not_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", _broken)
    with pytest.raises(
        DeviceError, match=r"^torch.compile failed \(.*out of luck.*\): go on without it by --no-compile"
    ):
        train_student(replace(SPEC, compiled=True), batches(), 1, seed=0, device=CPU)


def _broken(graph: object, inputs: object) -> None:
    raise ValueError("out of luck")


def test_only_what_is_known_may_be_asked() -> None:
    with pytest.raises(BadValueError, match="compile is 'fast'; it must be one of auto, on, off"):
        quick(compile="fast")


def test_pools_that_are_narrow_or_young_are_left_as_they_are() -> None:
    config = quick(**SHORT)
    assert not wants_compiling(config)
    assert wants_compiling(replace(config, compile="on"))
    old = replace(config, pool=replace(config.pool, ages=(100, 1000)))
    assert wants_compiling(replace(old, pool=replace(old.pool, width=0)))
    assert not wants_compiling(replace(old, pool=replace(old.pool, width=16)))
    assert not wants_compiling(replace(old, pool=replace(old.pool, width=0, architectures=("resnet10",))))


@pytest.mark.slow
def test_a_compiled_run_agrees_with_a_plain_one_and_a_resumed_one_is_the_same(tmp_path: Path) -> None:
    for how in ("off", "on"):
        distill(make_images(), quick(**SHORT, compile=how), tmp_path / how, device="cpu")
    for plain, fast in zip(metrics(tmp_path / "off"), metrics(tmp_path / "on"), strict=True):
        assert plain.keys() == fast.keys() and plain.pop("stage") == fast.pop("stage")
        assert plain == pytest.approx(fast, rel=1e-3, abs=1e-4)
    config, pieces = quick(**SHORT, compile="on"), tmp_path / "pieces"
    result = distill(make_images(), config, pieces, device="cpu", time_limit_s=0)
    while not result.finished:
        result = distill(make_images(), config, pieces, device="cpu", time_limit_s=0, resume=True)
    for name, tensor in weights(tmp_path / "on").items():
        assert torch.equal(tensor, weights(pieces)[name]), name


def test_a_run_that_goes_on_without_compiled_code_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    distill(make_images(), quick(**SHORT, compile="on"), tmp_path / "run", device="cpu", time_limit_s=0)
    plain = quick(**SHORT, compile="off")
    distill(make_images(), plain, tmp_path / "run", device="cpu", resume=True, time_limit_s=0, say=lines.append)
    assert any(line.startswith("The run began with compiled ConvNets and goes on without them") for line in lines)


def test_a_folder_that_the_user_chose_for_compiled_code_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled._prepare_compiler()
    assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_patches_are_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = build_classifier("convnet3", 2, 1, 28, 4).body[0]
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(convolution._multiply_patches(images), torch.nn.Conv2d.forward(convolution, images))
