"""Fixtures that many tests share: a tiny bundle, built once per session, and a cache that dies with the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import build_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes, 8x8 grey images, in every precision; read it, never write into it."""
    return build_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.dim", precisions=("fp32", "fp16", "int8"))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's own cache, and their bundle out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DIM_BUNDLE", raising=False)
        yield
