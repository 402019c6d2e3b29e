"""An S3 server on loopback, a process of its own, for tests of runs on an object store."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster import said_in

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true"}


@contextlib.contextmanager
def server():
    """The environment in which fsspec, delta-rs and boto find the server; it is this process's until the end."""
    import fsspec

    with contextlib.ExitStack() as ending:
        log = Path(ending.enter_context(tempfile.TemporaryDirectory())) / "s3.log"
        with open(log, "wb") as said:
            process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
                                       stdout=said, stderr=said)
        ending.callback(process.wait)
        ending.callback(process.kill)
        url = said_in(log, r"Running on (http://\S+)", process)
        names = KEYS | {"AWS_ENDPOINT_URL": url, "FSSPEC_S3_ENDPOINT_URL": url}
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        fsspec.config.set_conf_env(fsspec.config.conf)
        try:
            yield names
        finally:
            fsspec.config.conf.pop("s3", None)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
