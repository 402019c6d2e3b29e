"""An S3 server on loopback, a process of its own, for tests of runs on an object store."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true"}


@contextlib.contextmanager
def server():
    """The environment in which fsspec, delta-rs and boto find the server; it is this process's until the end."""
    import fsspec

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = KEYS | {"AWS_ENDPOINT_URL": url, "FSSPEC_S3_ENDPOINT_URL": url}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    fsspec.config.set_conf_env(fsspec.config.conf)
    try:
        _wait(url, process)
        yield names
    finally:
        process.kill()
        process.wait()
        fsspec.config.conf.pop("s3", None)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait(url, process):
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, "the S3 server did not start"
            time.sleep(0.1)
