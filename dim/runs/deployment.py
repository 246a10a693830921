"""`deployment.json` of a run: the standard deviation of its bundle's latents, and how it was chosen."""

from pathlib import Path
from typing import Any

from dim.runs.files import read_json, write_resume_command
from dim.runtime.errors import RunError

DEPLOYMENT_FILE = "deployment.json"
MAX_LATENT_STD = 100


def read_deployment(run_dir: Path) -> dict[str, Any]:
    """Read the file; its `latent_std` is a number above 0 and at most `MAX_LATENT_STD`.

    Raises:
        RunError: it cannot be read, is a link, is not strict JSON, or has no such number.
    """
    path, found = run_dir / DEPLOYMENT_FILE, read_json(run_dir, DEPLOYMENT_FILE)
    latent_std = found.get("latent_std") if isinstance(found, dict) else None
    if not isinstance(latent_std, int | float) or isinstance(latent_std, bool):
        go_on = write_resume_command(run_dir)
        raise RunError(f"{path} has no number latent_std: restore it, or remove it and go on with  {go_on}")
    if not 0 < latent_std <= MAX_LATENT_STD:
        raise RunError(f"{path} has the latent_std {latent_std}; it must be above 0 and at most {MAX_LATENT_STD}.")
    return dict(found)
