"""benchmarks/engines.py check_promisess the promised ratios, and says what was not measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.engines import check_promises, export_untrained, print_report
from dim.runtime.benchmark.report import BenchReport, NotRun, Ratio, Result
from dim.runtime.bundle_format.files import load_manifest


def ratio(engine: str, precision: str, against: str, against_precision: str, value: float) -> Ratio:
    return Ratio(
        engine=engine,
        precision=precision,
        device="gpu" if "cuda" in engine or "tensorrt" in engine else "cpu",
        against=against,
        against_precision=against_precision,
        batch=256,
        ratio=value,
        least=value,
        most=value,
    )


CPU = BenchReport(
    bundle="x.dim",
    content_id="",
    dim="0",
    machine="some machine",
    cores=2,
    date="2026-11-22 18:00 UTC",
    threads=2,
    load=0.1,
    versions={"onnxruntime": "1.32.0"},
    gpu=None,
    gflop_per_image=0.5,
    rounds=5,
    results=(),
    ratios=(
        ratio("onnxruntime-cpu", "fp32", "torch-eager", "fp32", 2.5),
        ratio("onnxruntime-cpu", "fp32", "torch-channels-last", "fp32", 1.4),
    ),
    not_run=(NotRun(engine="tensorrt", precision="fp32", device="gpu", batch=None, reason="no GPU"),),
)


def test_the_promises_of_a_cpu() -> None:
    claims = check_promises(CPU, resizes=True)
    assert [claim["holds"] for claim in claims] == [True, False, None]
    assert len(check_promises(CPU, resizes=False)) == 2


def test_the_promises_of_openvino() -> None:
    ratios = (
        ratio("openvino-cpu", "fp32", "onnxruntime-cpu", "fp32", 1.1),
        ratio("openvino-cpu", "bf16", "onnxruntime-cpu", "fp32", 1.9),
    )
    claims = check_promises(replace(CPU, ratios=ratios), resizes=False)[2:]
    assert [(claim["claim"], claim["holds"]) for claim in claims] == [
        ("fp32 OpenVINO against ONNX Runtime", True),
        ("bf16 OpenVINO against fp32 ONNX Runtime", False),
        ("bf16 OpenVINO against torch.compile bf16", None),
    ]


def test_the_promises_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    row = Result(
        engine="tensorrt-rtx",
        precision="fp16",
        device="gpu",
        batch=1024,
        images_per_s=600_000,
        latency_ms=2.0,
        turns=5,
        best=True,
    )
    gpu = replace(
        CPU,
        gpu="NVIDIA Fake",
        results=(row,),
        ratios=(ratio("tensorrt-rtx", "fp16", "torch-compile", "fp16", 1.6),),
    )
    claims = {claim["claim"]: claim for claim in check_promises(gpu, resizes=True)}
    assert claims["fp16 tensorrt-rtx against torch.compile fp16"]["holds"] is True
    floor = claims["tensorrt-rtx against 500 TFLOP/s of arithmetic"]
    assert floor["found"] == pytest.approx(0.6) and floor["holds"] is True
    print_report(gpu)
    shown = capsys.readouterr().out
    assert "600,000*" in shown and "not run: tensorrt fp32: no GPU" in shown


@pytest.mark.slow
def test_the_generator_of_a_preset(tmp_path: Path) -> None:
    manifest = load_manifest(export_untrained("tiny", tmp_path))
    assert manifest.precisions == ("fp32", "fp16", "int8")
    assert manifest.distill_config["generator"]["kind"] == "resize"
