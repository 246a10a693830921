"""Runs a bundle's ONNX file in PyTorch, so that an evaluation on a GPU needs no other engine.

It supports the operators that `dim.export` writes. Deployment does not use it, because other engines are faster.

Shapes: N batch, Z latent dimension, C channels, H, W.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import onnx_name
from dim.runtime.engines.base import make_drawing_error
from dim.runtime.errors import EngineError, MissingExtraError, describe_error
from dim.runtime.units import format_count

TORCH = "torch"
"""Its name for `--engine`."""
BATCH = 1024
"""Images that are drawn at once, always as many, because a GPU's kernels round by the size of the batch; fewer where
the images are large."""


class TorchEngine:
    """One ONNX file of a bundle in PyTorch; an `Engine`.

    Args:
        bundle: whose file.
        precision: `fp32`, or `fp16` for half precision inside.
        device: a torch device.

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered, or breaks the graph contract.
        EngineError: it has an operator that no exporter of ours writes, as an int8 file has.
    """

    name = TORCH

    def __init__(self, bundle: Bundle, precision: str, device: torch.device) -> None:
        manifest = bundle.manifest
        if precision == "bf16":
            raise EngineError(
                "PyTorch draws the precisions of a bundle's files; bf16 has the engine openvino-cpu alone."
            )
        model = read_checked_file(bundle.path, manifest, onnx_name(precision), max_bytes=MAX_ONNX_BYTES)
        rows = check_graph(model, manifest)
        self.reason, self.precision = "", precision
        self.device = "gpu" if device.type == "cuda" else "cpu"
        self.version = f"torch {torch.__version__}"
        self.batch: int | None = min(BATCH, rows)
        self._where, self._shape = device, (manifest.height, manifest.width, manifest.channels)
        self._graph: OnnxGraph | None = OnnxGraph(model, device)

    @torch.inference_mode()
    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`."""
        graph, batch = self._graph, self.batch
        if graph is None or batch is None:
            raise EngineError("The engine was closed; open the bundle again.")
        missing, expected = batch - len(labels), (batch, *self._shape)
        try:
            inputs = {
                "latents": F.pad(torch.from_numpy(latents).to(self._where), (0, 0, 0, missing)),
                "labels": F.pad(torch.from_numpy(labels).to(self._where), (0, missing)),
            }
            # TF32 stays off, as in every fp32 engine here.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                drawn = graph(inputs)
            if drawn.dtype != torch.uint8 or drawn.shape != expected:
                found = f"{drawn.dtype} {tuple(drawn.shape)}, not uint8 {expected}"
                raise make_drawing_error(self.name, "draws what it should not", found)
            images: NDArray[np.uint8] = drawn[: len(labels)].cpu().numpy()
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            doing = f"failed while drawing {format_count(len(labels), 'image')}"
            raise make_drawing_error(self.name, doing, describe_error(error)) from error
        return images

    def close(self) -> None:
        """Drop the weights."""
        self._graph = None


class OnnxGraph:
    """A checked ONNX graph on a device, called with its inputs by name.

    Args:
        model: a file that our exporter wrote.
        device: where it runs.
        rounded: False puts out what is rounded to pixels, float32 `[N, H * W * C]` from 0 to 255, through which
            gradients reach the latents.

    Raises:
        EngineError: it has an operator that no exporter of ours writes, or does not round where `rounded` is False.
    """

    def __init__(self, model: bytes, device: torch.device, *, rounded: bool = True) -> None:
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError:
            raise MissingExtraError("onnx", "cpu", "read the ONNX file") from None
        graph = onnx.load(io.BytesIO(model), load_external_data=False).graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.constants = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
        # Shapes and scales are read on the host, where reading them waits for nothing.
        self.host = {name: array.reshape(-1).tolist() for name, array in arrays.items() if array.size <= 8}
        self.output = graph.output[0].name
        self.nodes: list[tuple[_Operator, dict[str, Any], list[str], str]] = []
        for node in graph.node:
            if node.op_type not in _OPERATORS or len(node.output) != 1:
                known = ", ".join(_OPERATORS)
                raise EngineError(
                    f"The torch engine cannot run the operator {node.op_type} of this file; it knows {known}. "
                    "Draw with another --engine."
                )
            operator, allowed = _OPERATORS[node.op_type]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            for name, value in attributes.items():
                if name not in allowed or (allowed[name] and value not in allowed[name]):
                    raise EngineError(
                        f"The torch engine cannot run {node.op_type} with {name}={value!r}: draw with another --engine."
                    )
            names = list(node.input)
            while names and not names[-1]:  # left out
                names.pop()
            if node.op_type == "Round" and not rounded:
                self.output = names[0]
                break
            self.nodes.append((operator, attributes, names, node.output[0]))

        if not rounded and self.output == graph.output[0].name:
            raise EngineError("The file does not round to pixels as dim export writes it.")

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        values = self.constants | inputs
        for operator, attributes, names, output in self.nodes:
            arguments = [values[name] if name else _NOTHING for name in names]
            values[output] = operator(arguments, attributes, [self.host.get(name) for name in names])
        drawn: Tensor = values[self.output]
        return drawn


