"""What every page shares: templates that escape, JSON for scripts, and hashes for the content security policy."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

POLICY = ("default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; base-uri 'none'; "
          "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'")


def template(name: str) -> str:
    """The text of a file in lensspark/templates."""
    return resources.files("lensspark").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def render(name: str, script: str, style: str, **values: Any) -> str:
    """The template `name` with `values`, every text escaped, and its one script and style with their hashes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    policy = POLICY.format(script=policy_hash(script), style=policy_hash(style))
    shared = {"script": safe(script), "style": safe(style), "policy": safe(policy)}
    return environment.from_string(template(name)).render(**shared, **values)


def to_json(value: Any) -> Any:
    """JSON that is harmless inside a script element, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return safe(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def safe(text: str) -> Any:
    """`text` as it is, for a template."""
    from markupsafe import Markup

    return Markup(text)


def policy_hash(text: str) -> str:
    """The sha256 that a content security policy names a script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
