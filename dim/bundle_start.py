"""A distillation that begins with the generator of a bundle: for one whose run is gone, or whose recipe has changed.

A bundle keeps the generator as a simplified graph, its batch norms folded into what surrounds them. Here that is
undone: the weights go back to their layers, and every norm gets the statistics that its input has, measured, with gains
and biases that cancel them. So the network draws what the bundle draws, and can be trained. The discriminator and the
optimisers' moments are gone: the discriminator learns alone for a while (`StartConfig.discriminator_steps`).

Shapes: N batch, Z latent dimension, K classes, C channels of a layer, h, w its sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto
from torch import Tensor, nn

from dim.batch_norm import BatchNorm, ClassBatchNorm
from dim.config import DistillConfig
from dim.export.onnx_graph import Array, GraphEditor
from dim.generator import GeneratorNorm, ResidualBlock, ResizeGenerator, build_generator
from dim.runtime.bundle_files import check_file, load_manifest
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.graph import MAX_ONNX_BYTES, check_graph
from dim.runtime.manifest import Manifest
from dim.runtime.manifest_check import CANONICAL_ONNX
from dim.torch_engine import OnnxGraph

SHAPE = ("kind", "latent_dim", "width", "max_width", "conditioning")
"""What the generator of the run must have in common with that of the bundle; whether it mirrors may differ."""
PROBES = 4
"""Images per class on which the network must agree with the bundle's file."""
MAX_LEVELS = 2
"""Levels of 255 by which they may differ: the file was rounded at another order of the same sums."""
STATISTICS = (8, 256)
"""Batches, and images of each, by which the inputs of the norms are measured."""


@dataclass(frozen=True, kw_only=True)
class BundleStart:
    """A bundle that a run begins with."""

    path: Path
    manifest: Manifest

    def noted(self, config: DistillConfig) -> DistillConfig:
        """The configuration with the bundle noted in it."""
        return replace(config, start=replace(config.start, bundle=self.manifest.content_id))


