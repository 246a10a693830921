"""The few rows of a bundle's measured accuracy that fit on one screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SAME = ("data", "mode", "ipc", "arch", "width", "labels", "recipe", "precision", "epochs")
"""Fields in which a row of generated images and its control on real ones agree."""


@dataclass(frozen=True, kw_only=True)
class AccuracyLine:
    """One network trained on generated images, beside the same network trained on real ones for as many steps."""

    network: str
    mode: str
    """`stream` (fresh images in every epoch) or `fixed` (one set)."""
    ipc: int
    """Images per class; 0 where a row names none."""
    generated: str
    """Test accuracy in percent, with its deviation over seeds."""
    real: str
    """As `generated`, of real images; "-" where it was not measured."""
    recipe: str
    epochs: int


def summarise_accuracy(rows: Sequence[Mapping[str, Any]], most: int = 8) -> list[AccuracyLine]:
    """Choose the rows of generated images, hard labels, that say most: of each size the one trained for longest.

    Args:
        rows: the manifest's rows of accuracy; a stranger may have written them.
        most: how many lines at most.

    Returns:
        lines; the network with the most rows first, `stream` before `fixed`, small sizes first.
    """
    controls = {_key(row): row for row in rows if row.get("subject") == "real"}
    best: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for row in rows:
        if row.get("subject") != "generated" or row.get("labels", "hard") != "hard":
            continue
        place = (_text(row, "arch"), _text(row, "mode"), _count(row, "ipc"))
        if place not in best or _rank(row, controls) > _rank(best[place], controls):
            best[place] = row
    networks = [network for network, _, _ in best]
    order = sorted(best, key=lambda place: (-networks.count(place[0]), place[0], place[1] != "stream", place[2]))
    return [
        AccuracyLine(
            network=network,
            mode=mode,
            ipc=ipc,
            generated=format_accuracy(best[network, mode, ipc]),
            real=format_accuracy(controls.get(_key(best[network, mode, ipc]), {})),
            recipe=_text(best[network, mode, ipc], "recipe"),
            epochs=_count(best[network, mode, ipc], "epochs"),
        )
        for network, mode, ipc in order[:most]
    ]


def format_accuracy(row: Mapping[str, Any]) -> str:
    """Write a row's accuracy as "98.3 ± 0.1", or "-" where it has none."""
    mean, deviation = row.get("accuracy_mean"), row.get("accuracy_std")
    if isinstance(mean, bool) or not isinstance(mean, int | float):
        return "-"
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if isinstance(deviation, int | float) else "")


def _rank(row: Mapping[str, Any], controls: Mapping[tuple[str, ...], Mapping[str, Any]]) -> tuple[int, float]:
    """Longer training first; of equal lengths, the recipe by which real images do best."""
    real = controls.get(_key(row), {}).get("accuracy_mean")
    return _count(row, "epochs"), float(real) if isinstance(real, int | float) else -1.0


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(repr(row.get(name)) for name in _SAME)


def _text(row: Mapping[str, Any], name: str) -> str:
    return str(row.get(name, "?"))


def _count(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
