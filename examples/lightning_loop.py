"""A Lightning trainer on fresh images.

    pip install 'dim-distill[cpu]' torch lightning
    python examples/lightning_loop.py [BUNDLE] [--devices 2]

Lightning shares nothing out: the dataset gives every rank its own part of each epoch. Ready batches let the trainer
know how many there are, whatever the number of workers.
"""

import argparse
import math

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dim


class Classifier(lightning.LightningModule):
    """A small network and its loss."""

    def __init__(self, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, num_classes))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Print the mean loss of the epoch."""
        if self.global_rank == 0:
            loss = float(self.trainer.callback_metrics["loss"])
            print(f"epoch {self.current_epoch}: mean loss {loss:.3f} after {self.global_step} steps")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 2e-3)


def main() -> None:
    """Train for a few epochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mnist", help="a path, a name or a URL")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine")
    parser.add_argument("--workers", type=int, default=2, help="loader workers per process")
    arguments = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    data = dim.torch.StreamDataset(arguments.bundle, ipc=50, batch_size=64)
    loader = DataLoader(data, batch_size=None, num_workers=arguments.workers, persistent_workers=arguments.workers > 0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        max_epochs=arguments.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(math.prod(data.image_shape), len(data.classes)), loader)


if __name__ == "__main__":
    main()
