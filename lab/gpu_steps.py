"""Steps whose outcome is kept in a file, so that a run that ends at any moment goes on where it was."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dim.runtime.errors import DeviceError, DimError, MissingExtraError
from dim.runtime.gpu.driver import Driver

ROOT = Path(__file__).resolve().parent.parent
PENDING = ("unfinished", "no time", "waiting")
"""What is tried again by the next command; what has failed is not."""


class NotRunHereError(Exception):
    """The machine lacks what a step needs."""


class UnfinishedError(Exception):
    """A step stopped in time and goes on from there when it is run again."""


@dataclass
class Context:
    """What every step knows."""

    work: Path
    """Everything that outlasts a command."""
    device: str
    """`gpu`, or `cpu` for a rehearsal."""
    driver: Driver
    tiny: bool = False
    """A rehearsal: every size as small as it can be."""
    steps: int | None = None
    """Steps of stage 1 and of stage 2; None for as many as fit."""
    matching_steps: int | None = None
    deadline: float = float("inf")
    """`time.monotonic()` by which a stage must have ended."""

    def left(self) -> float:
        """Seconds until the stage must have ended."""
        return self.deadline - time.monotonic()

    def rows(self, stage: str) -> dict[str, dict[str, Any]]:
        """What is known of the steps of a stage, by name."""
        path = self.work / "stages" / f"{stage}.json"
        found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return found

    @property
    def packages(self) -> bool:
        """Whether packages came with the data; what lacked one is then tried again."""
        return (self.work / "origin" / "packages.json").exists()

    def works(self) -> list[str]:
        """GPU engines that drew the self test's images, the best first.

        Raises:
            NotRunHereError: there is none.
        """
        from dim.runtime.engines.names import ENGINES

        rows = self.rows("machine")
        names = [name for name in ENGINES if rows.get(f"{name} accepts this GPU", {}).get("status") == "ok"]
        if not names:
            raise NotRunHereError("no GPU engine works here")
        return names

    def require(self, engine: str) -> None:
        """Go on only with an engine that works here."""
        row = self.rows("machine").get(f"{engine} accepts this GPU", {})
        if row.get("status") != "ok":
            raise NotRunHereError(row.get("reason", "its self test was not run"))


class Step(NamedTuple):
    """One thing to find out or to make."""

    name: str
    action: Callable[[Context], Any]
    needs_s: float = 5
    """It is not begun with less time left."""
    resumable: bool = False
    """Killed in the middle, it goes on; anything else that is killed has failed."""


@dataclass(frozen=True)
class Stage:
    """Steps that share a process, so that one that hangs or crashes ends nothing else."""

    name: str
    limit_s: float
    """The most seconds of one command."""
    steps: list[Step]
    needs_s: float = 10
    """It is not begun with less time left."""
    needs: tuple[str, ...] = ()
    """Files in the work folder without which it waits."""

    def pending(self, context: Context) -> list[Step]:
        """Steps that are still to be run."""
        rows = context.rows(self.name)
        return [step for step in self.steps if _is_pending(rows.get(step.name), context)]


def _is_pending(row: dict[str, Any] | None, context: Context) -> bool:
    if row is None or row["status"] in PENDING:
        return True
    return bool(row["status"] == "not run" and row["packages"] != context.packages)


def run_stage(stage: Stage, context: Context) -> None:
    """Run every pending step of a stage; whatever happens becomes a row of its file."""
    rows = context.rows(stage.name)
    for step in stage.pending(context):
        start = time.monotonic()
        if context.left() < step.needs_s:
            reason = f"it may take {step.needs_s:.0f} s and {max(context.left(), 0):.0f} s were left"
            row: dict[str, Any] = {"status": "no time", "reason": reason}
        else:
            killed = "unfinished" if step.resumable else "failed"
            before = {"status": killed, "reason": "it did not end in time, or ended the process"}
            write_rows(context.work, stage.name, rows | {step.name: {**before, "seconds": None}})
            row = _outcome(step, context)
        seconds = time.monotonic() - start + (rows.get(step.name, {}).get("seconds") or 0 if step.resumable else 0)
        rows[step.name] = {**row, "seconds": round(seconds, 2), "packages": context.packages}
        write_rows(context.work, stage.name, rows)
        print(f"{row['status']:>10}  {seconds:7.1f} s  {step.name}  {row.get('reason', '')}", flush=True)


def _outcome(step: Step, context: Context) -> dict[str, Any]:
    try:
        return {"status": "ok", "found": step.action(context)}
    except UnfinishedError as error:
        return {"status": "unfinished", "reason": str(error)}
    except (NotRunHereError, DeviceError, MissingExtraError) as error:
        return {"status": "not run", "reason": str(error)}
    except DimError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # one broken library must not hide what the others do
        return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


def write_rows(work: Path, stage: str, rows: dict[str, dict[str, Any]]) -> None:
    """Replace the file of a stage at once."""
    path = work / "stages" / f"{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1))
    os.replace(temporary, path)
