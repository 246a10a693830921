"""Continual learning in plain PyTorch: new classes are learned, and a bundle replays the old ones.

    pip install 'dim-distill[train,cpu]'
    python examples/continual_loop.py runs/digits/digits.dim

A network learns digits 0 to 4 from real images. Then it learns 5 to 9, while the old images are gone. Once it sees only
the new ones, and forgets. Once half of every batch is drawn from a bundle of the old digits, so it keeps them.
"""

import argparse
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dim

OLD, NEW = range(5), range(5, 10)


def main() -> None:
    """Learn two groups of digits one after the other, without and with replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="of scikit-learn's digits, as the quickstart makes it")
    parser.add_argument("--steps", type=int, default=400, help="for each group")
    arguments = parser.parse_args()
    digits = dim.load_data("digits")
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    test = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
    old, new = labels < 5, labels >= 5

    with dim.open_bundle(arguments.bundle) as bundle:
        for replay in (False, True):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 128), nn.ReLU(), nn.Linear(128, 10))
            train(network, images[old], labels[old], arguments.steps, None)
            source = bundle.stream(ipc=40, batch_size=32, classes=[str(k) for k in OLD]) if replay else None
            train(network, images[new], labels[new], arguments.steps, source)
            shares = [accuracy(network, *test, group) for group in (OLD, NEW)]
            how = "replayed from the bundle" if replay else "not seen again"
            print(f"old digits {how}: {shares[0]:.1f}% of the old, {shares[1]:.1f}% of the new test images")


def train(network: nn.Module, images: Tensor, labels: Tensor, steps: int, replayed: Iterable[Any] | None) -> None:
    """Take steps on batches of real images, and of replayed ones beside them."""
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    old_batches = None if replayed is None else iter(replayed)
    for _ in range(steps):
        rows = torch.randint(len(images), (32,))
        shown, wanted = images[rows], labels[rows]
        if old_batches is not None:
            old_images, old_labels = (torch.from_numpy(part) for part in next(old_batches))
            shown, wanted = torch.cat([shown, old_images]), torch.cat([wanted, old_labels])
        loss = nn.functional.cross_entropy(network(shown.float() / 255), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, group: range) -> float:
    """Return the share of a group's images that are recognised among all ten digits, in percent."""
    part = torch.from_numpy(np.isin(labels.numpy(), group))
    with torch.no_grad():
        predicted = network(images[part].float() / 255).argmax(dim=1)
    return 100 * float((predicted == labels[part]).float().mean())


if __name__ == "__main__":
    main()
