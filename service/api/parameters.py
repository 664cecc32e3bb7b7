"""Options as they arrive, from the query string, form fields or JSON, to checked ones; what is wrong becomes a sentence.

One rule for every form: an option given in the body replaces the same option of the query string, an empty one counts as not
given, and only `class_id`, `class_name` and `layer` may be given more than once. Knows nothing of bodies and images.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import ParameterInvalid
from service.explain.options import ExplainOptions, InspectOptions, Targets

_FIELDS = ExplainOptions.model_fields | InspectOptions.model_fields
REPEATABLE = frozenset({"class_id", "class_name", "layer"})
BOOLEAN = frozenset(name for name, field in _FIELDS.items() if field.annotation in {bool, bool | None})
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

Raw = dict[str, Any]
OptionsT = TypeVar("OptionsT", bound=BaseModel)


def from_pairs(pairs: Iterable[tuple[str, str]]) -> Raw:
    """Options of a query string or of form fields; a repeated one becomes a list.

    Raises:
        ParameterInvalid: an option that cannot be repeated is.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if value:
            given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name in _FIELDS and name not in REPEATABLE:
            raise ParameterInvalid(f"{name}: give it once")
    return {name: values if name in REPEATABLE else values[0] for name, values in given.items()}


def from_json(document: Mapping[str, Any], where: str = "") -> Raw:
    """Options of a JSON object; null and "" count as not given.

    Raises:
        ParameterInvalid: true or false where a number or a text belongs, which pydantic would take for 1 or 0.
    """
    given = {name: value for name, value in document.items() if value is not None and value != ""}
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        if name in _FIELDS and name not in BOOLEAN and any(isinstance(item, bool) for item in values):
            raise ParameterInvalid(f"{where}{name}: must not be true or false")
    return given


def parse_options(model: type[OptionsT], query: Raw, body: Raw) -> OptionsT:
    """Options of the query string and of the body, the body's winning.

    Args:
        model: the options that the route accepts.
        query: of the query string.
        body: of the body.

    Raises:
        ParameterInvalid: names every option that is unknown or wrong, and what it may be.
    """
    return _parse(model, query | body)


def parse_targets(document: Mapping[str, Any], where: str, shared: Targets) -> Targets:
    """An image's own classes over those of the request.

    An image that names classes, by id or by name, is explained for these alone; `versus` and `top_k` replace one for one.

    Args:
        document: the image's JSON object without its bytes.
        where: how to call it in a message, such as `images[0].`.
        shared: the request's targets, its options as a whole.

    Raises:
        ParameterInvalid: as for options.
    """
    own = _parse(Targets, from_json(document, where), where)
    given = own.model_dump(include=own.model_fields_set)
    if not given:
        return shared
    replaced = {"class_id", "class_name"} if given.keys() & {"class_id", "class_name"} else set()
    return Targets.model_validate(shared.model_dump(include=Targets.model_fields.keys() - replaced) | given)


def _parse(model: type[OptionsT], raw: Mapping[str, Any], where: str = "") -> OptionsT:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise ParameterInvalid(validation_detail(errors, tuple(model.model_fields), where)) from None


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
