"""What nobody may read in a log, a run card or a traceback: passwords, keys and tokens.

They belong into the environment, or into the configuration files of fsspec and of the store: a URL with a password is
refused, since every path in a ledger would repeat it. What an error message of a store repeats is taken out.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters; shorter values of secret variables would take other words along
SECRET = re.compile(r"secret|passw|token|credential|signature|_key$|^key$|sas_|_sas", re.IGNORECASE)
_USERINFO = re.compile(r"(\w://)[^/@\s'\"]*@")
_PASSWORD = re.compile(r"\w://[^/@\s]*:[^/@\s]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:sig|token|secret|password|credential|key)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def without_credentials(value: Any) -> Any:
    """`value` without user names, passwords and keys in the URLs of its texts, and without the environment's secrets.
    """
    if isinstance(value, dict):
        return {key: without_credentials(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_credentials(item) for item in value)
    if not isinstance(value, str):
        return value
    value = _QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(r"\1", value))
    for secret in secrets():
        value = value.replace(secret, HIDDEN)
    return value


def secrets() -> list[str]:
    """Values of the environment's variables whose names say that they are secret, and those within fsspec's, as
    FSSPEC_S3 = {"secret": ...}; the longest first."""
    found = set()
    for name, text in os.environ.items():
        if SECRET.search(name):
            found.add(text)
        elif name.startswith("FSSPEC_"):
            try:
                found |= set(_secret_items(json.loads(text)))
            except ValueError:
                continue
    return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def _secret_items(value: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _secret_items(item, secret or bool(SECRET.search(str(name))))
    elif secret and isinstance(value, str):
        yield value


def refuse_passwords(options: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError for the first of (option, URL or path) with a password in it."""
    for option, path in options:
        if _PASSWORD.search(path):
            raise ValueError(f"{option} {without_credentials(path)}: holds a password, which every path in the results "
                             "would repeat; give it by FSSPEC_* or the store's own variables or files")


class Formatter(logging.Formatter):
    """Of log lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))
