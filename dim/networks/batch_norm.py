"""Batch normalisation whose statistics span all processes, on any device.

`torch.nn.SyncBatchNorm` refuses CPU tensors, so data-parallel runs could not be tested without GPUs. This layer gathers
its sums by `all_reduce`; in one process it is `torch.nn.functional.batch_norm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over `[N, C, ...]` (Ioffe and Szegedy 2015), with statistics over all processes.

    Args:
        num_features: C.
        affine: learn a gain and a bias per channel.
    """

    def __init__(self, num_features: int, *, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)
        self.local_only = False
        """Use this process's statistics only, for work that one process does."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`, `[N, C, ...]`, by the batch while training and by the running statistics otherwise."""
        together = not self.local_only and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not self.training or not together:
            return super().forward(input)
        values = input.float()
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = input.numel() // input.shape[1]
        sums = torch.cat([values.sum(axes), values.square().sum(axes), values.new_tensor([float(count)])])
        sums = _AllReduceSum.apply(sums)  # type: ignore[no-untyped-call]
        total = sums[-1]
        mean, square = sums[:-1].chunk(2)
        mean, square = mean / total, square / total
        variance = (square - mean.square()).clamp_min(0)
        self._update_running(mean.detach(), variance.detach() * total.detach() / (total.detach() - 1))
        scale = torch.rsqrt(variance + self.eps)
        output = (values - mean.view(shape)) * scale.view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        normalised: Tensor = output.to(input.dtype)
        return normalised

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance, factor)


def span_processes(network: nn.Module) -> list[BatchNorm]:
    """Put a `BatchNorm` with the same weights in the place of every `nn.BatchNorm2d`; in one process nothing changes.

    Args:
        network: changed in place; the names of its weights stay.

    Returns:
        The new layers.
    """
    norms = []
    for module in list(network.modules()):
        for name, old in list(module.named_children()):
            if type(old) is nn.BatchNorm2d:
                norm = BatchNorm(old.num_features, affine=old.affine)
                norm.eps, norm.momentum = old.eps, old.momentum
                norm.load_state_dict(old.state_dict())
                setattr(module, name, norm.to(next(old.buffers()).device).train(old.training))
                norms.append(norm)
    return norms


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum over processes is again a sum over processes."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class ClassBatchNorm(nn.Module):
    """Batch normalisation with a gain and a bias per class (de Vries et al. 2017, arXiv 1707.00683).

    Args:
        num_features: C.
        num_classes: K.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BatchNorm(num_features, affine=False)
        self.gain = nn.Embedding(num_classes, num_features)
        self.bias = nn.Embedding(num_classes, num_features)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, input: Tensor, labels_N: Tensor) -> Tensor:
        """Normalise `input`, `[N, C, H, W]`, with the gains and biases of `labels_N`."""
        gain = self.gain(labels_N)[:, :, None, None].to(input.dtype)
        bias = self.bias(labels_N)[:, :, None, None].to(input.dtype)
        output: Tensor = self.norm(input) * gain + bias
        return output


@torch.no_grad()
def refresh_statistics(network: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Replace the running statistics by averages over `batches` ("standing statistics", BigGAN, arXiv 1809.11096).

    A moving average of weights has no batch statistics of its own, so they are measured. The network uses
    this process's statistics from then on.

    Args:
        network: left in evaluation mode.
        batches: argument tuples for `network`.
    """
    norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
    if not norms:
        network.eval()
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.local_only = True
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for arguments in batches:
        network(*arguments)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
