"""The canonical ONNX file: the images of torch, the graph contract, the same bytes everywhere, and what was folded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_runs import CLASSES, canonical_onnx, generator_config, make_generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dim.export.agreement import check_precision
from dim.export.drawing import draw_samples, draw_with_onnx, draw_with_torch
from dim.export.graph.editor import GraphEditor, parse
from dim.export.graph.half import to_half
from dim.export.graph.pixels import expand_to_block
from dim.export.graph.simplify import find_exact_scale
from dim.export.graph.trace import generator_to_onnx
from dim.runtime.bundle_format.graph_contract import check_contract
from dim.runtime.bundle_format.graph_rules import GraphContract
from dim.runtime.errors import GraphError

SUPPORT = Path(__file__).parents[1] / "support"


class Transposed(nn.Module):
    """One-hot labels over the first latents, transposed convolutions, another activation: the published shape."""

    latent_dim, num_classes, image_px, channels = 12, 4, 16, 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 6 * 16)
        self.body = nn.Sequential(
            nn.BatchNorm2d(6),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, 4).to(latents.dtype)
        images: Tensor = self.body(self.first(torch.cat([one_hot, latents[:, 4:]], dim=1)).view(-1, 6, 4, 4))
        return images


def trained_norms(network: nn.Module, latent_dim: int) -> nn.Module:
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(5):
            network.train()(torch.randn(32, latent_dim), torch.randint(0, 4, (32,)))
    return network.eval()


NETWORKS = {
    "input": lambda: make_generator(generator_config()),
    "norm": lambda: make_generator(generator_config(conditioning="norm")),
    "odd size, grey": lambda: make_generator(generator_config(image_px=13, channels=1)),
    "grey": lambda: make_generator(generator_config(image_px=16, channels=1)),
    "flipped, in blocks": lambda: make_generator(generator_config(image_px=16, mirrored=True)),
    "flipped, odd size": lambda: make_generator(generator_config(image_px=13, conditioning="norm", mirrored=True)),
    "published": lambda: make_generator(generator_config(kind="paper", image_px=8)),
    "transposed": lambda: trained_norms(Transposed(), 12),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request: pytest.FixtureRequest) -> tuple[nn.Module, bytes]:
    network = NETWORKS[request.param]()
    return network, generator_to_onnx(network)


@pytest.mark.slow
def test_draws_what_torch_draws_at_three_batch_sizes(exported: tuple[nn.Module, bytes]) -> None:
    network, model = exported
    latents, labels = draw_samples(4, int(network.latent_dim), 1.3, seed=5, at_least=140)  # type: ignore[arg-type]
    expected = draw_with_torch(network, latents, labels)
    agreement = check_precision("fp32", model, latents, labels, expected, "torch")
    assert agreement.max_levels <= 1
    assert agreement.changed_share < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("convert", [lambda model: model, to_half], ids=["fp32", "fp16"])
def test_a_positive_last_latent_flips_an_image_and_changes_nothing_else(convert: Callable[[bytes], bytes]) -> None:
    plain, flipped = (canonical_onnx(image_px=16, mirrored=wanted) for wanted in (False, True))
    latents, labels = draw_samples(4, 16, 1.0, seed=2)
    drawn = [draw_with_onnx(convert(model), latents, labels) for model in (plain, flipped)]
    positive = latents[:, -1] > 0
    assert 50 < positive.sum() < len(positive) - 50
    assert np.array_equal(drawn[1][~positive], drawn[0][~positive])
    assert np.array_equal(drawn[1][positive], drawn[0][positive][:, :, ::-1])


def test_keeps_the_graph_contract(exported: tuple[nn.Module, bytes]) -> None:
    network, model = exported
    size = int(network.image_px)  # type: ignore[arg-type]
    contract = GraphContract(
        inputs=(("latents", "FLOAT", (int(network.latent_dim),)), ("labels", "INT64", ())),  # type: ignore[arg-type]
        output=("images", "UINT8", (size, size, int(network.channels))),  # type: ignore[arg-type]
        last_operator="Cast",
    )
    check_contract(model, contract)
    parsed = parse(model)
    assert parsed.ir_version <= 10
    assert [(s.domain, s.version) for s in parsed.opset_import] == [("", 18)]
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in [*parsed.graph.input, *parsed.graph.output]} == {"N"}


def test_norms_and_label_arithmetic_are_folded(exported: tuple[nn.Module, bytes]) -> None:
    operators = {node.op_type for node in parse(exported[1]).graph.node}
    assert not operators & {"BatchNormalization", "Shape", "Expand", "Div", "ReduceL2", "Equal", "OneHot", "Constant"}


def test_nothing_of_the_machine_is_left(exported: tuple[nn.Module, bytes]) -> None:
    model = parse(exported[1])
    assert (model.producer_name, model.producer_version, model.doc_string) == ("dim", "", "")
    for part in [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input]:
        assert not part.metadata_props
        assert not part.doc_string
    for trace in (b"site-packages", b"stack_trace", b"torch", b"onnxscript", bytes(SUPPORT), b"export_runs"):
        assert trace not in exported[1]


@pytest.mark.slow
def test_the_same_bytes_in_another_folder_and_again_in_this_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n"
        "import hashlib\n"
        "from export_runs import generator_config, make_generator\n"
        "from dim.export.graph.trace import generator_to_onnx\n"
        "print(hashlib.sha256(generator_to_onnx(make_generator(generator_config()))).hexdigest())\n"
    )
    folder = tmp_path / "another" / "folder"
    folder.mkdir(parents=True)
    (folder / "program.py").write_text(program)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    elsewhere = subprocess.Popen([sys.executable, "program.py"], cwd=folder, text=True, **pipes)
    here = [generator_to_onnx(make_generator(generator_config())), canonical_onnx()]
    hashes = {hashlib.sha256(model).hexdigest() for model in here}
    assert elsewhere.communicate(timeout=300) == (hashes.pop() + "\n", "")
    assert not hashes
    assert capfd.readouterr() == ("", "")


def test_the_class_part_of_the_dense_layer_becomes_a_table() -> None:
    config = generator_config()
    constants = {t.name: list(t.dims) for t in parse(canonical_onnx()).graph.initializer}
    assert constants["first.weight"][1] == config["latent_dim"]
    assert constants["first.weight.classes"] == [len(CLASSES), constants["first.weight"][0]]


def test_a_dense_layer_with_more_classes_than_class_entries_stays_whole() -> None:
    config = generator_config(num_classes=20)
    constants = {t.name: list(t.dims) for t in parse(generator_to_onnx(make_generator(config))).graph.initializer}
    assert constants["first.weight"][1] == 2 * config["latent_dim"]


def test_a_shortcut_with_a_dead_channel_is_not_inverted() -> None:
    network = make_generator(generator_config(width=8, max_width=8))
    with torch.no_grad():
        network.blocks[0].norm1.norm.weight[0] = 1e-9  # type: ignore[index, union-attr]
    model = generator_to_onnx(network)
    latents, labels = draw_samples(4, 16, 1.0, seed=5, at_least=80)
    assert "BatchNormalization" in {node.op_type for node in parse(model).graph.node}
    check_precision("fp32", model, latents, labels, draw_with_torch(network, latents, labels), "torch")


class Unexportable(nn.Module):
    latent_dim, num_classes, image_px, channels = 4, 4, 8, 1

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if latents.sum() > 0:
            return latents.view(-1, 1, 2, 2)
        return -latents.view(-1, 1, 2, 2)


class WrongSize(nn.Module):
    latent_dim, num_classes, image_px, channels = 4, 4, 8, 1

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return latents.view(-1, 1, 2, 2) + labels.view(-1, 1, 1, 1)


def test_what_torch_cannot_export_is_one_sentence() -> None:
    with pytest.raises(GraphError, match=r"torch .* cannot export Unexportable to ONNX: .*"):
        generator_to_onnx(Unexportable())


def test_images_of_another_size_are_refused() -> None:
    message = r"The generator's images have the shape \[0, 2, 2, 1\]; its attributes say \[0, 8, 8, 1\]."
    with pytest.raises(GraphError, match=message):
        generator_to_onnx(WrongSize())


@given(st.integers(1, 300), st.integers(1, 600))
def test_an_exact_scale_picks_the_pixels_that_torch_picks(before: int, after: int) -> None:
    scale = find_exact_scale(before, after)
    image = torch.arange(before, dtype=torch.float32).view(1, 1, 1, before)
    expected = F.interpolate(image, size=(1, after), mode="nearest").flatten().numpy()
    if scale is None:  # torch itself rounds to another pixel, or the sizes are no multiples
        assert after % before or not np.array_equal(expected, np.arange(before).repeat(after // before))
        return
    node = onnx.helper.make_node(
        "Resize",
        ["x", "", "s"],
        ["y"],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    from onnx.reference import ReferenceEvaluator

    feeds = {"x": image.numpy(), "s": np.array([1, 1, 1, scale], np.float32)}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 1, before]),
            onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [4]),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    [found] = ReferenceEvaluator(model).run(None, feeds)
    assert np.array_equal(found.flatten(), expected)


def test_doubling_always_has_an_exact_scale() -> None:
    assert all(find_exact_scale(size, 2 * size) == 2.0 for size in range(1, 129))


@given(st.sampled_from([(4, 1), (2, 3), (2, 1), (4, 2)]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_a_block_at_a_time_is_the_same_convolution(
    block: tuple[int, int], inputs: int, rows: int, columns: int
) -> None:
    side, outputs = block
    torch.manual_seed(rows)
    weight, image = torch.randn(outputs, inputs, 3, 3), torch.randn(2, inputs, side * rows, side * columns)
    blocks = F.conv2d(image, torch.from_numpy(expand_to_block(weight.numpy(), side)), stride=side, padding=1)
    split = blocks.view(2, side, side, outputs, rows, columns).permute(0, 3, 4, 1, 5, 2)
    expected = F.conv2d(image, weight, padding=1)
    torch.testing.assert_close(split.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ({"image_px": 16, "channels": 1}, [16, 6, 6]),
        ({"image_px": 10, "channels": 1}, [4, 4, 4]),
        ({"image_px": 16, "channels": 3}, [12, 4, 4]),
        ({"image_px": 13, "channels": 1}, [1, 3, 3]),
    ],
)
def test_the_last_convolution_draws_the_largest_block_that_fits(shape: dict[str, int], weight: list[int]) -> None:
    sizes = {t.name: list(t.dims) for t in parse(canonical_onnx(**shape)).graph.initializer}["last.weight"]
    assert [sizes[0], *sizes[2:]] == weight


def test_shapes_behind_resizes_are_noted_with_the_batch() -> None:
    model = onnx.load_from_string(canonical_onnx(image_px=16, channels=1))
    noted = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    resized = [node.output[0] for node in model.graph.node if node.op_type == "Resize"]
    assert resized
    assert all(noted[name][0] == "N" and noted[name][2:] in ([8, 8], [16, 16]) for name in resized)


def test_editor_keeps_scalars_scalar() -> None:
    editor = GraphEditor(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])))
    editor.set_constant("number", np.array(1.5, np.float32))
    assert [list(tensor.dims) for tensor in editor.graph.initializer] == [[]]


def test_rows_do_not_depend_on_their_neighbours(exported: tuple[nn.Module, bytes]) -> None:
    network, model = exported
    latents, labels = draw_samples(4, int(network.latent_dim), 1.0, seed=6, at_least=24)  # type: ignore[arg-type]
    images = draw_with_onnx(model, latents, labels)
    order = np.random.default_rng(0).permutation(len(labels))
    assert np.array_equal(draw_with_onnx(model, latents[order], labels[order], batch=5), images[order])
