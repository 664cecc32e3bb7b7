"""What is wrong with a request's options, as sentences; pydantic's own quote the input."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

PRINTABLE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,40}")
CLOSE = 0.6  # difflib's own idea of a typo
# Pydantic's error types, in our words; its own quote the input.
PHRASES = {
    "literal_error": "must be one of {expected}",
    "less_than_equal": "must be at most {le}",
    "greater_than_equal": "must be at least {ge}",
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing_size": "must be a smaller integer",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "string_too_short": "must be a text that is not empty",
    "string_too_long": "must be a text of at most {max_length} characters",
}


def validation_detail(errors: Sequence[Any], known: Sequence[str] = (), where: str = "") -> str:
    """Pydantic's findings as sentences, such as `alpha: must be at most 1`, without a word of what was given.

    Args:
        errors: pydantic's error dictionaries.
        known: the options there are, to suggest one for an unknown name.
        where: put before each option's name.
    """
    wrong: dict[str, list[str]] = {}
    for error in errors:
        name = str(error["loc"][0]) if error["loc"] else ""
        phrase = _unknown(name, known) if error["type"] == "extra_forbidden" else _phrase(error)
        phrases = wrong.setdefault(name, [])
        if phrase not in phrases:
            phrases.append(phrase)
    return "; ".join(_sentence(name, phrases, where) for name, phrases in wrong.items())


def _sentence(name: str, phrases: list[str], where: str) -> str:
    if not name:
        return " or ".join(phrases)
    label = where + (name if PRINTABLE_NAME.fullmatch(name) else "(a name not shown)")
    # A value that may be of several kinds failed as each of them.
    joined = " or ".join([phrases[0], *(phrase.removeprefix("must be ") for phrase in phrases[1:])])
    return f"{label}: {joined}"


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower()[:40], known, n=1, cutoff=CLOSE)
    if near:
        return f"unknown option; did you mean {near[0]}?"
    return f"unknown option; there are {', '.join(known)}" if known else "unknown option"


def _phrase(error: Mapping[str, Any]) -> str:
    context: Mapping[str, Any] = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])  # our own validators' words
    phrase = PHRASES.get(error["type"], "must be of another kind; GET /docs describes it")
    return phrase.format_map({name: _plain(value) for name, value in context.items()})


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("'", "").replace(" or ", ", ")  # pydantic's list of literals
