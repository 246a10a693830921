"""The fuzzed readers: the corpus replayed, the seeds accepted, and a few seconds of coverage-guided fuzzing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "tests" / "fuzz"
sys.path.insert(0, str(FUZZ))

from json_mutator import mutate_json  # noqa: E402
from seeds import seeds  # noqa: E402
from targets import JSON_TARGETS, TARGETS, attempt  # noqa: E402


@pytest.fixture(scope="module")
def fresh_seeds() -> dict[str, list[bytes]]:
    """Valid inputs as the package writes them today."""
    return seeds()


def test_every_target_has_a_corpus_and_seeds(fresh_seeds: dict[str, list[bytes]]) -> None:
    assert sorted(folder.name for folder in (FUZZ / "corpus").iterdir()) == sorted(TARGETS) == sorted(fresh_seeds)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_no_promise(name: str) -> None:
    for file in sorted((FUZZ / "corpus" / name).iterdir()):
        attempt(name, file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str, fresh_seeds: dict[str, list[bytes]]) -> None:
    for data in fresh_seeds[name]:
        attempt(name, data) or pytest.fail(f"a seed of {name} is refused")


@pytest.mark.parametrize("name", JSON_TARGETS)
def test_mutated_json_breaks_no_promise(name: str, fresh_seeds: dict[str, list[bytes]]) -> None:
    accepted = 0
    for seed in range(400):
        changed = mutate_json(fresh_seeds[name][0], seed)
        accepted += changed is not None and attempt(name, changed)
    assert accepted > 0  # the mutations reach beyond the first checks


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or machine"
)
def test_a_few_seconds_of_fuzzing_find_nothing(tmp_path: Path, fresh_seeds: dict[str, list[bytes]]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, name in enumerate(TARGETS):
        for index, data in enumerate(fresh_seeds[name]):
            (corpus / f"{name}-{index}").write_bytes(bytes([number]) + data)
    found = subprocess.run(
        # Not straight from here: libFuzzer's memory would begin with the peak of this process.
        ["timeout", "--kill-after=5", "100"]
        + [sys.executable, str(FUZZ / "run.py"), "all", "-max_total_time=4", "-timeout=20", "-rss_limit_mb=2048"]
        + [f"-artifact_prefix={tmp_path}/", str(corpus)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Done " in found.stderr
