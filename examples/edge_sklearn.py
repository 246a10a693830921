"""An edge pipeline: a scikit-learn classifier learns from a generator, in mini-batches, without PyTorch.

    pip install 'dim-distill[cpu]' scikit-learn pooch
    python examples/edge_sklearn.py [BUNDLE] [--test digits]

The stream never ends and never repeats: the classifier sees new images for as long as it trains, out of a file of a few
megabytes, and holds one batch in memory. It is then tested on the real images of the dataset's test split, beside the
same classifier trained on as many of the real training images.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.runtime import open_bundle


def to_features(images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flatten images and scale them to 0..1: uint8 [N, H, W, C] -> float32 [N, H*W*C]."""
    return images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32) / 255.0


def on_real_images(real: ImageSet, batches: int) -> float:
    """Train the same classifier on as many batches of the source's own images; return its accuracy."""
    classifier, order = MLPClassifier((64,), learning_rate_init=2e-3, random_state=0), np.random.default_rng(0)
    for _ in range(batches):
        chosen = order.integers(0, len(real.train_labels), 100)
        classifier.partial_fit(
            to_features(real.train_images[chosen]), real.train_labels[chosen], classes=np.arange(len(real.classes))
        )
    return float(classifier.score(to_features(real.test_images), real.test_labels))


def main() -> None:
    """Train on the stream and print the accuracy on real images as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="a bundle; the default bundle if left out")
    parser.add_argument(
        "--test", help="where the real images are, a name or a path; the bundle's own source if left out"
    )
    parser.add_argument("--batches", type=int, default=400, help="mini-batches of 100 images to learn from")
    arguments = parser.parse_args()

    with open_bundle(arguments.bundle, device="cpu") as bundle:
        m = bundle.manifest
        real = load_data(arguments.test or m.source.name, DataOptions(size=m.height, channels=m.channels))
        if real.classes != m.classes:
            sys.exit(f"{real.name} has the classes {real.classes}; the bundle draws {m.classes}.")
        features, labels_real = to_features(real.test_images), real.test_labels
        classifier = MLPClassifier((64,), learning_rate_init=2e-3, random_state=0)
        ipc = max(1, 100 // len(m.classes))
        for batch, (images, labels) in enumerate(bundle.stream(ipc, batch_size=100, epochs=arguments.batches), 1):
            classifier.partial_fit(to_features(images), labels, classes=np.arange(len(m.classes)))
            if batch % max(1, arguments.batches // 4) == 0:
                accuracy = classifier.score(features, labels_real)
                print(f"{batch * 100:>7,} generated images: {accuracy:.1%} of {len(labels_real):,} real test images")
    print(
        f"as many real images: {on_real_images(real, arguments.batches):.1%} of {len(labels_real):,} real test images"
    )
    print("torch was imported" if "torch" in sys.modules else "torch was never imported")


if __name__ == "__main__":
    main()
