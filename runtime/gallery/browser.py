"""Opens a page in the user's browser."""

import os
import webbrowser
from collections.abc import Callable


def open_in_browser(address: str, say: Callable[[str], None]) -> None:
    """Open an address in a browser, or say that there is none; one for terminals does not count.

    Args:
        address: of a page, or of a file with `file://`.
        say: gets the sentence.
    """
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if not has_display or not webbrowser.open(address):
        say("No browser was found here: open the address yourself.")