def find_bundle(path: Path) -> BundleStart:
    """Read what a bundle says of itself.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    return BundleStart(path=path, manifest=load_manifest(path))


def trainable_generator(
    start: BundleStart, shape: Mapping[str, Any], classes: tuple[str, ...], latent_std: float
) -> nn.Module:
    """The generator of a bundle as a network.

    Args:
        start: the bundle.
        shape: keyword arguments of `build_generator`, those of the run.
        classes: of the run's data.
        latent_std: of the latents by which the run trains, at which the norms' inputs are measured.

    Returns:
        a network on the CPU, float32, in evaluation mode, that draws what the bundle draws, unless one of them mirrors.

    Raises:
        BadValueError: the bundle has other classes, or a generator of another shape.
        BundleError: it is damaged, or its file is not as `dim.export` writes it.
    """
    path, manifest = start.path, start.manifest
    _check_fit(start, shape, classes)
    model = check_file(path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(model, manifest)
    network = build_generator(shape)
    assert isinstance(network, ResizeGenerator)
    network.eval()
    try:
        _Reader(GraphEditor(onnx.load_from_string(model)), network).fill()
    except (KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    generator = torch.Generator().manual_seed(0)
    _check_same(path, model, network, generator)
    _measure_norms(network, latent_std, generator)
    return network


def _check_fit(start: BundleStart, shape: Mapping[str, Any], classes: tuple[str, ...]) -> None:
    path, manifest = start.path, start.manifest
    if manifest.classes != classes:
        raise BadValueError(f"{path} has other classes than these data, or in another order.")
    sides = (manifest.height, manifest.width, manifest.channels)
    if sides != (shape["image_px"], shape["image_px"], shape["channels"]):
        raise BadValueError(
            f"{path} draws images of {sides[0]}x{sides[1]}x{sides[2]}, and these data have "
            f"{shape['image_px']}x{shape['image_px']}x{shape['channels']}: give --size and --channels."
        )
    recorded = manifest.distill_config.get("generator")
    if not isinstance(recorded, Mapping) or any(name not in recorded for name in SHAPE):
        raise BadValueError(f"{path} does not say what its generator is made of, so no run can begin with it.")
    if recorded["kind"] != "resize":
        raise BadValueError(f"{path} has a generator of kind {recorded['kind']}; a run can begin with one of resize.")
    differing = [name for name in SHAPE if recorded[name] != shape[name]]
    if differing:
        options = " ".join(f"--set generator.{name}={recorded[name]}" for name in differing)
        raise BadValueError(f"{path} has another generator than this run would have: give {options}")


def _unreadable(path: Path, why: object) -> BundleError:
    return BundleError(f"No run can begin with {path}: {CANONICAL_ONNX} is not as this version writes it ({why}).")


class _Reader:
    """Puts the constants of an exported graph into the layers that they came from.

    Args:
        editor: of the graph.
        network: in evaluation mode; its norms get the statistics of a norm that changes nothing.
    """

    def __init__(self, editor: GraphEditor, network: ResizeGenerator) -> None:
        self.editor, self.network = editor, network

    @torch.no_grad()
    def fill(self) -> None:
        """Fill every layer.

        Raises:
            KeyError: a constant is missing.
            ValueError: the graph has another structure.
            RuntimeError: a constant has another shape.
        """
        self._fill_first()
        for number, block in enumerate(self.network.blocks):
            assert isinstance(block, ResidualBlock)
            name = f"blocks.{number}"
            self._fill_convolution(block.conv1, block.norm1, f"{name}.conv1")
            self._fill_convolution(block.conv2, block.norm2, f"{name}.conv2")
            block.skip.weight.copy_(self._tensor(f"{name}.skip.weight"))
            bias = self.constant(f"{name}.skip.bias")
            if bias is not None:  # that of conv2 is added to the same sum
                assert block.conv2.bias is not None
                block.conv2.bias += torch.from_numpy(np.array(bias))
        self._fill_convolution(self.network.last, self.network.last_norm, "last")

    def constant(self, name: str) -> Array | None:
        """A weight by the name that it has in the network; of one that mirrors, the file has the network in another."""
        own = self.editor.constant(name)
        return self.editor.constant(f"generator.{name}") if own is None else own

    def _fill_convolution(self, conv: nn.Conv2d, norm: GeneratorNorm, name: str) -> None:
        """A convolution and the norm before it; of the last, written for blocks of pixels, the first outputs and taps."""
        weight, bias = self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")
        assert conv.bias is not None
        conv.weight.copy_(weight[: len(conv.weight), :, :3, :3])
        conv.bias.copy_(bias[: len(conv.bias)])
        self._fill_norm(norm.norm, f"{name}.weight")

    def _fill_first(self) -> None:
        """The dense layer: [latents, class row], or the latents beside a table of what the class rows come to."""
        first, embed, latent_dim = self.network.first, self.network.embed, self.network.latent_dim
        weight, table = self._tensor("first.weight"), self.constant("first.weight.classes")
        if table is None:
            [joined] = [node for node in self.editor.graph.node if node.op_type == "Concat"]
            rows = next(t for t in map(self._row_of, joined.input) if t is not None)
            embed.weight.copy_(torch.from_numpy(np.array(rows)))
            first.weight.copy_(weight)
            first.bias.copy_(self._tensor("first.bias"))
            return
        # There is a table where there are no more classes than latents, so class rows can be orthogonal.
        noise = torch.randn(embed.weight.T.shape, generator=torch.Generator().manual_seed(0))
        embed.weight.copy_(torch.linalg.qr(noise)[0].T)
        values = torch.from_numpy(np.array(table))
        middle = values.mean(0)
        first.weight[:, :latent_dim].copy_(weight)
        first.weight[:, latent_dim:].copy_((values - middle).T @ embed.weight / latent_dim**0.5)
        first.bias.copy_(middle)

    def _fill_norm(self, norm: nn.Module, weight_name: str) -> None:
        """Let a norm do what is left of it in the graph: a gain and a bias per class, or nothing."""
        inner = norm.norm if isinstance(norm, ClassBatchNorm) else norm
        assert isinstance(inner, BatchNorm) and inner.running_mean is not None and inner.running_var is not None
        inner.running_mean.zero_()
        inner.running_var.fill_(1 - inner.eps)
        tables = self._class_tables(weight_name)
        if isinstance(norm, ClassBatchNorm):
            gains, biases = tables or (None, None)
            if gains is None or biases is None:
                raise ValueError(f"there is no gain and bias per class before {weight_name}")
            norm.gain.weight.copy_(torch.from_numpy(np.array(gains)).flatten(1))
            norm.bias.weight.copy_(torch.from_numpy(np.array(biases)).flatten(1))
        elif tables is not None:
            raise ValueError(f"there is a gain per class before {weight_name}")

    def _class_tables(self, weight_name: str) -> tuple[Array, Array] | None:
        """The gains and biases per class, [K, C, 1, 1], of what a convolution reads, where it has some."""
        names = (weight_name, f"generator.{weight_name}")
        [conv] = [n for n in self.editor.graph.node if n.op_type == "Conv" and n.input[1] in names]
        node = self.editor.producer(conv.input[0])
        while node is not None and node.op_type in ("Resize", "Relu"):
            node = self.editor.producer(node.input[0])
        biases = None if node is None or node.op_type != "Add" else self._table(node)
        if node is None or biases is None:
            return None
        producers = [p for p in map(self.editor.producer, node.input) if p is not None]
        multiply = next((producer for producer in producers if producer.op_type == "Mul"), None)
        gains = None if multiply is None else self._table(multiply)
        if gains is None:
            raise ValueError(f"the gain before {weight_name} is missing")
        return gains, biases

    def _table(self, node: NodeProto) -> Array | None:
        """The table of which one of a node's inputs is a row."""
        rows = [table for table in map(self._row_of, node.input) if table is not None and table.ndim == 4]
        return rows[0] if rows else None

    def _row_of(self, name: str) -> Array | None:
        """The table that a value is a row of, by the label."""
        made = self.editor.producer(name)
        picked = made is not None and made.op_type == "Gather" and made.input[1] == "labels"
        return self.editor.constant(made.input[0]) if made is not None and picked else None

    def _tensor(self, name: str) -> Tensor:
        value = self.constant(name)
        if value is None:
            raise KeyError(name)
        return torch.from_numpy(np.array(value))


