"""`generate` on Ray: the same bytes for any number of workers, also when one is killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_program import COUNTS, PARQUET
from set_tools import tree

from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError, MissingExtraError
from dim.runtime.generate import generate
from dim.runtime.ray_generate import Share, generate_on_ray, pack_bundle, share_cluster


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.fixture(scope="module")
def on_ray(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the sets that ray_program made, and what it told."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "foreign" / "one").mkdir(parents=True)
    (folder / "foreign" / "one" / "00000003.png").write_bytes(b"mine")
    with Bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, folder / "mixed", shard=(0, 3), **PARQUET)
    program = Path(__file__).with_name("ray_program.py")
    command = [sys.executable, str(program), str(tiny_bundle), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


def test_two_workers_of_which_one_is_killed(on_ray: Any, bundle: Bundle, tmp_path: Path) -> None:
    folder, told = on_ray
    generate(bundle, tmp_path / "alone", counts=COUNTS)
    assert tree(folder / "two") == tree(tmp_path / "alone")
    assert told["killed"] == 1 and told["complete"] == [True, True, True]
    assert told["seen"][0] == [0, 2700, 0] and told["seen"][-1][0] == 2700
    assert told["said"] == [
        "Ray: 2 workers with no GPU and 0.5 CPUs each.",
        f"The set in {folder / 'two'} is complete already.",
    ]
    assert told["drawn"][1] == 0


def test_ray_completes_what_a_plain_run_began(on_ray: Any, bundle: Bundle, tmp_path: Path) -> None:
    folder, told = on_ray
    generate(bundle, tmp_path / "alone", **PARQUET)
    assert told["drawn"][2] == 1700
    assert tree(folder / "mixed") == tree(tmp_path / "alone")


def test_errors_arrive_as_themselves(on_ray: Any) -> None:
    folder, told = on_ray
    assert told["errors"] == [
        f"OutputError: {folder / 'foreign'} already holds 'one' and no set of ours: choose an empty folder, "
        "or use --overwrite to write beside what is there.",
        f"OutputError: {folder / 'foreign'} holds 'one', which the new set needs and no earlier set lists: "
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
    ("resources", "device", "workers", "share"),
    [
        ({"CPU": 2}, "auto", 2, Share(workers=2, gpus=0, cpus=0.5)),
        ({"CPU": 2}, "auto", None, Share(workers=1, gpus=0, cpus=1.0)),
        ({"CPU": 1}, "auto", None, Share(workers=1, gpus=0, cpus=0.5)),
        ({"CPU": 64}, "auto", None, Share(workers=32, gpus=0, cpus=1.0)),
        ({"CPU": 64}, "auto", 4, Share(workers=4, gpus=0, cpus=15.0)),
        ({"CPU": 64, "GPU": 8}, "auto", None, Share(workers=8, gpus=1, cpus=7.0)),
        ({"CPU": 64, "GPU": 8}, "cpu", 2, Share(workers=2, gpus=0, cpus=31.0)),
        ({"CPU": 8, "GPU": 8}, "gpu", 20, Share(workers=8, gpus=1, cpus=0.87)),
    ],
)
def test_sharing_a_cluster(resources: dict[str, float], device: str, workers: int | None, share: Share) -> None:
    assert share_cluster(resources, device, workers) == share
    assert share.workers * share.cpus < max(resources["CPU"], 1)


def test_clusters_that_cannot_do_it() -> None:
    with pytest.raises(BadValueError, match="num_workers is 0; it must be at least 1"):
        share_cluster({"CPU": 2}, "auto", 0)
    with pytest.raises(BadValueError, match="Ray's cluster has no GPU"):
        share_cluster({"CPU": 2}, "gpu", None)


def test_without_ray(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        generate_on_ray(bundle, tmp_path / "set", counts=COUNTS)
    assert str(caught.value) == (
        "The package 'ray' is not installed and is needed to generate on a cluster: run  pip install 'dim-distill[ray]'"
    )
    assert not (tmp_path / "set").exists()


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MissingExtraError("pyarrow", "parquet", "write Parquet files")))
    assert (error.package, error.extra) == ("pyarrow", "parquet") and "pip install 'dim-distill[parquet]'" in str(error)
