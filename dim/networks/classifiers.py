"""The classifiers that dataset distillation is measured with, and that the matching pool is made of.

Widths and depths follow the reference code of the field: ConvNet-3 of Dataset Condensation (Zhao et al., 2021), the
CIFAR ResNets and average-pooled ResNets of IDC and DiM (`-half`: 32 base channels, 2.80 M parameters for ResNet-18)
beside the standard ones (64 base channels, 11.17 M). As there, ConvNet-3 normalises every image and channel separately,
and the others use BatchNorm: on small images their last maps have 2x2 pixels, and instance statistics of those would
erase the image.

Every network takes normalised float images and has `features(images_NCHW) -> features_ND` and `forward -> logits_NK`.

Shape legend: N images, C channels, H height, W width, D features, K classes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import CLASSIFIER_NAMES
from dim.runtime.errors import BadValueError

MIN_IMAGE_PX, MAX_IMAGE_PX = 8, 128


class Classifier(nn.Module):
    """A feature extractor followed by a linear layer.

    Args:
        body: maps normalised images float `[N, C, H, W]` to features float `[N, feature_dim]`.
        feature_dim: D, the length of a feature vector.
        num_classes: K.
        memory_format: the layout of images and weights that this network is fastest with: channels last, except where
            GroupNorm is, whose channels-last kernel takes twice the time of the whole rest on a CPU.
    """

    def __init__(
        self,
        body: nn.Module,
        feature_dim: int,
        num_classes: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        self.body = body
        self.head = nn.Linear(feature_dim, num_classes)
        self.feature_dim = feature_dim

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, float `[N, feature_dim]`."""
        features_ND: Tensor = self.body(images_NCHW)
        return features_ND

    def outputs(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, float `[N, feature_dim]`, and logits, float `[N, K]`."""
        features_ND = self.features(images_NCHW)
        return features_ND, self.head(features_ND)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.outputs(images_NCHW)[1]


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class _GreyConv(nn.Conv2d):
    """The first 3x3 convolution of grey images, which is quick on the CPU while training.

    The gradient of its weights takes torch's kernel longer than the whole third layer, which multiplies eight times as
    often. As one product of weights and patches, with a row of ones for the bias, a ConvNet-3 step of width 128
    takes 0.84 of its time (bf16, 28x28, one core). Images that need gradients, other devices and exported graphs take
    the plain operator. Compiled code multiplies patches in channels last, whatever the images need.
    """

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return self._multiply_patches(images_NCHW)
        plain = images_NCHW.requires_grad or images_NCHW.device.type != "cpu" or not self.training
        if plain or self.bias is None or torch.compiler.is_exporting():
            return super().forward(images_NCHW)
        n, _, height, width = images_NCHW.shape
        margin = 2 * int(self.padding[0]) - 2
        patches = F.unfold(images_NCHW, 3, padding=int(self.padding[0]))
        patches = torch.cat([patches, patches.new_ones(n, 1, patches.shape[2])], dim=1)
        weights = torch.cat([self.weight.flatten(1), self.bias[:, None]], dim=1)
        maps: Tensor = torch.bmm(weights.expand(n, -1, -1), patches)
        return maps.view(n, -1, height + margin, width + margin)

    def _multiply_patches(self, images_NCHW: Tensor) -> Tensor:
        margin = int(self.padding[0])
        padded = F.pad(images_NCHW[:, 0], (margin,) * 4)
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _AveragePool(nn.AvgPool2d):
    """2x2 average pooling that is quick on the CPU while training.

    Adding halves brings a whole ConvNet-3 step on an AVX-512 CPU to 0.8 of its time with torch's kernel, which
    walks a contiguous map pixel by pixel. Other devices, exported and compiled graphs take the plain operator.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        if maps_NCHW.device.type != "cpu" or not maps_NCHW.requires_grad or torch.compiler.is_compiling():
            return super().forward(maps_NCHW)
        n, c, height, width = maps_NCHW.shape
        even = maps_NCHW[:, :, : height // 2 * 2, : width // 2 * 2]
        # unbind's backward pass writes every value once; slicing's would fill zeros first.
        upper, lower = even.reshape(n, c, height // 2, 2, width // 2 * 2).unbind(3)
        left, right = (upper + lower).reshape(n, c, height // 2, width // 2, 2).unbind(4)
        pooled: Tensor = (left + right) * 0.25
        return pooled


def _globally_pooled(layers: Sequence[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convnet(num_classes: int, channels: int, image_px: int, width: int) -> Classifier:
    """Three blocks of conv3x3, instance norm, ReLU and 2x2 average pooling; the map ends at 4x4 or a little more.

    28x28 images are padded to 32x32 by the first convolution, as in the Dataset Condensation code. Smaller images are
    pooled less often; on larger ones a last average brings the map to 4x4, so D stays near 16 * width.
    """
    first_padding = 3 if image_px == 28 else 1
    side = image_px + 2 * (first_padding - 1)
    layers: list[nn.Module] = []
    for block in range(3):
        inputs, padding = (channels, first_padding) if block == 0 else (width, 1)
        convolution = _GreyConv if inputs == 1 else nn.Conv2d
        layers += [convolution(inputs, width, 3, padding=padding), nn.GroupNorm(width, width), nn.ReLU(inplace=True)]
        if side >= 8:
            layers.append(_AveragePool())
            side //= 2
    if side >= 8:
        layers.append(nn.AvgPool2d(side // 4))
        side //= side // 4
    body = nn.Sequential(*layers, nn.Flatten())
    return Classifier(body, width * side * side, num_classes, torch.contiguous_format)


class _Projection(nn.Conv2d):
    """The 1x1 convolution of a shortcut.

    Of fewer channels than fill a vector register, in channels last and with strides, oneDNN computes other gradients of
    the weights than are true on a CPU, aborts or does not end (uxlfoundation/oneDNN issue 6035; seen in torch 2.13.0
    with 3 to 7 channels on AVX2). There the pixels that the strides pass over are left out before.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        if learns and maps_NCHW.device.type == "cpu" and self.in_channels < 16:
            rows, columns = self.stride
            return F.conv2d(maps_NCHW[:, :, ::rows, ::columns], self.weight, self.bias)  # folding gives it a bias
        return super().forward(maps_NCHW)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `average` halves the map by pooling instead of a strided convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, average: bool) -> None:
        super().__init__()
        conv_stride = 1 if average else stride
        shrink: list[nn.Module] = [nn.AvgPool2d(stride)] if average and stride > 1 else []
        self.residual = nn.Sequential(
            _conv3x3(inputs, outputs, conv_stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            *shrink,
            _conv3x3(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            project = _Projection(inputs, outputs, conv_stride)
            self.shortcut = nn.Sequential(project, *shrink, nn.BatchNorm2d(outputs))

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        return torch.relu(self.residual(maps_NCHW) + self.shortcut(maps_NCHW))


def _resnet(blocks: int, average: bool) -> Callable[[int, int, int, int], Classifier]:
    """Return the builder of a four-stage ResNet, `blocks` residual blocks per stage (1: ResNet-10, 2: ResNet-18)."""

    def build(num_classes: int, channels: int, image_px: int, width: int) -> Classifier:
        layers: list[nn.Module] = [_conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        side, inputs = image_px, width
        if image_px > 64:
            layers.append(nn.AvgPool2d(2) if average else nn.MaxPool2d(3, stride=2, padding=1))
            side //= 2
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 and side >= 4 else 1
                layers.append(_ResidualBlock(inputs, outputs, stride, average))
                side, inputs = side // stride, outputs
        classifier = Classifier(_globally_pooled(layers), inputs, num_classes)
        for module in classifier.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return classifier

    return build


def _vgg11(num_classes: int, channels: int, image_px: int, width: int) -> Classifier:
    """VGG-11 with BatchNorm and one linear layer, as for CIFAR; maps are not pooled below 2x2 before the end."""
    layers: list[nn.Module] = []
    side, inputs = image_px, channels
    for stage, (multiple, convolutions) in enumerate([(1, 1), (2, 1), (4, 2), (8, 2), (8, 2)]):
        for _ in range(convolutions):
            layers += [_conv3x3(inputs, width * multiple), nn.BatchNorm2d(width * multiple), nn.ReLU(inplace=True)]
            inputs = width * multiple
        if side >= (4 if stage < 4 else 2):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return Classifier(_globally_pooled(layers), inputs, num_classes)


class _DenseLayer(nn.Module):
    """One bottlenecked layer of DenseNet-BC, which appends `growth` channels to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.added = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            _conv3x3(4 * growth, growth),
        )

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        return torch.cat([maps_NCHW, self.added(maps_NCHW)], dim=1)


def _densenet(num_classes: int, channels: int, image_px: int, width: int) -> Classifier:
    """DenseNet-BC for small images (Huang et al., 2017): blocks of 6, 12, 24, 16 layers, `width` is the growth rate."""
    inputs, side = 2 * width, image_px
    layers: list[nn.Module] = [_conv3x3(channels, inputs)]
    if image_px > 64:
        layers.append(nn.AvgPool2d(2))
        side //= 2
    for stage, depth in enumerate([6, 12, 24, 16]):
        if stage > 0:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, inputs // 2, 1, bias=False)]
            inputs //= 2
            if side >= 4:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        for _ in range(depth):
            layers.append(_DenseLayer(inputs, width))
            inputs += width
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
    return Classifier(_globally_pooled(layers), inputs, num_classes)


def _mlp(num_classes: int, channels: int, image_px: int, width: int) -> Classifier:
    """Two hidden layers of `width` units, as in Dataset Condensation."""
    layers = [nn.Flatten(), nn.Linear(channels * image_px**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), width, num_classes)


_BUILDERS: dict[str, tuple[Callable[[int, int, int, int], Classifier], int]] = {
    # name: (builder, default width)
    "convnet3": (_convnet, 128),
    "resnet10": (_resnet(1, average=False), 64),
    "resnet10-half": (_resnet(1, average=False), 32),
    "resnet18": (_resnet(2, average=False), 64),
    "resnet18-half": (_resnet(2, average=False), 32),
    "resnetap10": (_resnet(1, average=True), 64),
    "resnetap10-half": (_resnet(1, average=True), 32),
    "resnetap18": (_resnet(2, average=True), 64),
    "resnetap18-half": (_resnet(2, average=True), 32),
    "vgg11": (_vgg11, 64),
    "densenet": (_densenet, 12),
    "mlp": (_mlp, 128),
}
GAIN_BY_COMPILING = ("convnet3",)
"""Those that `torch.compile` makes faster on a CPU: instance norm, ReLU and pooling become one pass. ResNets gain
nothing."""


def build_classifier(name: str, num_classes: int, channels: int, image_px: int, width: int | None = None) -> Classifier:
    """Build a freshly initialised classifier from torch's global random state.

    Args:
        name: one of `CLASSIFIER_NAMES`.
        num_classes: K.
        channels: image channels, at least 1.
        image_px: side of the square images, 8 to 128 pixels.
        width: channels of the first layer (ConvNet, ResNet, VGG), hidden units (MLP) or growth rate (DenseNet);
            None takes the published one.

    Returns:
        A module from normalised images float `[N, C, image_px, image_px]` to logits float `[N, K]`, with `features`.

    Raises:
        BadValueError: an unknown name or a number out of range.

    >>> build_classifier("convnet3", 10, 1, 28).feature_dim
    2048
    """
    if name not in _BUILDERS:
        raise BadValueError(f"Unknown classifier '{name}': choose one of {', '.join(CLASSIFIER_NAMES)}.")
    builder, default_width = _BUILDERS[name]
    width = default_width if width is None else width
    for field, value, low, high in [
        ("num_classes", num_classes, 1, None),
        ("channels", channels, 1, None),
        ("image_px", image_px, MIN_IMAGE_PX, MAX_IMAGE_PX),
        ("width", width, 1, None),
    ]:
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise BadValueError(f"{field} is {value} for classifier '{name}', but must be {allowed}.")
    return builder(num_classes, channels, image_px, width)
