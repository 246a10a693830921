"""The kept pool's classifiers compute the same after their batch norms are folded away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dim.config import PAPER_POOL
from dim.distillation.pool import PoolMember, fold_batch_norms
from dim.runs.record import ImageSpec

SPEC = ImageSpec(num_classes=4, image_px=12, channels=3, mean=(0.4,) * 3, std=(0.3,) * 3)


@pytest.mark.parametrize("name", [*PAPER_POOL, "vgg11", "densenet", "mlp"])
def test_folding_batch_norms_changes_nothing_but_the_time(name: str) -> None:
    torch.manual_seed(0)
    member = PoolMember(name, SPEC, 4)
    images = torch.rand(8, 3, 12, 12) * 2 - 1
    for module in member.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    member.train()
    member(member.normalise(images))  # statistics that differ from their start
    member.eval().requires_grad_(False)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in member.modules())

    def outputs() -> list[torch.Tensor]:
        leaf = images.clone().requires_grad_()
        features, logits = member(member.normalise(leaf))
        (gradient,) = torch.autograd.grad(features.square().sum() + logits.sum(), leaf)
        return [features.detach(), logits.detach(), gradient]

    before = outputs()
    fold_batch_norms(member)
    for a, b in zip(before, outputs(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert not any(parameter.requires_grad for parameter in member.parameters())
    left = sum(isinstance(module, nn.BatchNorm2d) for module in member.modules())
    assert left < norms or norms == 0
    if name in ("resnet10", "resnet18"):
        assert left == 0
