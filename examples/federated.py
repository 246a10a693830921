"""Send the bundle, not the data: three clients distil what they have, and a server learns from their bundles alone.

    pip install 'dim-distill[train,cpu]'
    python examples/federated.py [--out runs/federated] [--steps 1200]

Every client is a process of its own that knows some of the digits, and sends one bundle. The server opens the three
bundles, trains a classifier of all ten digits on what they draw, and never sees an image of a client. Bundles can be
made from private images but are not private by themselves: a generator may remember what it saw.
"""

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

import dim

CLIENTS = {"north": "0123", "east": "456", "south": "789"}
"""The digits that each client has."""


def main() -> None:
    """Run three clients one after the other, and then the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/federated"))
    parser.add_argument("--steps", type=int, default=1200, help="of each client's stage 1")
    arguments = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(1, maxtasksperchild=1) as pool:
        sent = pool.starmap(work_as_client, [(name, arguments.out, arguments.steps) for name in CLIENTS], chunksize=1)
    serve(sent)


def work_as_client(name: str, out: Path, steps: int) -> Path:
    """Distil a client's own images, and return the bundle that it sends."""
    digits = dim.load_data("digits")
    mine = np.isin(digits.train_labels, [int(digit) for digit in CLIENTS[name]])
    labels = np.array(digits.classes)[digits.train_labels[mine]]
    data = dim.load_data((digits.train_images[mine], labels), name=name)
    overrides = {"stage1.steps": steps, "stage2.steps": steps // 4}
    run = dim.distill(data, "tiny", out / name, overrides=overrides, threads=1)
    bundle = dim.export_run(run.run_dir)
    print(f"{name} sends {sum(f.stat().st_size for f in bundle.iterdir()) / 1e3:.0f} kB for digits {CLIENTS[name]}")
    return bundle


def serve(bundles: list[Path]) -> None:
    """Train a classifier on what the bundles draw, and test it on real images of all digits."""
    images, names = [], []
    for path in bundles:
        with dim.open_bundle(path) as bundle:
            for batch, labels in bundle.stream(ipc=200, epochs=1):
                images.append(batch.reshape(len(batch), -1) / 255)
                names.append(np.array(bundle.classes)[labels])
    classifier = KNeighborsClassifier(5)
    classifier.fit(np.concatenate(images), np.concatenate(names))
    digits = dim.load_data("digits")
    predicted = classifier.predict(digits.test_images.reshape(len(digits.test_images), -1) / 255)
    right = predicted == np.array(digits.classes)[digits.test_labels]
    print(f"the server recognises {100 * right.mean():.1f}% of {len(right)} real test images of all ten digits")


if __name__ == "__main__":
    main()
