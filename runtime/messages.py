"""Where the library's sentences go by default."""

import logging

from dim.runtime.errors import hide_secrets


def say_to_log(message: str) -> None:
    """Hand a sentence to the logger `dim.runtime`; the default of every `say`."""
    logging.getLogger("dim.runtime").info(hide_secrets(message))
