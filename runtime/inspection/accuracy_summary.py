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
    """With its width where that is not the network's own: "convnet3 (width 32)"."""
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
    """Choose the rows of generated images and hard labels by one recipe and number of epochs, so that they compare.

    The recipe is the one trained for longest; of several, the one with the most rows, then the one by which real images
    do best. Of rows that differ in precision, the one with the most seeds is taken.

    Args:
        rows: the manifest's rows of accuracy; a stranger may have written them.
        most: how many lines at most.

    Returns:
        lines of one recipe; the network with the most rows first, `stream` before `fixed`, small sizes first.
    """
    controls = {_key(row): row for row in rows if row.get("subject") == "real"}
    protocols: dict[tuple[str, int], dict[tuple[str, str, int], Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("subject") != "generated" or row.get("labels", "hard") != "hard":
            continue
        lines = protocols.setdefault((_text(row, "recipe"), _count(row, "epochs")), {})
        place = (_name_network(row), _text(row, "mode"), _count(row, "ipc"))
        if place not in lines or _count_seeds(row) > _count_seeds(lines[place]):
            lines[place] = row

    def rank(protocol: tuple[str, int]) -> tuple[int, int, float]:
        lines = protocols[protocol]
        real = [controls.get(_key(row), {}).get("accuracy_mean") for row in lines.values()]
        return protocol[1], len(lines), max((mean for mean in real if isinstance(mean, int | float)), default=-1.0)

    if not protocols:
        return []
    recipe, epochs = max(protocols, key=rank)
    lines = protocols[recipe, epochs]
    networks = [network for network, _, _ in lines]
    order = sorted(lines, key=lambda place: (-networks.count(place[0]), place[0], place[1] != "stream", place[2]))
    return [
        AccuracyLine(
            network=network,
            mode=mode,
            ipc=ipc,
            generated=format_accuracy(lines[network, mode, ipc]),
            real=format_accuracy(controls.get(_key(lines[network, mode, ipc]), {})),
            recipe=recipe,
            epochs=epochs,
        )
        for network, mode, ipc in order[:most]
    ]


def format_accuracy(row: Mapping[str, Any]) -> str:
    """Write a row's accuracy as "98.3 ± 0.1", or "-" where it has none."""
    mean, deviation = row.get("accuracy_mean"), row.get("accuracy_std")
    if isinstance(mean, bool) or not isinstance(mean, int | float):
        return "-"
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if isinstance(deviation, int | float) else "")


def _name_network(row: Mapping[str, Any]) -> str:
    width = _count(row, "width")
    return _text(row, "arch") + (f" (width {width})" if width else "")


def _count_seeds(row: Mapping[str, Any]) -> int:
    seeds = row.get("seeds")
    return len(seeds) if isinstance(seeds, list) else 0


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(repr(row.get(name)) for name in _SAME)


def _text(row: Mapping[str, Any], name: str) -> str:
    return str(row.get(name, "?"))


def _count(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
