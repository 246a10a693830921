"""Run by torchrun: every rank takes its part of two passes in spawned workers; the first says what all have seen."""

import json
import sys

import torch.distributed as dist
from loaders import count_pictures, expected_pictures
from torch.utils.data import DataLoader

from dim.runtime.bundle import open_bundle
from dim.torch import StreamDataset

if __name__ == "__main__":
    ipc = 7
    with open_bundle(sys.argv[1], engine="onnxruntime-cpu", threads=1) as bundle:
        data = StreamDataset(bundle, ipc, normalize=False)  # before the ranks know one another
        dist.init_process_group("gloo")
        loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="spawn")
        for epoch in range(2):
            batches = list(loader)
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (len(batches), count_pictures(batches)))
            steps, pictures = zip(*everyone, strict=True)
            together = sum(pictures[1:], pictures[0])
            foreign = together - expected_pictures(bundle, ipc, epoch)
            if dist.get_rank() == 0:
                print(json.dumps([len(data), steps, sum(together.values()), len(together), len(foreign)]))
        dist.destroy_process_group()
