"""Small distillations that tests run in one process and in two, and the comparison of what the two leave."""

from __future__ import annotations

import json
import math
import os
import socket
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_runs import QUICK
from small_images import make_images
from torch.nn.parallel import DistributedDataParallel

from dim.distillation.adversarial import AdversarialTraining
from dim.distillation.distill import distill
from dim.execution.distributed import join_process_group
from dim.networks.batch_norm import BatchNorm
from dim.networks.generator import generator_from_dict
from dim.presets import preset
from dim.runs.tensors import read_tensors

SHORT = {"autocast": "off", "stage1.steps": 3, "stage2.steps": 3, "checkpoint_steps": 100, "log_steps": 1}
NOTHING_CHOSEN = {"deployment.latent_stds": (), "deployment.fixed_latents": 0}
TINY = {**QUICK, **SHORT, "stage1.batch_size": 32, "stage2.batch_size": 32, "pool.architectures": ("mlp", "convnet3")}
NORM = {
    **TINY,
    **NOTHING_CHOSEN,
    **{f"{stage}.adversarial.discriminator_steps": 2 for stage in ("stage1", "stage2")},
    "generator.conditioning": "norm",
    "pool.architectures": ("resnetap10",),
}
PAPER = {
    **SHORT,
    **{f"{network}.{field}": 8 for network in ("generator", "discriminator") for field in ("width", "max_width")},
    "stage1.batch_size": 8,
    "stage2.batch_size": 8,
    # Learning rates at which three steps change what is drawn.
    "stage1.adversarial.generator_lr": 1e-3,
    "stage2.adversarial.generator_lr": 1e-3,
    "pool.architectures": ("resnet10-half",),
    "pool.width": 8,
    "pool.batch_size": 8,
    "pool.steps_between": 2,
    "pool.epoch_steps": 2,
    "matching.weight": 1.0,
}
CASES = {
    # name: (preset, overrides)
    "norm": ("tiny", NORM),
    "paper": ("paper", PAPER),
}
COMPILED = {**TINY, **NOTHING_CHOSEN, "compile": "on", "pool.architectures": ("convnet3",)}
COMPILED_CASES = {"compiled": ("tiny", COMPILED)}
ALL_CASES = CASES | COMPILED_CASES


MOST_PIECES = 12
"""Into which `run_in_pieces` may cut a run of `CASES`: at least one per step of a stage but the last."""


def run_case(name: str, folder: Path, **changes: object) -> Path:
    """Distil one of `ALL_CASES` in this process, alone or as one of several; returns the run."""
    data = make_images(channels=3 if name == "paper" else 1)
    base, overrides = ALL_CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AdversarialTraining,
            "copy_ema_generator",
            partialmethod(AdversarialTraining.copy_ema_generator, batches=2),
        )
        patch.setattr("dim.distillation.adversarial.STATISTICS_BATCH_SIZE", 64)
        config = preset(base, data=data, overrides=overrides | changes)
        assert distill(data, config, folder / name, device="cpu", threads=1).finished
    return folder / name


def run_in_pieces(name: str, folder: Path, ports: list[int]) -> int:
    """The same, stopped by a time limit after every step and resumed by new groups; returns the number of pieces."""
    data = make_images()
    base, overrides = ALL_CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AdversarialTraining,
            "copy_ema_generator",
            partialmethod(AdversarialTraining.copy_ema_generator, batches=2),
        )
        patch.setattr("dim.distillation.adversarial.STATISTICS_BATCH_SIZE", 64)
        patch.setattr("dim.distillation.session.TIME_LIMIT_VOTE_STEPS", 1)
        config = preset(base, data=data, overrides=overrides)
        for pieces, port in enumerate(ports, 1):
            os.environ["MASTER_PORT"] = str(port)
            if distill(data, config, folder / name, resume=True, device="cpu", threads=1, time_limit_s=0).finished:
                return pieces
    raise AssertionError(f"not finished in {len(ports)} pieces")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def many_groups(rank: int, ports: list[int]) -> None:
    """What each of two processes does: join one group after the other, and leave each right after it has waited."""
    torch.set_num_threads(1)
    for port in ports:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        wait_and_leave()


