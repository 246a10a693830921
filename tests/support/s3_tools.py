"""What the tests of sets in object stores share: a real S3 interface on loopback, and what lies in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest


@contextmanager
def s3_server() -> Iterator[Any]:
    """Run moto's server with an empty `bucket`, let the environment lead there, and yield a client to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "*",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    """Read every object below a prefix."""
    listed = client.list_objects_v2(Bucket="bucket", Prefix=prefix + "/").get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix + "/"): client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        for entry in listed
    }
