"""The parameters behind the question mark of a KEK's URI: ``?region=eu-central-1&timeout=5``."""

from __future__ import annotations

import math
from typing import Final
from urllib.parse import parse_qsl

from ...errors import ConfigurationError

#: Default time limit of a call in seconds, retries included.
DEFAULT_TIMEOUT: Final = 10.0
_LONGEST_TIMEOUT: Final = 300.0


def split_parameters(rest: str, scheme: str, *allowed: str) -> tuple[str, dict[str, str]]:
    """Split a URI at its question mark; return the first part and the parameters.

    Raises:
        ConfigurationError: An unknown parameter, one without a value, or one twice. The message does not show it: it
            may be a secret in the wrong place.
    """
    path, mark, query = rest.partition("?")
    if not mark:
        return path, {}
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True)
    except ValueError:
        pairs = []
    parameters = dict(pairs)
    is_known = set(parameters) <= set(allowed) and all(parameters.values())
    if not pairs or len(parameters) != len(pairs) or not is_known:
        raise ConfigurationError(
            f"behind its ? a URI of {scheme}: has name=value of {', '.join(allowed)}, each once at most, joined by &"
        )
    return path, parameters


def seconds_of(parameters: dict[str, str]) -> float:
    """Return the ``timeout`` in seconds, a number above 0 and at most 300."""
    try:
        seconds = float(parameters.get("timeout", DEFAULT_TIMEOUT))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise ConfigurationError(f"timeout= is a number of seconds, above 0 and at most {_LONGEST_TIMEOUT:g}")
    return seconds
