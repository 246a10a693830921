"""Trains a classifier of a run in pieces: a time limit stops it at its own checkpoint, and resuming continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dim.distillation.session import Session
from dim.runs.checkpoint import FOLDER, load_optimiser, optimiser_tensors
from dim.runs.files import make_folder
from dim.runs.tensors import check_finite, explain_misfit, load_weights, name_weights, read_tensors, write_tensors
from dim.runtime.errors import DivergedError


def train_in_pieces(
    session: Session,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: Callable[[int], Tensor],
    steps: int,
    *,
    what: str,
    name: str,
    report: Callable[[int], None],
    snapshots: Mapping[int, nn.Module] | None = None,
) -> bool:
    """Take `steps` steps, from the checkpoint where there is one.

    Args:
        session: whose time limit and checkpoint interval hold.
        model: what is trained.
        optimiser: of its parameters.
        step: takes the step of that number, from 0, and returns its loss.
        steps: how many.
        what: the classifier's name in messages.
        name: file of the run with the checkpoint; the caller removes it when the result is safe.
        report: called with the number of finished steps, before the first one and after each.
        snapshots: networks that receive the weights after so many steps.

    Returns:
        False if the time limit stopped it.

    Raises:
        DivergedError: the loss is not finite.
    """
    snapshots = snapshots or {}
    first = _restore(session.run_dir, name, model, optimiser, snapshots, steps)
    report(first)
    for index in range(first, steps):
        loss, done = step(index), index + 1
        if done in snapshots:
            snapshots[done].load_state_dict(model.state_dict())
        report(done)
        late = session.is_over
        if done < steps and not late and done % session.config.checkpoint_steps:
            continue
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"{what} diverged at step {done}: its loss is not finite. Finished stages are kept in "
                f"{session.run_dir}; try a lower learning rate or another architecture in a new run."
            )
        if done < steps:
            make_folder(session.run_dir, FOLDER)
            tensors = name_weights(_networks(done, model, snapshots)) | optimiser_tensors("optimiser", optimiser)
            write_tensors(session.run_dir, name, tensors | {"done": torch.tensor(done)})
            if late:
                return False
    return True


def _networks(done: int, model: nn.Module, snapshots: Mapping[int, nn.Module]) -> dict[str, nn.Module]:
    """The networks of a checkpoint after so many steps."""
    return {"model": model} | {f"at {age}": network for age, network in snapshots.items() if age <= done}


def _restore(
    run_dir: Path,
    name: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    snapshots: Mapping[int, nn.Module],
    steps: int,
) -> int:
    """Go back to the checkpoint; returns the steps done, of `steps` in all."""
    if not (run_dir / name).exists():
        return 0
    tensors = read_tensors(run_dir, name)
    with explain_misfit(run_dir, name):
        check_finite(tensors)
        done = int(tensors["done"])
        if not 0 <= done <= steps:
            raise ValueError(f"{done} of {steps} steps are done")
        load_weights(_networks(done, model, snapshots), tensors)
        load_optimiser("optimiser", optimiser, tensors)
    return done