def wait_and_leave() -> None:
    with join_process_group("cpu") as world:
        network = DistributedDataParallel(torch.nn.Linear(4, 4))
        network(torch.randn(3, 4)).sum().backward()
        world.mean(torch.ones(3))
        world.barrier()


def one_of_two(rank: int, folder: str, ports: list[int], names: tuple[str, ...] = tuple(CASES)) -> None:
    """What each of two processes does: the share of a batch norm, then cases, then the first of them in pieces."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    torch.set_num_threads(1)
    torch.save(normalise_share(), Path(folder) / f"norm-{rank}.pt")
    for name, port in zip(names, ports[1 : 1 + len(names)], strict=True):
        os.environ["MASTER_PORT"] = str(port)
        run_case(name, Path(folder))
    assert run_in_pieces(names[0], Path(folder) / "pieces", ports[1 + len(names) :]) > 4


def norm_case() -> tuple[BatchNorm, torch.Tensor, torch.Tensor]:
    """A layer, its inputs, and the weights of its outputs in a loss."""
    generator = torch.Generator().manual_seed(0)
    return BatchNorm(3), torch.randn(8, 3, 4, 4, generator=generator), torch.randn(8, 3, 4, 4, generator=generator)


def normalise_share() -> dict[str, torch.Tensor | None]:
    """This process's part of `norm_case`, forwards and backwards."""
    with join_process_group("cpu") as world:
        norm, inputs, weights = norm_case()
        share = world.slice(inputs).clone().requires_grad_(True)
        output = norm(share)
        (output * world.slice(weights)).sum().backward()
        return {
            "output": output.detach(),
            "gradient": share.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
        }


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(run: Path) -> dict[str, torch.Tensor]:
    """All weights and batch statistics of a run's last checkpoint, of its generator and of its pool."""
    newest = max((run / "checkpoints").glob("stage2-*.safetensors"))
    tensors = {k: v for k, v in read_tensors(newest.parent, newest.name).items() if "optimiser" not in k}
    for file in ("generator", "pool"):
        tensors |= {f"{file}: {k}": v for k, v in read_tensors(run, f"{file}.safetensors").items()}
    return tensors


def images(run: Path) -> torch.Tensor:
    """What the finished generator draws from fixed latents."""
    record = json.loads((run / "config.json").read_text())
    generator = generator_from_dict(record["generator"])
    generator.load_state_dict(read_tensors(run, "generator.safetensors"))
    latents = torch.randn(12, record["generator"]["latent_dim"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn: torch.Tensor = generator.eval()(latents, torch.arange(12) % record["generator"]["num_classes"])
    return drawn


def assert_same_run(a: Path, b: Path) -> None:
    """Compare every value of every line of the metrics, then the state, then what is drawn.

    Measured: metrics differ by 1.3e-6 at most with AVX2, relative to their value plus a thousandth, and with AVX-512 by
    5.4e-5, in the last step, to which Adam has grown them from 1e-7. Other weights and batch statistics differ by 1e-5,
    but with AVX-512 a few in a thousand have a first gradient that is hardly more than rounding, which Adam scales to
    whole steps. So it does to every bias in front of a batch norm, which has no other gradient; the norm's running mean
    takes it up again. These are bounded by what Adam can move, and the images are compared.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    rtol, weights_at_rounding = (2e-4, 5e-3) if wide else (2e-5, 0.0)
    atol, weight_atol = 2e-6, 5e-5
    record = json.loads((a / "config.json").read_text())
    moved = sum(2 * record[s]["steps"] * record[s]["adversarial"]["generator_lr"] for s in ("stage1", "stage2"))
    lines = metrics(a), metrics(b)
    assert len(lines[0]) == len(lines[1]) > 0
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = (
                value == other[name]
                if name == "stage"
                else math.isclose(value, other[name], rel_tol=rtol, abs_tol=atol)
            )
            assert same, (one["stage"], one["step"], name, value, other[name])
    states = state(a), state(b)
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        difference = (tensor.float() - states[1][name].float()).abs()
        assert float(difference.max()) <= moved, (name, float(difference.max()))
        if not name.endswith(("bias", "running_mean")):
            share = float((difference > weight_atol + rtol * float(tensor.abs().max())).float().mean())
            assert share <= weights_at_rounding, (name, share, float(difference.max()))
    assert float((images(a) - images(b)).abs().max()) <= weight_atol
