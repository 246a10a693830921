"""Distil a labelled image dataset into a small generator, compile it, and deploy it without PyTorch.

Importing `dim` imports nothing heavy, because `import dim.runtime` runs this file first.
"""

from dim.version import __version__

__all__ = ["__version__"]
