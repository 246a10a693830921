"""A generator as an ONNX file that keeps the graph contract: latents and labels in, uint8 NHWC images out.

Shapes: N batch, Z latent dimension, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from dim.export.onnx_graph import serialised, tidy
from dim.export.simplify import simplify
from dim.runtime.errors import GraphError

OPSET = 18
IR_VERSION = 10


def generator_to_onnx(generator: nn.Module) -> bytes:
    """Export a generator in float32: the canonical file of a bundle.

    Args:
        generator: `(latents_NZ float32, labels_N int64) -> images_NCHW` from -1 to 1, with the attributes `latent_dim`,
            `num_classes`, `image_px` and `channels`; left in evaluation mode, on the CPU and in float32.

    Returns:
        the bytes of an ONNX file: the same for the same weights, whatever the folder, process or machine's clock.

    Raises:
        GraphError: torch cannot export it, or not with a symbolic batch.
    """
    generator.eval().to("cpu", torch.float32)
    latent_dim, image_px, channels = (int(getattr(generator, n)) for n in ("latent_dim", "image_px", "channels"))
    latents, labels = torch.zeros(3, latent_dim), torch.zeros(3, dtype=torch.int64)
    model = export_module(generator, {"latents": latents, "labels": labels}, "values")
    _append_pixels(model)
    simplify(model, int(generator.num_classes))  # type: ignore[arg-type]
    tidy(model, "generator")
    images = model.graph.output[0].type.tensor_type
    _check_shape("images", [d.dim_value for d in images.shape.dim], [0, image_px, image_px, channels])
    return serialised(model)


def export_module(module: nn.Module, inputs: Mapping[str, torch.Tensor], output: str) -> ModelProto:
    """Export a module whose inputs share a symbolic first dimension, without a word on the terminal.

    Args:
        module: in evaluation mode.
        inputs: example arguments by name; at least two rows, or torch would make the batch a constant.
        output: the name of the one output.

    Returns:
        a model of opset 18 that still holds torch's metadata.

    Raises:
        GraphError: torch cannot export it, or the batch came out constant.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise GraphError(
            f"torch {torch.__version__} cannot export {type(module).__name__} to ONNX: {reason}"
        ) from error
    assert program is not None
    model: ModelProto = program.model_proto
    if [(s.domain, s.version) for s in model.opset_import] != [("", OPSET)] or model.functions:
        raise GraphError(
            f"torch {torch.__version__} wrote {model.opset_import}; only ONNX opset {OPSET} was asked for."
        )
    model.ir_version = min(model.ir_version, IR_VERSION)
    for value in [*model.graph.input, *model.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param:
            raise GraphError(
                f"torch {torch.__version__} made the batch of {value.name} the constant {first.dim_value}."
            )
        first.dim_param = "N"
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which prints, warns and logs about what is of no concern here (no torchvision)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _append_pixels(model: ModelProto) -> None:
    """Turn the output, -1 to 1 in NCHW, into `images`, uint8 in NHWC.

    The cast comes last, because TensorRT knows uint8 only at the borders of a network; the transposition first, because
    ONNX Runtime is slow at arithmetic that it has to move a transposition through. Grey images need only a reshape; its
    arithmetic is ten times slower on [N, H, W, 1] than on [N, H * W].
    """
    graph = model.graph
    [values] = graph.output
    _, channels, height, width = (d.dim_value for d in values.type.tensor_type.shape.dim)
    _add_constants(model, {"half_range": np.float32(127.5), "darkest": np.float32(0), "brightest": np.float32(255)})
    node = helper.make_node
    if channels == 1:
        _add_constants(model, {"row_shape": np.array([-1, height * width]), "shape": np.array([-1, height, width, 1])})
        first = node("Reshape", [values.name, "row_shape"], ["pixels.ordered"])
    else:
        first = node("Transpose", [values.name], ["pixels.ordered"], perm=[0, 2, 3, 1])
    nodes = [
        first,
        node("Mul", ["pixels.ordered", "half_range"], ["pixels.scaled"]),
        node("Add", ["pixels.scaled", "half_range"], ["pixels.shifted"]),
        node("Round", ["pixels.shifted"], ["pixels.rounded"]),
        node("Clip", ["pixels.rounded", "darkest", "brightest"], ["pixels.clipped"]),
    ]
    if channels == 1:
        nodes.append(node("Reshape", ["pixels.clipped", "shape"], ["pixels.shaped"]))
    graph.node.extend([*nodes, node("Cast", [nodes[-1].output[0]], ["images"], to=TensorProto.UINT8)])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, channels]))


def _add_constants(model: ModelProto, constants: Mapping[str, np.generic | NDArray[np.int64]]) -> None:
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def _check_shape(name: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if list(found) != list(expected):
        raise GraphError(f"The generator's {name} have the shape {list(found)}; its attributes say {list(expected)}.")
