"""What the library says when nobody listens otherwise."""

import logging


def say_to_log(message: str) -> None:
    """Hand a message to the logger `dim.runtime`: what the library says when nobody listens otherwise."""
    logging.getLogger("dim.runtime").info(message)