@torch.no_grad()
def _check_same(path: Path, model: bytes, network: ResizeGenerator, generator: torch.Generator) -> None:
    """Compare with what the file draws, mirrored or not."""
    labels = torch.arange(network.num_classes).repeat(PROBES)
    latents = torch.randn(len(labels), network.latent_dim, generator=generator)
    drawn = OnnxGraph(model, torch.device("cpu"))({"latents": latents, "labels": labels}).int()
    ours = ((network.draw(latents, labels) + 1) * 127.5).round().clamp(0, 255).int().permute(0, 2, 3, 1)
    levels = torch.minimum(*((drawn - images).abs().amax((1, 2, 3)) for images in (ours, ours.flip(2))))
    if int(levels.max()) > MAX_LEVELS:
        raise _unreadable(path, f"what it draws differs by {int(levels.max())} levels")


@torch.no_grad()
def _measure_norms(network: ResizeGenerator, latent_std: float, generator: torch.Generator) -> None:
    """Give every norm the statistics of its input, and gains and biases that undo them."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    sums: dict[BatchNorm, list[Tensor]] = {norm: [] for norm in norms}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        sums[norm].append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))  # type: ignore[index]

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    batches, size = STATISTICS
    for _ in range(batches):
        labels = torch.randint(network.num_classes, (size,), generator=generator)
        network.draw(torch.randn(size, network.latent_dim, generator=generator) * latent_std, labels)
    for hook in hooks:
        hook.remove()
    owners = {module.norm: module for module in network.modules() if isinstance(module, ClassBatchNorm)}
    for norm in norms:
        mean, square = torch.stack(sums[norm]).mean(0).float()
        variance = (square - mean.square()).clamp_min(0)
        deviation = (variance + norm.eps).sqrt()
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        if norm.affine:
            norm.weight.copy_(deviation)
            norm.bias.copy_(mean)
        else:
            owner = owners[norm]
            owner.bias.weight += owner.gain.weight * mean
            owner.gain.weight *= deviation
