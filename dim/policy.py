"""Augmentation policies: their syntax, and the policy of each known dataset. `dim.augment` applies them.

A policy is a list of steps joined by underscores and applied in that order; a step may have a strength. Several lists
are joined by bars, and every batch gets one of them: "color|crop_flip=0.5".
"""

from functools import lru_cache

from dim.runtime.errors import BadValueError

_STRENGTHS = {
    # name: (default, lowest, highest)
    "crop": (0.125, 0.0, 0.5),
    "flip": (0.5, 0.0, 1.0),
    "brightness": (1.0, 0.0, 2.0),
    "saturation": (2.0, 0.0, 4.0),
    "contrast": (0.5, 0.0, 1.0),
    "cutout": (0.5, 0.0, 1.0),
    "scale": (1.2, 1.0, 4.0),
    "rotate": (15.0, 0.0, 180.0),
}
_SHORTHANDS = {"color": ("brightness", "saturation", "contrast")}
STEP_NAMES = (*_STRENGTHS, *_SHORTHANDS)
"""Every step a policy may name."""


Steps = tuple[tuple[str, float], ...]
"""Names and strengths, in the order of application."""


@lru_cache(maxsize=64)
def parse_policy(policy: str) -> tuple[Steps, ...]:
    """Split a policy into the lists of steps that it chooses from.

    Args:
        policy: steps joined by underscores, or "none", and such lists joined by bars; "" is "none".

    Returns:
        One list or more, of pairs of step name and strength, `color` resolved into its three.

    Raises:
        BadValueError: an unknown step or a strength out of range.

    >>> parse_policy("flip_crop=0.0625|cutout")
    ((('flip', 0.5), ('crop', 0.0625)), (('cutout', 0.5),))
    """
    if not policy:
        return ((),)
    return tuple(_parse_steps(steps, policy) for steps in policy.split("|"))


def _parse_steps(text: str, policy: str) -> Steps:
    if text == "none":
        return ()
    steps: list[tuple[str, float]] = []
    for token in text.split("_"):
        name, has_strength, number = token.partition("=")
        if name in _SHORTHANDS and not has_strength:
            steps += [(part, _STRENGTHS[part][0]) for part in _SHORTHANDS[name]]
            continue
        if name not in _STRENGTHS:
            raise BadValueError(
                f"Unknown augmentation step '{token}' in policy '{policy}': "
                f"join steps from {', '.join(STEP_NAMES)} with underscores, lists of them with bars, or use 'none'."
            )
        default, low, high = _STRENGTHS[name]
        try:
            strength = float(number) if has_strength else default
        except ValueError:
            strength = float("nan")
        if not low <= strength <= high:
            raise BadValueError(
                f"The strength of '{token}' in augmentation policy '{policy}' must be a number from {low:g} "
                f"to {high:g}."
            )
        steps.append((name, strength))
    return tuple(steps)


def default_policy(data_name: str) -> str:
    """Return the student's augmentation for a dataset: small shifts, and flips where they are known to keep the class.

    Args:
        data_name: the dataset's name, as `load_data` knows it; other folders and archives are never flipped, because
            nobody knows whether their classes survive it (digits and letters do not). A folder of CIFAR images is known
            by the beginning of its name.

    Returns:
        A policy.
    """
    flips = data_name.lower().startswith(("cifar", "fashion-mnist"))
    return "flip_crop" if flips else "crop=0.0625"
