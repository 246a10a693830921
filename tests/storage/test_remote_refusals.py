"""What keeps a set from being written to a bucket: one sentence, told at once, and nothing lost."""

import errno
import json
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cli_tools import dim, one_line
from s3_tools import objects
from set_tools import estimate_set, generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.fetch import fetch_bundle
from dim.runtime.errors import BundleError, OutputError
from dim.runtime.set_formats import part as writers_part
from dim.runtime.storage import remote_store
from dim.runtime.storage.remote_store import RemoteStore

COUNTS = (20, 9, 3)
# botocore and moto warn about their own insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where something is tried again that cannot work."""

    def refuse(seconds: float) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(remote_store.time, "sleep", refuse)


def test_a_bucket_that_does_not_exist(bundle: Bundle, s3: Any, no_waiting: None) -> None:
    for call in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            call(bundle, "s3://nowhere/set", counts=COUNTS, format="npz")
        assert str(caught.value) == (
            "s3://nowhere/set cannot be written: there is no bucket 'nowhere'; make it first, or fix its name."
        )


class Guard:
    """Switches moto's check of permissions, which is that of the real service, on and off."""

    def __init__(self) -> None:
        import boto3

        iam = boto3.client("iam")
        iam.create_user(UserName="guest")
        self.key = iam.create_access_key(UserName="guest")["AccessKey"]
        self._iam = iam

    def allow(self, *actions: str) -> None:
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        self._iam.put_user_policy(UserName="guest", PolicyName="some", PolicyDocument=json.dumps(policy))

    def check(self, on: bool) -> None:
        from moto import settings

        # How many requests are let through unseen.
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if on else float("inf")


