"""A generator as an ONNX file that keeps the graph contract: latents and labels in, uint8 NHWC images out.

Shapes: N batch, Z latent dimension, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from onnx import ModelProto
from torch import nn

from dim.export.graph.editor import serialise, tidy
from dim.export.graph.pixels import append_pixels
from dim.export.graph.simplify import simplify
from dim.runtime.errors import GraphError

OPSET = 18
IR_VERSION = 10


def generator_to_onnx(generator: nn.Module) -> bytes:
    """Export a generator in float32: the canonical file of a bundle.

    Args:
        generator: `(latents_NZ float32, labels_N int64) -> images_NCHW` from -1 to 1, with the attributes `latent_dim`,
            `num_classes`, `image_px` and `channels`; left in evaluation mode, on the CPU and in float32. If its
            attribute `mirrored` is set, its method `draw` is converted, and the horizontal flip is added to the file.

    Returns:
        the bytes of an ONNX file: the same for the same weights, whatever the folder, process or machine's clock.

    Raises:
        GraphError: torch cannot export it, or not with a symbolic batch.
    """
    generator.eval().to("cpu", torch.float32)
    latent_dim, image_px, channels = (int(getattr(generator, n)) for n in ("latent_dim", "image_px", "channels"))
    latents, labels = torch.zeros(3, latent_dim), torch.zeros(3, dtype=torch.int64)
    flip = bool(getattr(generator, "mirrored", False))
    module = GeneratorWithoutFlip(generator) if flip else generator
    model = export_module(module, {"latents": latents, "labels": labels}, "values")
    append_pixels(model, flip=flip)
    simplify(model, int(generator.num_classes))  # type: ignore[arg-type]
    tidy(model, "generator")
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    if shape != (expected := [0, image_px, image_px, channels]):
        raise GraphError(f"The generator's images have the shape {shape}; its attributes say {expected}.")
    return serialise(model)


class GeneratorWithoutFlip(nn.Module):
    """A generator whose images are not flipped horizontally by their last latent.

    Args:
        generator: has the method `draw`, which takes what the generator takes.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images float32 [N, C, H, W], -1 to 1, none of them flipped."""
        images: torch.Tensor = self.generator.draw(latents, labels)  # type: ignore[operator]
        return images


def export_module(module: nn.Module, inputs: Mapping[str, torch.Tensor], output: str) -> ModelProto:
    """Export a module whose inputs share a symbolic first dimension, without output on the terminal.

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
        with _silence_exporter(), torch.no_grad():
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
def _silence_exporter() -> Iterator[None]:
    """Silence torch's exporter, which prints, warns and logs even when all is well."""
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
