#!/usr/bin/env python
"""Fuzz one target with atheris:  python tests/fuzz/run.py TARGET [libFuzzer's options] [corpus folders]

TARGET is a name in targets.py, or `all`: then the first byte of an input chooses. `-help=1` lists libFuzzer's
options. An input that breaks a promise is written to a file and named;  run.py TARGET FILE  runs it again.
"""

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["dim", "PIL"]):
    from json_mutator import mutate_json
    from targets import JSON_TARGETS, TARGETS, attempt


def main() -> None:
    """Run libFuzzer until it is done or finds something."""
    chosen = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if chosen != "all" and chosen not in TARGETS:
        sys.exit(f"usage: python tests/fuzz/run.py all|{'|'.join(TARGETS)} [options] [corpus folders]")
    warnings.simplefilter("error")
    names = list(TARGETS)

    def test(data: bytes) -> None:
        if chosen != "all":
            attempt(chosen, data)
        elif data:
            attempt(names[data[0] % len(names)], data[1:])

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = mutate_json(data, seed) if seed % 4 else None
        return atheris.Mutate(data, len(data)) if changed is None or len(changed) > max_size else changed

    atheris.Setup(sys.argv, test, custom_mutator=mutate if chosen in JSON_TARGETS else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
