"""The names of the classifiers, which options are checked against before PyTorch is imported."""

CLASSIFIER_NAMES = (
    "convnet3",
    "resnet10",
    "resnet10-half",
    "resnet18",
    "resnet18-half",
    "resnetap10",
    "resnetap10-half",
    "resnetap18",
    "resnetap18-half",
    "vgg11",
    "densenet",
    "mlp",
)
"""Every name that `dim.networks.classifiers.build_classifier` knows."""
