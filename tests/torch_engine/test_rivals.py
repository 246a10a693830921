"""PyTorch as a contender: it draws what the bundle's generator draws, in every variant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import build_tiny_bundle

from dim.networks.generator import generator_from_dict
from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.benchmark.options import BenchOptions
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import EngineError, RunError
from dim.torch_engine.rivals import VARIANTS, Pixels, TorchRunner, torch_rivals

CONFIG: dict[str, Any] = {
    "kind": "resize",
    "latent_dim": 16,
    "num_classes": 3,
    "image_px": 8,
    "channels": 1,
    "width": 8,
    "max_width": 8,
    "conditioning": "input",
}


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Manifest(**(vars(load_manifest(tiny_bundle)) | {"distill_config": {"generator": CONFIG}}))


def batch(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 16)).astype(np.float32), np.arange(count) % 3


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_a_variant_draws_what_the_generator_draws(variant: str) -> None:
    torch.manual_seed(0)
    runner = TorchRunner(CONFIG, variant, "fp32", "cpu", 1, 5)
    torch.manual_seed(0)
    generator = generator_from_dict(CONFIG).eval()
    latents, labels = batch(5)
    images = list(runner.run_ahead([(latents, labels), (latents[::-1].copy(), labels[::-1].copy())]))
    with torch.inference_mode():
        drawn = generator(torch.from_numpy(latents), torch.from_numpy(labels)).numpy()
    expected = np.round(drawn * 127.5 + 127.5).clip(0, 255).transpose(0, 2, 3, 1)
    assert images[0].shape == (5, 8, 8, 1) and images[0].dtype == np.uint8
    assert np.abs(images[0] - expected).max() <= 1
    assert np.abs(images[1][::-1].astype(int) - images[0]).max() <= 1
    runner.close()


def test_half_precision_inside() -> None:
    pixels = Pixels(generator_from_dict(CONFIG).eval(), "fp16")
    assert {each.dtype for each in pixels.parameters()} == {torch.float16}


def test_the_contenders_of_a_cpu(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [each.key for each in torch_rivals(manifest)] == [
        ("torch-eager", "fp32", "cpu"),
        ("torch-channels-last", "fp32", "cpu"),
        ("torch-channels-last", "bf16", "cpu"),
        ("torch-compile", "bf16", "cpu"),
    ]
    assert torch_rivals(manifest, "gpu") == []


def test_the_contenders_of_a_gpu(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    keys = [each.key for each in torch_rivals(manifest)]
    assert keys[:6] == [(variant, precision, "gpu") for precision in ("fp32", "fp16") for variant in VARIANTS]
    assert len(keys) == 10 and len(torch_rivals(manifest, "cpu")) == 4


def test_a_bundle_of_unknown_origin(tiny_bundle: Path) -> None:
    with pytest.raises(RunError, match="does not say which generator it was made from, so PyTorch cannot run it"):
        torch_rivals(load_manifest(tiny_bundle))


def test_what_torch_cannot_do_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **options: Any) -> Any:
        def fail(*inputs: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(EngineError) as refused:
        TorchRunner(CONFIG, "torch-compile", "fp32", "cpu", None, 2)
    assert str(refused.value) == ("torch-compile does not run here: InvalidCxxCompiler: No working C++ compiler found")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    runner = TorchRunner(CONFIG, "torch-eager", "fp32", "cpu", 1, 2)
    assert torch.get_num_threads() == before
    for _ in runner.run_ahead([batch(2)]):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_in_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = build_tiny_bundle(tmp_path / "tiny.dim")
    manifest = Manifest(**(vars(load_manifest(path)) | {"distill_config": {"generator": CONFIG}}))
    rivals = torch_rivals(manifest, "cpu", threads=1, variants=VARIANTS[:2])
    report = benchmark(
        path,
        BenchOptions(device="cpu", batches=(2,), rounds=1, turn_s=0.001, find_best=False, threads=1),
        rivals=rivals,
    )
    pairs = {(each.engine, each.precision, each.against, each.against_precision, each.batch) for each in report.ratios}
    assert ("onnxruntime-cpu", "fp32", "torch-eager", "fp32", 2) in pairs
    assert {row.engine for row in report.results} == {"onnxruntime-cpu", "openvino-cpu", *VARIANTS[:2]}
