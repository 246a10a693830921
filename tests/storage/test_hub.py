"""Sets and bundles on the Hugging Face Hub: its own client against a stand-in of its HTTP interface on loopback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_tools import dim, one_line
from hub_server import TOKEN, Hub, hub_server
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.fetch import fetch_bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.errors import BadValueError, BundleError, DimError, MissingExtraError, OutputError, hide_secrets
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.storage import hub_store, remote_store

COUNTS = (20, 9, 3)
SET = "hf://datasets/me/set"
# The client's own libraries warn about their insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(remote_store, "FIRST_PAUSE_S", 0.001)
    with hub_server() as served:
        served.make("datasets/me/set")
        yield served


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.mark.parametrize("format", FORMATS)
def test_the_hub_holds_the_same_bytes_as_a_folder_after_one_commit(
    bundle: Bundle, tmp_path: Path, hub: Hub, format: str
) -> None:
    sizes: dict[str, Any] = {} if format == "imagefolder" else {"shard_images": 15}
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format, **sizes)
    summary = generate(bundle, SET, counts=COUNTS, format=format, **sizes)
    assert summary.complete and summary.out == SET and len(hub.commits["datasets/me/set"]) == 2
    assert hub.files("datasets/me/set") == tree(tmp_path / "set")
    again = generate(bundle, SET, counts=COUNTS, format=format, **sizes)
    assert again.images_drawn == 0 and len(hub.commits["datasets/me/set"]) == 2


def test_a_folder_of_a_dataset_and_another_set(bundle: Bundle, tmp_path: Path, hub: Hub) -> None:
    wish: dict[str, Any] = {"counts": COUNTS, "format": "parquet", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    generate(bundle, f"{SET}/deep/er", **wish)
    assert hub.files("datasets/me/set") == {f"deep/er/{name}": data for name, data in tree(tmp_path / "set").items()}
    with pytest.raises(OutputError, match=r"set/deep/er holds another set \(seed 0 instead of 1\)"):
        generate(bundle, f"{SET}/deep/er", seed=1, **wish)
    wish["counts"] = (2, 0, 0)
    generate(bundle, f"{SET}/deep/er", overwrite=True, **wish)
    generate(bundle, tmp_path / "small", **wish)
    assert hub.files("datasets/me/set") == {f"deep/er/{name}": data for name, data in tree(tmp_path / "small").items()}
    assert len(hub.commits["datasets/me/set"]) == 3
    with pytest.raises(OutputError, match="already holds 'deep' and no set of ours"):
        generate(bundle, SET, **wish)


def test_large_sets_take_several_commits_and_resume(
    bundle: Bundle, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if done >= 24:
            raise KeyboardInterrupt

    monkeypatch.setattr(hub_store, "COMMIT_BYTES", 1)
    wish: dict[str, Any] = {"counts": COUNTS, "format": "webdataset", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, SET, progress=interrupt, **wish)
    half = hub.files("datasets/me/set")
    finished = [name for name in half if name.endswith(".tar")]
    assert 0 < len(finished) < 4 and ".dim/parts/000000.json" in half
    noted = sum(name.startswith(".dim/parts/") for name in half)
    assert generate(bundle, SET, **wish).images_drawn == 32 - 8 * noted
    assert hub.files("datasets/me/set") == tree(tmp_path / "set")


def test_workers_share_a_dataset(bundle: Bundle, tmp_path: Path, hub: Hub) -> None:
    wish: dict[str, Any] = {"counts": COUNTS, "format": "npy", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    done = [generate(bundle, SET, shard=(i, 3), **wish).complete for i in (2, 0, 1)]
    assert done == [False, False, True] and hub.files("datasets/me/set") == tree(tmp_path / "set")


def test_an_answer_that_passes_is_tried_again_and_others_are_told(bundle: Bundle, hub: Hub) -> None:
    wish: dict[str, Any] = {"counts": COUNTS, "format": "npz"}
    hub.answers += [("/commit/", 412, "A commit has happened since")]
    assert generate(bundle, SET, **wish).complete
    hub.make("datasets/me/other")
    for status, sentence in (
        (403, "the Hub answered 403; log in with  hf auth login  and a token that may write, or set HF_TOKEN to one."),
        (413, "the Hub answered 413 ("),
    ):
        hub.answers = [("/commit/", status, f"no room for {TOKEN}")]
        with pytest.raises(OutputError) as caught:
            generate(bundle, "hf://datasets/me/other", **wish)
        assert f"hf://datasets/me/other cannot be written: {sentence}" in str(caught.value)
        assert TOKEN not in str(caught.value) and hub.files("datasets/me/other") == {}


def test_without_a_login_nothing_is_written(bundle: Bundle, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = "hf_" + "zZ9" * 12
    monkeypatch.setenv("HF_TOKEN", stranger)
    with pytest.raises(OutputError, match="the Hub answered 403; log in with") as caught:
        generate(bundle, SET, counts=COUNTS, format="npz")
    assert stranger not in str(caught.value) and hub.files("datasets/me/set") == {}


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        (
            "hf://datasets/me/none/deep",
            OutputError,
            "hf://datasets/me/none/deep cannot be written: there is no such dataset or branch on the Hub, or this "
            "login may not see it; make it with  hf repos create me/none --repo-type dataset  or log in with  hf auth "
            "login",
        ),
        ("hf://me/set", OutputError, "hf://me/set cannot be written: there is no such dataset"),
        (
            "hf://datasets/set",
            BadValueError,
            "hf://datasets/set names no dataset of the Hub: write  hf://datasets/USER/NAME  for a set.",
        ),
        ("hf://", BadValueError, "hf:// names no folder"),
    ],
)
def test_places_that_cannot_be(bundle: Bundle, hub: Hub, url: str, kind: type[DimError], message: str) -> None:
    with pytest.raises(kind) as caught:
        generate(bundle, url, counts=COUNTS, format="npz")
    assert message in str(caught.value)


def test_a_model_is_no_place_for_a_set(bundle: Bundle, hub: Hub) -> None:
    hub.make("models/me/set")
    with pytest.raises(BadValueError, match="names no dataset of the Hub"):
        generate(bundle, "hf://me/set", counts=COUNTS, format="npz")


def test_a_bundle_goes_to_the_hub_and_comes_back_checked(tiny_bundle: Path, hub: Hub) -> None:
    hub.make("models/me/tiny.dim")
    done = dim("export", tiny_bundle, "--out", "hf://me/tiny.dim")
    assert done.code == 0, done.err
    assert f"to hf://me/tiny.dim, commit {hub.sha('models/me/tiny.dim')[:12]}." in done.err
    assert hub.files("models/me/tiny.dim") == tree(tiny_bundle)
    said: list[str] = []
    path = fetch_bundle("hf://me/tiny.dim", say=said.append)
    assert tree(path) == tree(tiny_bundle)
    assert said[0] == f"hf://me/tiny.dim is at revision {hub.sha('models/me/tiny.dim')[:12]}."
    with open_bundle("hf://me/tiny.dim") as opened:
        assert opened.path == path
    ran = dim("generate", "--bundle", "hf://me/tiny.dim", "--ipc", 2, "--out", SET, "--format", "npz")
    assert ran.code == 0 and "dataset.json" in hub.files("datasets/me/set")
    again = dim("export", tiny_bundle, "--out", "hf://me/tiny.dim")
    assert again.code == 0 and "hf://me/tiny.dim holds this bundle already." in again.err
    assert len(hub.commits["models/me/tiny.dim"]) == 2


def test_all_files_of_a_bundle_come_from_one_commit(
    tiny_bundle: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    whole = tree(tiny_bundle)
    hub.make("models/me/b.dim", whole)
    old = hub.sha("models/me/b.dim")
    hub.commits["models/me/b.dim"].append({**whole, "README.md": b"altered"})
    with pytest.raises(BundleError, match="README.md has 7 bytes"):
        fetch_bundle("hf://me/b.dim")
    assert not list((tmp_path / "cache" / "bundles").iterdir())  # nothing half-made is left
    fetch_bundle(f"hf://me/b.dim@{old}")
    asked = [each for each in hub.requests if "/resolve/" in each]
    assert asked and all(old in each or hub.sha("models/me/b.dim") in each for each in asked)
    pinned = load_manifest(tiny_bundle).manifest_sha256
    del hub.commits["models/me/b.dim"]
    assert tree(fetch_bundle("hf://me/b.dim", sha256=pinned)) == whole  # from the cache, asking nobody


def test_bundles_that_cannot_be_had_or_put(tiny_bundle: Path, hub: Hub) -> None:
    with pytest.raises(BundleError) as caught:
        fetch_bundle("hf://me/none.dim")
    assert str(caught.value) == (
        "There is no hf://me/none.dim on the Hub, or this login may not see it: check the name, make it with  hf repos "
        "create, or log in with  hf auth login"
    )
    with pytest.raises(BundleError, match="names nothing on the Hub"):
        fetch_bundle("hf://mnist.dim")
    hub.make("models/me/other.dim", {"manifest.json": b"{}"})
    refused = dim("export", tiny_bundle, "--out", "hf://me/other.dim")
    assert one_line(refused) == (
        "hf://me/other.dim holds another bundle: use --overwrite to replace it, or name another place."
    )
    assert dim("export", tiny_bundle, "--out", "hf://me/other.dim", "--overwrite").code == 0
    assert hub.files("models/me/other.dim") == tree(tiny_bundle)
    hub.answers = [("/commit/", 403, f"{TOKEN} may not write")]
    refused = dim("export", tiny_bundle, "--out", "hf://me/tiny.dim")
    assert refused.code == 1 and TOKEN not in refused.err


def test_tokens_are_hidden() -> None:
    assert hide_secrets(f"the header was Bearer {TOKEN}, not hf_hub_download") == (
        "the header was Bearer hf_***, not hf_hub_download"
    )


def test_the_cards_are_what_the_client_of_the_hub_parses(tiny_bundle: Path, bundle: Bundle, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    from dim.export.card import render_card

    of_bundle = ModelCard(render_card(load_manifest(tiny_bundle)))
    assert of_bundle.data.to_dict() == {
        "license": "cc0-1.0",
        "pipeline_tag": "unconditional-image-generation",
        "library_name": "dim",
        "tags": ["dataset-distillation", "synthetic-data", "onnx"],
    }
    assert of_bundle.text.lstrip().startswith("# tiny")
    generate(bundle, tmp_path / "set", counts=COUNTS, format="parquet")
    of_set = DatasetCard.load(tmp_path / "set" / "README.md")
    found = of_set.data.to_dict()
    assert (found["license"], found["pretty_name"]) == ("cc0-1.0", "tiny (generated)")
    assert found["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert found["task_categories"] == ["image-classification"] and found["size_categories"] == ["n<1K"]


@pytest.mark.parametrize("licence", ["", 'CC BY-SA 3.0 (A. "B" & others: <all>)', "MIT", "a\n---\nb: c"])
def test_any_licence_keeps_the_card_whole(tiny_bundle: Path, licence: str) -> None:
    from dataclasses import replace

    from huggingface_hub import ModelCard

    from dim.export.card import render_card

    data = ModelCard(render_card(replace(load_manifest(tiny_bundle), licence=licence))).data.to_dict()
    assert data["license"] == ("mit" if licence == "MIT" else "other") and data["library_name"] == "dim"
    assert data.get("license_name", licence if licence in ("", "MIT") else None) in ("", "MIT", licence)


def test_a_set_on_the_hub_is_verified_and_read_as_data(
    bundle: Bundle, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from dim.data.load import load_data

    generate(bundle, SET, counts=COUNTS, format="parquet", shard_images=15)
    verified = dim("verify", SET)
    assert verified.code == 0, verified.err
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_DATASETS_CACHE", tmp_path / "hf")):
        monkeypatch.setattr(datasets.config, name, value)
    data = load_data("hf://me/set")
    assert data.classes == ("zero", "one", "two") and hub.sha("datasets/me/set") in data.note
    assert len(data.train_labels) + len(data.test_labels) == 32


def test_without_its_client_the_install_line_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(*arguments: object, **more: object) -> None:
        raise ImportError("Install huggingface_hub to access HfFileSystem")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    for act in (lambda: generate(bundle, SET, counts=COUNTS), lambda: fetch_bundle("hf://me/tiny.dim")):
        with pytest.raises(MissingExtraError) as caught:
            act()
        assert str(caught.value) == (
            "The package 'huggingface_hub' is not installed and is needed to reach hf:// URLs: "
            "run  pip install 'dim-distill[hf]'"
        )


LIES: list[tuple[str, int, str, str]] = [
    ("/api/models", 401, "\x1b[2J", "needs credentials and no valid ones were found: run  hf auth login"),
    ("/api/models", 403, "say", "needs credentials and no valid ones were found: run  hf auth login"),
    (
        "/api/models",
        404,
        "say",
        "There is no hf://me/tiny.dim on the Hub, or this login may not see it: check the name",
    ),
    ("/api/models", 418, "say", "the server answered 418; check the address, which is that of the bundle's folder."),
    ("/api/models", 429, "say", "the server answered 429; it was asked too often: wait a few minutes and try again."),
    ("/api/models", 503, "say", "the server answered 503; it is out of order: try again later."),
    ("/api/models", 200, "<html>", "the server does not answer as the Hub does; see where HF_ENDPOINT leads."),
    ("/api/models", 200, "{}", "the server does not answer as the Hub does; see where HF_ENDPOINT leads."),
    ("/api/models", 200, '{"id": "me/tiny.dim", "sha": "main"}', "does not answer as the Hub does"),
    ("/api/models", 200, '{"id": "me/tiny.dim", "sha": "../../x"}', "does not answer as the Hub does"),
    ("/api/models", 200, '{"id": "me/tiny.dim", "sha": "\\u001b[2J"}', "does not answer as the Hub does"),
    ("/api/models", 200, '{"id": "me/tiny.dim", "sha": null}', "does not answer as the Hub does"),
    ("/api/models", 200, '{"id": "me/tiny.dim", "sha": ["x"]}', "does not answer as the Hub does"),
    ("manifest.json", 401, "say", "needs credentials and no valid ones were found: run  hf auth login"),
    ("manifest.json", 404, "say", "the server answered 404; check the address"),
    ("manifest.json", 200, "<!doctype html>", "the server sends a web page instead of manifest.json; give the address"),
    ("generator.fp32", 403, "say", "needs credentials and no valid ones were found: run  hf auth login"),
    ("generator.fp32", 200, "<html>", "it was altered or cut short, try again later."),
]


@pytest.mark.parametrize(("path", "status", "text", "words"), LIES)
def test_a_hub_that_lies_is_one_sentence(
    tiny_bundle: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    status: int,
    text: str,
    words: str,
) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    hub.make("models/me/tiny.dim", tree(tiny_bundle))
    hub.answers += [(path, status, text)] * 9
    with pytest.raises(BundleError) as caught:
        fetch_bundle("hf://me/tiny.dim", say=lambda line: None)
    assert words in str(caught.value) and str(caught.value).isprintable()
    assert "127.0.0.1" not in str(caught.value) and not list(tmp_path.glob("cache/bundles/*"))
