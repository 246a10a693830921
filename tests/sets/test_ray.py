"""`generate` on Ray: the same bytes for any number of workers, also when one is killed."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_program import COUNTS, PARQUET
from set_tools import tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import BadValueError, MissingExtraError
from dim.runtime.sets import ray as ray_generate
from dim.runtime.sets.generate import generate as write_set
from dim.runtime.sets.ray import Share, check_workers, generate_on_ray, pack_bundle, share_cluster
from dim.runtime.sets.request import SetRequest


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.fixture(scope="module")
def on_ray(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the sets that ray_program made, and what it told."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "foreign" / "one").mkdir(parents=True)
    (folder / "foreign" / "one" / "00000003.png").write_bytes(b"mine")
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        write_set(bundle, SetRequest(**PARQUET), folder / "mixed", shard=(0, 3))
    program = Path(__file__).parents[1] / "support" / "ray_program.py"
    command = [sys.executable, str(program), str(tiny_bundle), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(on_ray: Any, bundle: Bundle, tmp_path: Path) -> None:
    folder, told = on_ray
    write_set(bundle, SetRequest(per_class=COUNTS), tmp_path / "alone")
    assert tree(folder / "two") == tree(tmp_path / "alone")
    assert told["killed"] == 1 and told["complete"] == [True, True, True]
    assert told["seen"][0] == [0, 10_800] and told["seen"][-1] == [10_800, 10_800]
    assert told["said"] == [
        "Ray: 2 workers with no GPU and 1 CPUs each.",
        f"The set in {folder / 'two'} is complete already.",
    ]
    assert told["drawn"][1] == 0


@pytest.mark.slow
def test_ray_completes_what_a_plain_run_began(on_ray: Any, bundle: Bundle, tmp_path: Path) -> None:
    folder, told = on_ray
    write_set(bundle, SetRequest(**PARQUET), tmp_path / "alone")
    assert told["drawn"][2] == 1700
    assert tree(folder / "mixed") == tree(tmp_path / "alone")


@pytest.mark.slow
def test_errors_arrive_as_themselves(on_ray: Any) -> None:
    folder, told = on_ray
    assert told["errors"] == [
        f"OutputError: {folder / 'foreign'} already holds 'one' and no set of ours: choose an empty folder, "
        "or move 'one' away and use --overwrite to write beside what is there.",
        f"OutputError: {folder / 'foreign'} holds 'one', in the way of the new set and not of an earlier one: "
        "move it away first.",
    ]


def test_a_parcel_opens_where_the_folder_is_not_seen(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    parcel = replace(pack_bundle(bundle), path=str(tmp_path / "elsewhere"))
    for _ in range(2):
        with parcel.open(threads=1) as opened:
            assert opened.path.parent == tmp_path / "cache" / "bundles"
            assert (opened.sample([1], [2]) == bundle.sample([1], [2])).all()


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "share"),
    [
        ([{"CPU": 2}], "auto", 2, Share(workers=2, gpus=0, cpus=1.0)),
        ([{"CPU": 2}], "auto", None, Share(workers=1, gpus=0, cpus=2.0)),
        ([{"CPU": 1}], "auto", None, Share(workers=1, gpus=0, cpus=1.0)),
        ([{"CPU": 2}], "auto", 3, Share(workers=3, gpus=0, cpus=0.66)),
        ([{"CPU": 64}], "auto", None, Share(workers=32, gpus=0, cpus=2.0)),
        ([{"CPU": 64}], "auto", 4, Share(workers=4, gpus=0, cpus=16.0)),
        ([{"CPU": 64, "GPU": 8}], "auto", None, Share(workers=8, gpus=1, cpus=8.0)),
        ([{"CPU": 64, "GPU": 8}], "cpu", 2, Share(workers=2, gpus=0, cpus=32.0)),
        ([{"CPU": 8, "GPU": 8}], "gpu", 20, Share(workers=8, gpus=1, cpus=1.0)),
        ([{"CPU": 4}, {"CPU": 4}], "auto", 1, Share(workers=1, gpus=0, cpus=4.0)),
        ([{"CPU": 4}, {"CPU": 4}], "auto", 3, Share(workers=3, gpus=0, cpus=2.0)),
        ([{"CPU": 16}, {"CPU": 2}], "auto", 2, Share(workers=2, gpus=0, cpus=8.0)),
        ([{"CPU": 1}] * 2, "auto", 2, Share(workers=2, gpus=0, cpus=1.0)),
        # A head that takes no work; GPUs on one machine only; GPUs without a CPU.
        ([{"CPU": 0, "memory": 1e9}, {"CPU": 8}], "auto", None, Share(workers=4, gpus=0, cpus=2.0)),
        ([{"CPU": 32}, {"CPU": 8, "GPU": 2}], "auto", None, Share(workers=2, gpus=1, cpus=4.0)),
        ([{"CPU": 8, "GPU": 1}] * 4, "gpu", None, Share(workers=4, gpus=1, cpus=8.0)),
        ([{"CPU": 8, "GPU": 1}] * 4, "gpu", 3, Share(workers=3, gpus=1, cpus=8.0)),
        ([{"CPU": 4}, {"GPU": 1}], "auto", None, Share(workers=2, gpus=0, cpus=2.0)),
    ],
)
def test_sharing_a_cluster(nodes: list[dict[str, float]], device: str, workers: int | None, share: Share) -> None:
    assert share_cluster(nodes, device, workers) == share
    assert can_be_placed(nodes, share)


@given(
    st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 6)}, optional={"GPU": st.integers(0, 2)}), max_size=3),
    st.none() | st.integers(1, 6),
)
def test_all_workers_find_a_place_at_the_same_time(nodes: list[dict[str, int]], workers: int | None) -> None:
    try:
        share = share_cluster(nodes, "auto", workers)
    except BadValueError as error:
        assert "has no room for" in str(error) and max((node["CPU"] for node in nodes), default=0) == 0
    else:
        assert can_be_placed(nodes, share)


def can_be_placed(nodes: Sequence[Mapping[str, float]], share: Share) -> bool:
    """Fill the machines with as many tasks as each has room for."""
    room = 0
    for node in nodes:
        seats = round(100 * node.get("CPU", 0)) // round(100 * share.cpus)
        room += min(seats, int(node.get("GPU", 0))) if share.gpus else seats
    return room >= share.workers


def test_clusters_that_cannot_do_it() -> None:
    with pytest.raises(BadValueError, match="`num_workers` is 0; it must be at least 1"):
        check_workers(0)
    for nodes in ([{"CPU": 2}], [{"CPU": 2}, {"GPU": 1}]):
        with pytest.raises(BadValueError, match="Ray's cluster has no GPU on a machine with CPUs"):
            share_cluster(nodes, "gpu", None)
    with pytest.raises(BadValueError) as caught:
        share_cluster([{"CPU": 0}], "auto", None)
    assert str(caught.value) == (
        "Ray's cluster, 0 CPUs on 1 machine, has no room for 1 worker: ask for fewer, or give Ray more CPUs."
    )
    with pytest.raises(BadValueError, match="8 CPUs on 2 machines, has no room for 5,000 workers: ask for fewer"):
        share_cluster([{"CPU": 4}, {"CPU": 4}], "auto", 5000)


def test_ray_does_not_keep_sigterm_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        # As Ray's own does.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    def clean_up(number: int, frame: object) -> None:
        """What a caller does at SIGTERM."""

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    before = signal.signal(signal.SIGTERM, clean_up)
    try:
        assert ray_generate._start_ray() is fake
        assert signal.getsignal(signal.SIGTERM) is clean_up
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_ray(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        generate_on_ray(bundle, SetRequest(per_class=COUNTS), tmp_path / "set")
    assert str(caught.value) == (
        "The package 'ray' is not installed and is needed to generate on a cluster: run  pip install 'dim-distill[ray]'"
    )
    assert not (tmp_path / "set").exists()


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MissingExtraError("pyarrow", "parquet", "write Parquet files")))
    assert (error.package, error.extra) == ("pyarrow", "parquet") and "pip install 'dim-distill[parquet]'" in str(error)
