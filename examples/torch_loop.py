"""A plain PyTorch loop on fresh images, on one process or several.

    pip install 'dim-distill[cpu]' torch
    python examples/torch_loop.py [BUNDLE]
    torchrun --standalone --nproc-per-node 2 examples/torch_loop.py [BUNDLE]

Every image of an epoch comes exactly once, on one rank and in one worker. With ready batches an epoch holds the same
batches for any number of workers.
"""

import argparse
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

import dim


def main() -> None:
    """Train a small network for a few epochs and print its loss on fresh images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mnist", help="a path, a name or a URL")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader workers per rank")
    arguments = parser.parse_args()

    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = dim.torch.StreamDataset(arguments.bundle, ipc=50, batch_size=64)
    loader = DataLoader(data, batch_size=None, num_workers=arguments.workers, persistent_workers=arguments.workers > 0)
    network: nn.Module = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(data.image_shape), 128), nn.ReLU(), nn.Linear(128, len(data.classes))
    )
    if dist.is_initialized():
        network = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for epoch in range(arguments.epochs):
        total, steps = 0.0, 0
        for images, labels in loader:
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"epoch {epoch}: mean loss {total / steps:.3f} over {steps} steps")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
