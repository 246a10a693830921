"""Classes added later, without the images of the first ones: their bundle stands for them.

    pip install 'dim-distill[train,cpu]'
    python examples/add_classes.py [--out runs/added] [--steps 1200]

Digits 0 to 4 are distilled, and their images are not used again. Digits 5 to 9 come later: the bundle is replayed
beside them, and both are distilled into a bundle of all ten. A classifier trained on that one is tested on real images
of all ten. It takes a few minutes of two cores; `--steps 50` shows quickly that it runs.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

import dim


def main() -> None:
    """Distil five digits, then all ten from their bundle and five more, and test a classifier on real ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/added"))
    parser.add_argument("--steps", type=int, default=1200, help="of stage 1, the GAN; a quarter of them in stage 2")
    arguments = parser.parse_args()

    digits = dim.load_data("digits")
    halves = []
    for labels in (range(5), range(5, 10)):
        train, test = np.isin(digits.train_labels, labels), np.isin(digits.test_labels, labels)
        path = arguments.out / f"digits-{labels[0]}-{labels[-1]}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            train_images=digits.train_images[train],
            train_labels=np.array(digits.classes)[digits.train_labels[train]],
            test_images=digits.test_images[test],
            test_labels=np.array(digits.classes)[digits.test_labels[test]],
        )
        halves.append(path)

    overrides = {"stage1.steps": arguments.steps, "stage2.steps": arguments.steps // 4}
    first = dim.distill(dim.load_data(halves[0]), "tiny", arguments.out / "first", overrides=overrides)
    first_bundle = dim.export_run(first.run_dir)

    both = dim.load_data([first_bundle, halves[1]], dim.DataOptions(replay_ipc=150), name="all-ten")
    everything = dim.distill(both, "tiny", arguments.out / "all", overrides=overrides)
    bundle_path = dim.export_run(everything.run_dir)

    with dim.open_bundle(bundle_path) as bundle:
        batches = list(bundle.stream(ipc=200, epochs=1))
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        classifier = KNeighborsClassifier(5)
        classifier.fit(images.reshape(len(images), -1) / 255, np.array(bundle.classes)[labels])
    predicted = classifier.predict(digits.test_images.reshape(len(digits.test_images), -1) / 255)
    right = predicted == np.array(digits.classes)[digits.test_labels]
    for what, part in (("0 to 4", digits.test_labels < 5), ("5 to 9", digits.test_labels >= 5)):
        print(f"digits {what}: {100 * right[part].mean():.1f}% of {part.sum()} real test images")


if __name__ == "__main__":
    main()
