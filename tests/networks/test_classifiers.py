"""The classifiers: published sizes, every image size, and gradients to the images."""

import pytest
import torch

from dim.config import CLASSIFIER_NAMES
from dim.networks.classifiers import build_classifier
from dim.runtime.errors import BadValueError

NARROW = {"convnet3": 8, "vgg11": 4, "densenet": 4, "mlp": 16}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("convnet3", 320_010), ("resnet18", 11_173_962), ("resnet18-half", 2_797_610), ("resnet10-half", 1_228_970)],
)
def test_sizes_are_the_published_ones(name: str, parameters: int) -> None:
    classifier = build_classifier(name, 10, 3, 32)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameters


@pytest.mark.parametrize("name", CLASSIFIER_NAMES)
@pytest.mark.parametrize(("channels", "image_px"), [(1, 8), (3, 11), (1, 28), (3, 32), (3, 72), (1, 128)])
def test_every_size_trains_even_with_a_batch_of_one(name: str, channels: int, image_px: int) -> None:
    classifier = build_classifier(name, 7, channels, image_px, NARROW.get(name, 4)).train()
    images = torch.randn(1, channels, image_px, image_px, requires_grad=True)
    features = classifier.features(images)
    assert features.shape == (1, classifier.feature_dim)
    logits = classifier(images)
    assert logits.shape == (1, 7)
    logits.square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


def test_convnet_pads_28_pixels_to_32_and_keeps_large_images_small() -> None:
    assert build_classifier("convnet3", 10, 1, 28).feature_dim == build_classifier("convnet3", 10, 3, 32).feature_dim
    assert build_classifier("convnet3", 10, 3, 128).feature_dim == 128 * 16


@pytest.mark.parametrize("side", [8, 9])
def test_quick_average_pooling_equals_the_plain_operator(side: int) -> None:
    convnet = build_classifier("convnet3", 3, 1, side, 4)
    quick = next(layer for layer in convnet.modules() if isinstance(layer, torch.nn.AvgPool2d))
    maps = torch.randn(2, 4, side, side, requires_grad=True)
    weights = torch.randn(2, 4, side // 2, side // 2)
    gradients = []
    for pool in [quick, torch.nn.AvgPool2d(2)]:
        pooled = pool(maps)
        torch.testing.assert_close(pooled, torch.nn.functional.avg_pool2d(maps, 2))
        gradients += torch.autograd.grad((pooled * weights).sum(), maps)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("side", [8, 28])
def test_quick_first_convolution_equals_the_plain_operator(side: int) -> None:
    quick = build_classifier("convnet3", 3, 1, side, 4).body[0].train()
    images = torch.randn(2, 1, side, side)
    found, plain = quick(images), torch.nn.functional.conv2d(images, quick.weight, quick.bias, padding=quick.padding)
    torch.testing.assert_close(found, plain)
    weights = torch.randn_like(plain)
    parameters = [quick.weight, quick.bias]
    for one, other in zip(*(torch.autograd.grad((m * weights).sum(), parameters) for m in (found, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_average_pooled_networks_have_no_strided_convolution() -> None:
    strided = [m for m in build_classifier("resnetap18-half", 10, 3, 32).modules() if getattr(m, "stride", 1) == (2, 2)]
    assert not strided


@pytest.mark.parametrize("width", [2, 3, 4, 7, 8, 12, 32])
def test_narrow_shortcuts_have_the_gradients_of_either_layout(width: int) -> None:
    """oneDNN's own of channels last were half as large again, or a crash, or no end."""
    (project,) = (
        m for m in build_classifier("resnet10", 4, 3, 32, width).modules()
        if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1) and m.in_channels == width
    )  # fmt: skip
    assert project.stride == (2, 2)
    images = torch.randn(32, width, 32, 32)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        project.zero_grad()
        project(images.to(memory_format=layout)).square().sum().backward()
        assert project.weight.grad is not None
        gradients.append(project.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))
    biased = torch.nn.Parameter(torch.ones(2 * width))  # as a folded batch norm leaves one
    plain, project.bias = project(images), biased
    torch.testing.assert_close(project(images), plain + 1)


def test_bad_values_are_named() -> None:
    with pytest.raises(BadValueError, match=r"^Unknown classifier 'convnet9': choose one of convnet3, resnet10, "):
        build_classifier("convnet9", 10, 3, 32)
    with pytest.raises(BadValueError, match=r"^image_px is 7 for classifier 'mlp', but must be from 8 to 128\.$"):
        build_classifier("mlp", 10, 3, 7)
    with pytest.raises(BadValueError, match=r"^num_classes is 0 for classifier 'mlp', but must be at least 1\.$"):
        build_classifier("mlp", 0, 3, 8)
