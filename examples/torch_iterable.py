"""A PyTorch IterableDataset over a bundle's stream, correct under several loader workers and DistributedDataParallel.

    pip install 'dim-distill[cpu]' torch
    python examples/torch_iterable.py [BUNDLE]
    torchrun --standalone --nproc-per-node 2 examples/torch_iterable.py [BUNDLE]

Every image of an epoch comes exactly once, on one rank and in one worker, and the shuffle depends on the seed and the
epoch only: with 1 worker or 16, on 1 GPU or 8, an epoch holds the same images.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dim.runtime import Bundle, open_bundle


class StreamDataset(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of images uint8 [B, C, H, W] and labels int64 [B], epoch after epoch.

    Args:
        bundle: an open bundle; workers open their own engine.
        ipc: images per class and epoch.
        batch_size: images per batch; give the DataLoader batch_size=None.
        seed: of the images and the shuffles.
        equal_steps: cut every shard to the same number of batches, because ranks of DistributedDataParallel that take
            different numbers of steps wait for each other for ever. At most one image per shard and epoch is left out,
            another one in every epoch.
    """

    def __init__(self, bundle: Bundle, ipc: int, batch_size: int, seed: int = 0, equal_steps: bool = True) -> None:
        self.bundle, self.ipc, self.batch_size, self.seed = bundle, ipc, batch_size, seed
        self.equal_steps = equal_steps
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one epoch's share of this rank's worker; set `epoch` before each pass, as for DistributedSampler."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        shard, shards = rank * workers + index, world * workers
        left = self.ipc * len(self.bundle.classes) // shards
        batches = self.bundle.stream(
            self.ipc, self.batch_size, self.seed, epochs=1, start_epoch=self.epoch, shard=(shard, shards)
        )
        for images_NHWC, labels_N in batches:
            count = min(len(labels_N), left) if self.equal_steps else len(labels_N)
            if count == 0:
                return
            left -= count
            images_NCHW = torch.from_numpy(images_NHWC[:count]).permute(0, 3, 1, 2)
            yield images_NCHW, torch.from_numpy(labels_N[:count])


def main() -> None:
    """Train a small network for a few epochs and print its loss on fresh images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="a bundle; the default bundle if left out")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader workers per rank")
    arguments = parser.parse_args()

    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    with open_bundle(arguments.bundle, device="cpu", threads=1) as bundle:
        pixels = bundle.manifest.height * bundle.manifest.width * bundle.manifest.channels
        network: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, len(bundle.classes))
        )
        if dist.is_initialized():
            network = nn.parallel.DistributedDataParallel(network)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        dataset = StreamDataset(bundle, ipc=50, batch_size=64)
        for dataset.epoch in range(arguments.epochs):
            total, steps = 0.0, 0
            # Workers are made anew for every epoch, so that each learns the epoch's number.
            for images, labels in DataLoader(dataset, batch_size=None, num_workers=arguments.workers):
                loss = nn.functional.cross_entropy(network(images.float() / 255), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, steps = total + loss.item(), steps + 1
            if not dist.is_initialized() or dist.get_rank() == 0:
                print(f"epoch {dataset.epoch}: mean loss {total / steps:.3f} over {steps} steps")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
