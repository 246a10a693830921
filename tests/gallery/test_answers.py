"""What the gallery answers: sheets of images, points between samples, real images, and sets."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.gallery.answers import Answers, Neighbour, follow_arc
from dim.runtime.gallery.pictures import COLUMNS
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

FIXED = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)


class FewImages:
    """Real images for tests: of every class as many as asked for, all of one grey."""

    name = "few"

    def first(self, label: int, count: int) -> NDArray[np.uint8]:
        return np.full((count, 8, 8, 1), 40 + label, np.uint8)

    def nearest(self, image: NDArray[np.uint8], count: int) -> list[Neighbour]:
        return [Neighbour(image=image, label=k % 3, distance=float(k)) for k in range(count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gallery") / "tiny.dim"
    return build_tiny_bundle(place, extra_files={"latents.npz": write_fixed_latents(FIXED)})


@pytest.fixture
def bundle(path: Path) -> Iterator[Bundle]:
    with Bundle(path, EngineOptions(engine="onnxruntime-cpu")) as opened:
        yield opened


@pytest.fixture
def answers(bundle: Bundle, tmp_path: Path) -> Answers:
    return Answers(bundle, FewImages(), tmp_path)


def cut(png: bytes, count: int) -> NDArray[np.uint8]:
    """Cut a sheet of 8x8 grey images."""
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    columns = min(count, COLUMNS)
    tiles = sheet.reshape(-1, 8, columns, 8).swapaxes(1, 2).reshape(-1, 8, 8, 1)
    return tiles[:count]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_sheet_holds_the_images_of_sample(answers: Answers, bundle: Bundle, count: int) -> None:
    shown = cut(answers.images({"labels": "2,0", "count": str(count), "seed": "9", "start": "1"}), 2 * count)
    labels, indices = [2] * count + [0] * count, [*range(1, count + 1)] * 2
    assert np.array_equal(shown, bundle.sample(labels, indices, seed=9))


def test_fixed_latents_can_be_left_out(answers: Answers, bundle: Bundle) -> None:
    query = {"labels": "1", "count": "4", "seed": "3"}
    fixed, drawn = (cut(answers.images({**query, "fixed": fixed}), 4) for fixed in ("1", "0"))
    assert np.array_equal(drawn, bundle.sample([1] * 4, [*range(4)], 3, "stream"))
    assert not np.array_equal(fixed[:2], drawn[:2]) and np.array_equal(fixed[2:], drawn[2:])


def test_the_latent_std_stretches_what_is_drawn_and_no_fixed_latents(answers: Answers, bundle: Bundle) -> None:
    usual, wide = (cut(answers.images({"labels": "1", "count": "4", "std": std}), 4) for std in ("", "1.5"))
    assert np.array_equal(usual[:2], wide[:2]) and not np.array_equal(usual[2:], wide[2:])
    latents = bundle.latents([1, 1], [2, 3], use="stream") * np.float32(1.5)
    assert np.array_equal(wide[2:], bundle.render(latents, [1, 1]))


def test_a_path_begins_and_ends_with_the_samples(answers: Answers, bundle: Bundle) -> None:
    path = cut(answers.between({"labels": "2", "start": "4", "end": "7", "steps": "9", "seed": "1"}), 9)
    assert np.array_equal(path[[0, -1]], bundle.sample([2, 2], [4, 7], seed=1))
    assert len({image.tobytes() for image in path}) > 2


def test_points_on_an_arc_are_as_long_as_its_ends() -> None:
    a, b = np.random.default_rng(5).normal(size=(2, 64)).astype(np.float32)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    path = follow_arc(a, b, np.linspace(0, 1, 7))
    assert np.allclose(np.linalg.norm(path, axis=1), 1, atol=1e-5)
    assert np.array_equal(path[[0, -1]], [a, b])
    assert np.array_equal(follow_arc(a, a, np.linspace(0, 1, 3)), [a, a, a])


def test_real_images_and_the_nearest(answers: Answers) -> None:
    assert (cut(answers.real({"labels": "2", "count": "3"}), 3) == 42).all()
    neighbours, sheet = answers.nearest({"labels": "1", "start": "5"})
    assert [neighbour.label for neighbour in neighbours] == [0, 1, 2, 0, 1, 2]
    assert len({image.tobytes() for image in cut(sheet, 6)}) == 1


def test_without_data_there_are_none(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadValueError, match="There are no real images here: start the gallery with --data."):
        Answers(bundle, None, tmp_path).real({"labels": "0"})


def test_facts_are_json_of_the_card(answers: Answers, tmp_path: Path) -> None:
    facts = answers.facts()
    assert facts["classes"] == ("zero", "one", "two") and facts["fixed_latents"] == 2
    assert facts["real"] == "few" and facts["folder"] == str(tmp_path)
    assert facts["size_bytes"] == sum(facts["files"].values())


@pytest.mark.parametrize(("fixed", "seed"), [("1", "0"), ("0", "7")])
def test_a_saved_set_is_that_of_generate(answers: Answers, path: Path, tmp_path: Path, fixed: str, seed: str) -> None:
    query = {"labels": "0,2", "count": "3", "start": "1", "seed": seed, "fixed": fixed}
    saved = answers.save({**query, "format": "npz", "out": "here/set"})
    assert saved["images"] == 6 and saved["out"] == str(tmp_path / "here" / "set")
    with open_bundle(path, engine="onnxruntime-cpu", fixed_latents=fixed == "1") as bundle:
        generate(bundle, SetRequest(ipc=3, classes=[0, 2], start=1, seed=int(seed), format="npz"), tmp_path / "other")
    assert (tmp_path / "here/set/train.npz").read_bytes() == (tmp_path / "other/train.npz").read_bytes()


def test_the_command_says_the_same(answers: Answers, path: Path) -> None:
    query = {"labels": "2", "count": "3", "start": "1", "seed": "7", "fixed": "0", "format": "npz", "out": "my set"}
    assert answers.command(query) == {
        "command": f"dim generate --bundle {path} --ipc 3 --class two --seed 7 --start 1 --no-fixed-latents "
        "--format npz --out 'my set'",
        "images": 3,
    }
    assert answers.command({})["command"] == f"dim generate --bundle {path} --ipc 12 --out data"


def test_a_set_may_be_larger_than_a_page(answers: Answers) -> None:
    assert answers.command({"count": "33333", "out": "x"})["images"] == 99_999
    with pytest.raises(BadValueError, match="it must be a whole number from 1 to 33333"):
        answers.command({"count": "33334", "out": "x"})


@pytest.mark.parametrize(
    "out",
    ["", "..", "../x", "/tmp/x", "a/../../x", "s3://bucket/set", ".", "~/../../etc", "a\0b", "a\x1b[31mb", "\ud800"],
)
def test_a_set_goes_nowhere_else(answers: Answers, out: str, tmp_path: Path) -> None:
    with pytest.raises(BadValueError, match="below"):
        answers.save({"count": "1", "out": out})
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_a_folder_asks_for_one(answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(BadValueError) as refused:
        answers.save({"count": "1", "out": " "})
    assert str(refused.value) == f"The set has no folder yet: name one below {tmp_path}."


def test_the_other_end_is_named(answers: Answers) -> None:
    with pytest.raises(BadValueError, match="The last index is '-1'; it must be a whole number from 0 to 4294967295"):
        answers.between({"labels": "1", "end": "-1", "steps": "3"})


def test_a_link_does_not_lead_out(answers: Answers, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (tmp_path / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(BadValueError, match="does not lie below"):
        answers.save({"count": "1", "out": "link/set"})


def test_a_set_has_the_bundles_own_std(answers: Answers) -> None:
    with pytest.raises(BadValueError) as refused:
        answers.save({"count": "1", "std": "1.5", "out": "set"})
    assert str(refused.value) == (
        "A set is drawn with the bundle's own latent std, 1, and the slider is at 1.5: set it back to save what is "
        "seen."
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"labels": "3"}, "The class is '3'; it must be a whole number from 0 to 2."),
        ({"labels": "0,x"}, "The class is 'x'; it must be a whole number from 0 to 2."),
        ({"count": "0"}, "The number of images per class is '0'; it must be a whole number from 1 to 666."),
        ({"count": "2001", "labels": "1"}, "The number of images per class is '2001'"),
        ({"start": "-1"}, "The first index is '-1'; it must be a whole number from 0 to 4294967283."),
        ({"seed": "18446744073709551616"}, "The seed is '18446744073709551616'"),
        ({"seed": "1" * 5000}, "The seed is '1111"),
        ({"seed": "١"}, "The seed is '١'"),
        ({"std": "0"}, "The latent std is '0'; it must be a number above 0 and at most 10."),
        ({"std": "nan"}, "The latent std is 'nan'"),
    ],
)
def test_what_cannot_be_is_told(answers: Answers, query: dict[str, str], message: str) -> None:
    with pytest.raises(BadValueError) as refused:
        answers.images(query)
    assert message in str(refused.value) and len(str(refused.value)) < 200


def test_an_altered_file_is_told_when_images_are_asked_for(path: Path, tmp_path: Path) -> None:
    other = shutil.copytree(path, tmp_path / "altered.dim")
    (other / "generator.fp32.onnx").write_bytes(b"altered")
    with Bundle(other) as bundle, pytest.raises(BundleError, match=r"generator\.fp32\.onnx"):
        Answers(bundle, None, tmp_path).images({})