Host = list[list[Any] | None]
"""The values of small constants among a node's inputs."""
_Operator = Callable[[list[Tensor], dict[str, Any], Host], Tensor]
_NOTHING = torch.empty(0)
"""An input that is left out."""


def _gather(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    return x[0][:, x[1]] if attributes.get("axis", 0) else x[0][x[1]]


def _gemm(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    a = x[0].mT if attributes.get("transA") else x[0]
    b = x[1].mT if attributes.get("transB") else x[1]
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product + attributes.get("beta", 1.0) * x[2] if len(x) > 2 else product


def _conv(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return F.conv2d(
        F.pad(x[0], (left, right, top, bottom)).contiguous(memory_format=torch.channels_last),
        x[1].contiguous(memory_format=torch.channels_last),
        x[2] if len(x) > 2 else None,
        stride=attributes.get("strides", [1, 1]),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )


def _conv_transpose(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise EngineError("The torch engine knows transposed convolutions with equal pads on opposite sides only.")
    return F.conv_transpose2d(
        x[0],
        x[1],
        x[2] if len(x) > 2 else None,
        stride=attributes.get("strides", [1, 1]),
        padding=(top, left),
        output_padding=attributes.get("output_padding", [0, 0]),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", [1, 1]),
    )


def _resize(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    kind = attributes.get("mode"), attributes.get("coordinate_transformation_mode"), attributes.get("nearest_mode")
    if kind != (b"nearest", b"asymmetric", b"floor"):
        raise EngineError("The torch engine resizes to the nearest pixel, rounded down, only.")
    if len(host) > 3:
        return F.interpolate(x[0], size=_numbers(host[3])[2:], mode="nearest")
    scales = _numbers(host[2])
    if scales[:2] != [1, 1]:
        raise EngineError("The torch engine resizes height and width only.")
    return F.interpolate(x[0], scale_factor=scales[2:], mode="nearest")


def _clip(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    low, high = (x[i] if len(x) > i and x[i] is not _NOTHING else None for i in (1, 2))
    return torch.clamp(x[0], low, high)


def _reshape(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    shape = _numbers(host[1])
    if not attributes.get("allowzero"):
        shape = [x[0].shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x[0].reshape(shape)


def _slice(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    starts, ends = _numbers(host[1]), _numbers(host[2])
    axes = _numbers(host[3]) if len(host) > 3 else range(len(starts))
    steps = _numbers(host[4]) if len(host) > 4 else [1] * len(starts)
    parts = [slice(None)] * x[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = slice(start, end, step)
    return x[0][tuple(parts)]


def _cast(x: list[Tensor], attributes: dict[str, Any], host: Host) -> Tensor:
    return x[0].to(_DTYPES[attributes["to"]])


def _numbers(values: list[Any] | None) -> list[Any]:
    if values is None:
        raise EngineError("The torch engine takes shapes and scales from constants only.")
    return values


_DTYPES = {1: torch.float32, 2: torch.uint8, 6: torch.int32, 7: torch.int64, 10: torch.float16}
"""By the numbers of `onnx.TensorProto`."""
_PLACES: dict[str, tuple[Any, ...]] = dict.fromkeys(("dilations", "group", "kernel_shape", "pads", "strides"), ()) | {
    "auto_pad": (b"NOTSET",)
}
_OPERATORS: dict[str, tuple[_Operator, dict[str, tuple[Any, ...]]]] = {
    # name: what computes it, and its attributes with the values that it knows; () for all
    "Add": (lambda x, a, h: x[0] + x[1], {}),
    "Mul": (lambda x, a, h: x[0] * x[1], {}),
    "Relu": (lambda x, a, h: F.relu(x[0]), {}),
    "Tanh": (lambda x, a, h: torch.tanh(x[0]), {}),
    "Round": (lambda x, a, h: torch.round(x[0]), {}),
    "MatMul": (lambda x, a, h: x[0] @ x[1], {}),
    "Clip": (_clip, {}),
    "Concat": (lambda x, a, h: torch.cat(x, dim=a["axis"]), {"axis": ()}),
    "Transpose": (lambda x, a, h: x[0].permute(a["perm"]), {"perm": ()}),
    "Gather": (_gather, {"axis": (0, 1)}),
    "Greater": (lambda x, a, h: x[0] > x[1], {}),
    "Where": (lambda x, a, h: torch.where(x[0], x[1], x[2]), {}),
    "Gemm": (_gemm, {"alpha": (), "beta": (), "transA": (), "transB": ()}),
    "Conv": (_conv, _PLACES),
    "ConvTranspose": (_conv_transpose, _PLACES | {"output_padding": ()}),
    "Resize": (
        _resize,
        {
            "antialias": (0,),
            "coordinate_transformation_mode": (b"asymmetric",),
            "cubic_coeff_a": (),
            "exclude_outside": (0,),
            "extrapolation_value": (),
            "keep_aspect_ratio_policy": (b"stretch",),
            "mode": (b"nearest",),
            "nearest_mode": (b"floor",),
        },
    ),
    "Slice": (_slice, {}),
    "Reshape": (_reshape, {"allowzero": ()}),
    "Cast": (_cast, {"to": tuple(_DTYPES)}),
}
