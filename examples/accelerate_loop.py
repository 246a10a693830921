"""A loop under Hugging Face accelerate on fresh images.

    pip install 'dim-distill[cpu]' torch accelerate
    python examples/accelerate_loop.py [BUNDLE]
    torchrun --standalone --nproc-per-node 2 examples/accelerate_loop.py [BUNDLE]

The dataset gives every rank its own part of each epoch, so accelerate is told that there is nothing left to share out:
the loader is prepared as that of one process. `accelerator.prepare(loader)` would split the part of the first rank.
"""

import argparse
import math

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader

import dim


def main() -> None:
    """Train a small network for a few epochs and print its loss on fresh images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mnist", help="a path, a name or a URL")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader workers per process")
    arguments = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    data = dim.torch.StreamDataset(arguments.bundle, ipc=50, batch_size=64)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(data.image_shape), 128), nn.ReLU(), nn.Linear(128, len(data.classes))
    )
    network, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), 2e-3))
    loader = prepare_data_loader(
        DataLoader(data, batch_size=None, num_workers=arguments.workers),
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
    )
    for epoch in range(arguments.epochs):
        total, steps = 0.0, 0
        for images, labels in loader:
            loss = nn.functional.cross_entropy(network(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total, steps = total + loss.item(), steps + 1
        accelerator.print(f"epoch {epoch}: mean loss {total / steps:.3f} over {steps} steps")
    accelerator.end_training()


if __name__ == "__main__":
    main()
