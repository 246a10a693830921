"""Data-parallel distillation on the CPU: two processes do what one does, within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp
from test_dim_distill import QUICK

from dim.batch_norm import BatchNorm, ClassBatchNorm, refresh_statistics
from dim.checkpoint import read_tensors
from dim.distributed import World, process_group

PROGRAM = """
import sys
from pathlib import Path
from small_images import make_images
from test_dim_distill import quick
from dim.distill import distill
distill(quick(**{"autocast": "off", "checkpoint_steps": 3}), make_images(), Path(sys.argv[1]), device="cpu")
"""


def run(processes: int, run_dir: Path) -> dict[str, torch.Tensor]:
    program = run_dir.with_suffix(".py")
    program.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(program), str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return read_tensors(run_dir / "generator.safetensors")


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    assert QUICK["stage1.batch_size"] == 24
    one, two = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), rtol=1e-3, atol=2e-4), name
    metrics = [(tmp_path / n / "metrics.jsonl").read_text().count("\n") for n in ("one", "two")]
    assert metrics == [6, 6]


def _normalise_share(rank: int, folder: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        norm, inputs, weights = _case()
        share = world.slice(inputs).clone().requires_grad_(True)
        output = norm(share)
        (output * world.slice(weights)).sum().backward()
        assert share.grad is not None and norm.weight.grad is not None
        results = {
            "output": output.detach(),
            "gradient": share.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
        }
        torch.save(results, Path(folder) / f"{rank}.pt")


def _case() -> tuple[BatchNorm, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return BatchNorm(3), torch.randn(8, 3, 4, 4, generator=generator), torch.randn(8, 3, 4, 4, generator=generator)


def test_batch_statistics_and_their_gradients_span_all_processes(tmp_path: Path) -> None:
    norm, inputs, weights = _case()
    inputs.requires_grad_(True)
    output = norm(inputs)
    (output * weights).sum().backward()
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_normalise_share, args=(str(tmp_path), port), nprocs=2)
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert inputs.grad is not None
    assert torch.allclose(torch.cat([s["output"] for s in shares]), output.detach(), atol=1e-5)
    assert torch.allclose(torch.cat([s["gradient"] for s in shares]), inputs.grad, atol=1e-5)
    for share in shares:
        assert torch.allclose(share["mean"], norm.running_mean, atol=1e-6)
        assert torch.allclose(share["var"], norm.running_var, atol=1e-6)


def test_refreshed_statistics_are_those_of_the_batches() -> None:
    norm = BatchNorm(2)
    norm(torch.randn(4, 2, 3, 3) + 50)
    batches = [torch.randn(16, 2, 3, 3) * 3 + 1 for _ in range(4)]
    refresh_statistics(norm, [(b,) for b in batches])
    assert not norm.training and norm.momentum == 0.1
    expected = torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_mean, expected, atol=1e-6)


def test_class_batch_norm_uses_each_images_class() -> None:
    norm = ClassBatchNorm(2, 3).eval()
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        norm.bias.weight[2] = 5.0
        output = norm(torch.ones(3, 2, 1, 1), torch.tensor([0, 1, 2]))
    scale = 1 / (1 + norm.norm.eps) ** 0.5
    assert torch.allclose(output[:, 0, 0, 0], torch.tensor([scale, 2 * scale, 3 * scale + 5]))


def test_one_process_is_the_whole_world() -> None:
    with process_group("cpu") as world:
        values = torch.arange(6)
        assert world == World() and world.is_main and torch.equal(world.slice(values), values)
        assert world.agree(True, values.device) and not world.agree(False, values.device)
        assert torch.equal(world.mean(values), values)
        world.barrier()
