"""Values as TOML text: the way back from `tomllib`, for tasks and studies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(values: Mapping[str, Any], prefix: str = "") -> str:
    """Plain keys first, then sections. Lists may hold numbers, strings and lists; None is left out, since TOML has none."""
    there = {key: value for key, value in values.items() if value is not None}
    plain = [f"{_key(key)} = {_value(value)}" for key, value in there.items() if not isinstance(value, Mapping)]
    sections = [
        f"\n[{prefix}{_key(key)}]\n{toml_text(value, f'{prefix}{_key(key)}.')}"
        for key, value in there.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join([*plain, *sections])


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as TOML")


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for the one character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