@pytest.fixture
def guest(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Somebody whom the service knows and who may do what a test allows."""
    guard = Guard()
    guard.allow("s3:ListAllMyBuckets")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", guard.key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", guard.key["SecretAccessKey"])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield guard
    guard.check(False)
    guard._iam.delete_user_policy(UserName="guest", PolicyName="some")
    guard._iam.delete_access_key(UserName="guest", AccessKeyId=guard.key["AccessKeyId"])
    guard._iam.delete_user(UserName="guest")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_bucket_without_permission(bundle: Bundle, s3: Any, guest: Guard, no_waiting: None, tmp_path: Path) -> None:
    guest.check(True)
    for call in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            call(bundle, "s3://bucket/closed", counts=COUNTS, format="npz")
        assert str(caught.value) == (
            "s3://bucket/closed cannot be written: permission denied; check the credentials and the bucket's policy."
        )
    with pytest.raises(BundleError) as refused:
        fetch_bundle("s3://bucket/b.dim")
    assert str(refused.value) == (
        "s3://bucket/b.dim/manifest.json cannot be fetched: permission denied; check the credentials."
    )
    guest.check(False)
    assert objects(s3, "closed") == {} and not list((tmp_path / "tmp").iterdir())


def test_a_bucket_that_may_only_be_read(bundle: Bundle, s3: Any, guest: Guard, no_waiting: None) -> None:
    guest.allow("s3:GetObject", "s3:ListBucket", "s3:HeadBucket")
    guest.check(True)
    with pytest.raises(OutputError, match="s3://bucket/closed cannot be written: permission denied; check the"):
        generate(bundle, "s3://bucket/closed", counts=COUNTS, format="npz")
    guest.check(False)
    assert objects(s3, "closed") == {}


def test_permission_lost_on_the_way_loses_nothing(
    bundle: Bundle, s3: Any, guest: Guard, no_waiting: None, tmp_path: Path
) -> None:
    def close(what: str, done: float, total: float | None, note: str) -> None:
        guest.check(done >= 16)

    wish: dict[str, Any] = {"counts": COUNTS, "format": "webdataset", "shard_images": 8}
    generate(bundle, tmp_path / "one", **wish)
    with pytest.raises(OutputError, match="permission denied"):
        generate(bundle, "s3://bucket/lost", progress=close, **wish)
    guest.check(False)
    assert [name for name in objects(s3, "lost") if name.endswith(".tar")]
    assert 0 < generate(bundle, "s3://bucket/lost", **wish).images_drawn < 32
    assert objects(s3, "lost") == tree(tmp_path / "one")


def test_no_credentials_at_all(
    bundle: Bundle, s3: Any, no_waiting: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    how = (
        "needs credentials and no valid ones were found: "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run  aws configure."
    )
    for call in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            call(bundle, "s3://bucket/set", counts=COUNTS)
        assert str(caught.value) == f"s3://bucket/set {how}"
    with pytest.raises(BundleError) as refused:
        fetch_bundle("s3://bucket/b.dim")
    assert str(refused.value) == f"s3://bucket/b.dim/manifest.json {how}"
    line = one_line(dim("generate", "--ipc", 1, "--out", "s3://bucket/set", "--bundle", tiny_bundle))
    assert line == f"s3://bucket/set {how}".replace("  ", " ")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def set_temporary(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))


@pytest.mark.parametrize(
    ("format", "sizes", "needed"),
    [
        ("npz", {}, "at least 216 kB"),
        ("npy", {"shard_images": 2000}, "at least 144 kB"),
        ("webdataset", {}, "at least 6.1 MB"),
        ("parquet", {}, "about "),
    ],
)
def test_a_part_larger_than_the_temporary_folder_is_refused_before_it_starts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, sizes: Any, needed: str
) -> None:
    free = 300_000 if format == "parquet" else 100_000
    set_temporary(monkeypatch, free)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for call in (generate, estimate_set):
        with pytest.raises(OutputError) as caught:
            call(bundle, "memory://tight/set", counts=(3000, 0, 0), format=format, **sizes)
        assert str(caught.value).startswith(f"A file of the set needs {needed}")
        assert str(caught.value).endswith(
            f" and is made in {tmp_path / 'tmp'} before it goes to memory://tight/set; {free // 1000} kB are free "
            "there: set TMPDIR to a folder on a larger disk, or cut the set into smaller files by --shard-size."
        )
    assert not memory.store and not list((tmp_path / "tmp").iterdir())
    assert generate(bundle, "memory://tight/set", counts=(3000, 0, 0), format=format, shard_images=30).complete
    # Images of an ImageFolder go there one by one, from memory; a folder of this machine needs no other.
    set_temporary(monkeypatch, 10)
    assert generate(bundle, "memory://tight/folder", counts=(30, 0, 0)).complete
    assert generate(bundle, tmp_path / "set", counts=(30, 0, 0), format=format).complete


def test_a_full_temporary_folder_is_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Any:
        def write(descriptor: int, data: bytes) -> None:
            raise OSError(number, "some reason")

        return write

    whole = writers_part.write_all
    monkeypatch.setattr(writers_part, "write_all", fail(errno.ENOSPC))
    with pytest.raises(OutputError) as caught:
        generate(bundle, "memory://full/set", counts=COUNTS, format="npz")
    assert str(caught.value) == (
        f"The disk under {tmp_path / 'tmp'}, where files are made before they go to memory://full/set, is full: "
        "free some space or set TMPDIR to a folder on a larger disk, and run the same command again, what is finished "
        "is kept."
    )
    monkeypatch.setattr(writers_part, "write_all", fail(errno.EIO))
    with pytest.raises(OutputError, match=r"The temporary folder .*tmp/dim-\w+, where files .* went away or stopped"):
        generate(bundle, "memory://full/set", counts=COUNTS, format="npz")
    monkeypatch.setattr(writers_part, "write_all", whole)
    assert generate(bundle, "memory://full/set", counts=COUNTS, format="npz").complete
    assert not list((tmp_path / "tmp").iterdir())


def test_a_temporary_folder_that_goes_away(bundle: Bundle, tmp_path: Path) -> None:
    def remove(what: str, done: float, total: float | None, note: str) -> None:
        if done == 8:
            for folder in (tmp_path / "tmp").iterdir():
                shutil.rmtree(folder)

    wish: dict[str, Any] = {"counts": COUNTS, "format": "webdataset", "shard_images": 8, "encoders": 1}
    with pytest.raises(OutputError, match=r"The temporary folder .*tmp/dim-\w+, where files .* went away or stopped"):
        generate(bundle, "memory://away/set", progress=remove, **wish)
    assert generate(bundle, "memory://away/set", **wish).complete


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError) as caught:
        RemoteStore("memory://a/b")
    assert str(caught.value) == (
        "Files for memory://a/b are made in a temporary folder first, and none can be had (No such file or directory): "
        "set TMPDIR to a folder that can be written."
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "s3://user:s3cret@bucket/x",
            "s3://***@bucket/x holds a user name or password, which s3:// does not take: set A",
        ),
        ("simplecache::memory://a/b", "simplecache::memory://a/b is a chain of file systems, which no set is written"),
        ("reference::s3://a/b", "reference::s3://a/b is a chain of file systems"),
        ("s3://[bad/x", "s3://[bad/x is not a place to write to: Invalid IPv6 URL."),
        ("S3:///", "s3:// names no folder; add a bucket and a name"),
        ("nosuch://x/y", "nosuch://x/y is not a place to write to: Protocol not known: nosuch."),
        ("abfs://c@account/x?sig=s3cret", "abfs://***@account/x?*** needs a package that is not installed: install"),
        ("file://", "file:// names no folder: write for example"),
    ],
)
def test_odd_urls_are_refused_in_a_sentence(tiny_bundle: Path, url: str, said: str) -> None:
    ran = dim("generate", "--ipc", 1, "--bundle", tiny_bundle, "--engine", "fake", "--out", url)
    assert ran.code == 1 and ran.err.splitlines()[-1].startswith(f"Error: {said}")
    assert "s3cret" not in ran.err + ran.out
