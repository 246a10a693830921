"""The teacher: a small classifier of real images whose logits are the soft labels of generated ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.distillation.pool import build_member, write_classifiers
from dim.distillation.pool_training import train_in_pieces
from dim.distillation.session import Session
from dim.execution.cuda_graphs import capturable_lr, set_lr
from dim.execution.device_data import seed_of
from dim.runs.checkpoint import FOLDER
from dim.runs.files import remove_file
from dim.students.recipes import resolve_recipe
from dim.students.train import Normalizer, prepare

FILES = ("teacher.safetensors", "teacher.json")


def train_teacher(session: Session) -> bool:
    """Train the teacher on the real training images by the students' default recipe, in batches of balanced classes.

    Writes `teacher.safetensors` and `teacher.json`, which the export turns into `teacher.onnx`. The first process does
    it alone.

    Returns:
        False if the time limit stopped it; a checkpoint was made.

    Raises:
        DivergedError: its loss is not finite.
    """
    config, gan, partial = session.config.deployment, session.gan, f"{FOLDER}/teacher.safetensors"
    if all((session.run_dir / name).exists() for name in FILES):
        remove_file(session.run_dir, partial)
        return True
    recipe = resolve_recipe("default", session.record.data.name)
    teacher = build_member(session, config.teacher, config.teacher_width, "teacher")
    steps = gan.graphed_steps()
    optimiser = torch.optim.SGD(
        teacher.parameters(),
        lr=capturable_lr(recipe.lr, steps),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    normalise = Normalizer(session.images.mean, teacher.std_values, gan.device)

    def learn(generator: torch.Generator) -> Mapping[str, Tensor]:
        labels = gan.data.draw_labels(recipe.batch_size, 1, generator)
        images = prepare(gan.data.draw_images(labels, generator), normalise, recipe, generator)
        with gan.autocast():
            _, logits = teacher(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return {"loss": loss.detach()}

    def step(index: int) -> Tensor:
        set_lr(optimiser, recipe.lr_at(index, config.teacher_steps))
        seed = seed_of(session.config.seed, "teacher", index)
        return steps.take("sgd", learn, left=config.teacher_steps - index, seed=seed)["loss"]

    if not train_in_pieces(
        session,
        teacher,
        optimiser,
        step,
        config.teacher_steps,
        what="The teacher",
        name=partial,
        report=lambda done: session.report("teacher", done, config.teacher_steps),
    ):
        return False
    write_classifiers(session.run_dir, "teacher", [teacher])
    remove_file(session.run_dir, partial)
    session.say(f"Trained a teacher for soft labels, {config.teacher}, on real images.")
    return True
