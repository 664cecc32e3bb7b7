"""What the commands take: options made of the fields of the service's own models, so that a field is described in one place.

Cyclopts makes an option of each field of a pydantic model and leaves the checking of values to the model. pydantic-settings'
CliApp does so too, but puts all fields of a model into one section of plain help and answers a wrong value with a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from cyclopts import CycloptsError, Group, Parameter
from cyclopts import ValidationError as ArgumentValidationError
from pydantic import BaseModel, Field, ValidationError, create_model
from rich.text import Text

from service.engine.types import MethodParameters
from service.explain.options import ExplainOptions
from service.settings import Settings, variable_of

ModelT = TypeVar("ModelT", bound=BaseModel)

# Help shows the groups in this order; the first is of options that are a command's own.
COMMAND = Group.create_ordered("Options")
MODEL = Group.create_ordered("Model and method")
CLASSES = Group.create_ordered("Classes")
OVERLAY = Group.create_ordered("Overlay")
MAP = Group.create_ordered("Map")
METHOD = Group.create_ordered("Parameters of single methods")
SETTINGS = Group.create_ordered("Settings")

FIELDS_AS_OPTIONS = Parameter(name="*")  # --port, not --settings.port


def expose_fields(groups: Mapping[Group, Iterable[str]]) -> Callable[[type[ModelT]], type[ModelT]]:
    """Decorates a model class: the fields named are options of a command, and help shows them in their groups.

    The model's other fields are no options: they keep their defaults or, in settings, the values of the environment.

    Args:
        groups: names of fields by group; within a group help follows the order of the model.

    Raises:
        ValueError: the model has no such field.
    """
    group_of = {name: group for group, names in groups.items() for name in names}

    def decorate(model: type[ModelT]) -> type[ModelT]:
        if unknown := group_of.keys() - model.model_fields.keys():
            raise ValueError(f"{model.__name__} has no field {', '.join(sorted(unknown))}")
        definitions: dict[str, Any] = {}
        for name, field in model.model_fields.items():
            parts = field.asdict()
            annotation, metadata = parts["annotation"], parts["metadata"]
            parameter = Parameter(parse=False)
            if name in group_of:
                parameter = Parameter(
                    group=group_of[name], show_default=_default_in_help(field.get_default(call_default_factory=True))
                )
            definitions[name] = Annotated[(annotation, *metadata, parameter, Field(**parts["attributes"]))]
        return create_model(model.__name__, __base__=model, __doc__=model.__doc__, __module__=model.__module__, **definitions)

    return decorate


def _default_in_help(default: object) -> str | bool:
    """Lists are shown as they are typed. An empty list and None say nothing: the description tells what happens then."""
    if default is None or default == ():
        return False
    return ", ".join(map(str, default)) if isinstance(default, tuple) else True


# Building of the validators is deferred: help needs none, and a command only those of its own models.


@expose_fields(
    {
        MODEL: ("model", "method", "layer"),
        CLASSES: ("class_id", "class_name", "versus", "top_k"),
        OVERLAY: ("overlay_type", "color_map", "alpha", "size"),
        MAP: ("polarity", "scale", "fit", "interpolation", "clip_percent_lowerbound", "clip_percent_upperbound"),
        METHOD: tuple(MethodParameters.model_fields),
    }
)
class ExplainCommandOptions(ExplainOptions, defer_build=True):
    """Options of `camserve explain`: all but those of answers over HTTP."""


@expose_fields(
    {
        MODEL: ("model", "layer"),
        CLASSES: ("class_id", "class_name", "versus", "top_k"),
        MAP: ("polarity", "scale", "fit", "interpolation", "clip_percent_lowerbound", "clip_percent_upperbound"),
    }
)
class EvaluateCommandOptions(ExplainOptions, defer_build=True):
    """Options of `camserve evaluate`: all that change a map, but for the methods, which are the command's own to compare."""


@expose_fields({SETTINGS: tuple(Settings.model_fields)})
class ServeSettings(Settings, defer_build=True):
    """Settings of `camserve serve`: all."""


@expose_fields(
    {SETTINGS: ("models_dir", "device", "random_weights", "cache_dir", "max_batch_size", "max_image_pixels", "threads")}
)
class ExplainSettings(Settings, defer_build=True):
    """Settings of `camserve explain`."""


@expose_fields({SETTINGS: ("models_dir", "device", "random_weights", "cache_dir", "max_image_pixels", "threads")})
class EvaluateSettings(Settings, defer_build=True):
    """Settings of `camserve evaluate`."""


@expose_fields(
    {SETTINGS: ("models_dir", "device", "precision", "engine", "random_weights", "cache_dir", "max_batch_size", "threads")}
)
class BenchSettings(Settings, defer_build=True):
    """Settings of `camserve bench`."""


@expose_fields({SETTINGS: ("models_dir", "random_weights", "threads")})
class CardSettings(Settings, defer_build=True):
    """Settings of `camserve card`."""


@expose_fields({SETTINGS: ("models_dir",)})
class ModelsSettings(Settings, defer_build=True):
    """Settings of `camserve models`."""


def describe_refused_fields(error: ValidationError, options: Mapping[str, str]) -> str:
    """What a model refuses, field by field, without the values: they may be secrets.

    Args:
        error: of a model made of a command line and, for settings, of the environment.
        options: field -> option, of the fields given on the command line. Defaults are never refused, so a refused field
            that is not among them has its value from the environment, and the message names its variable.
    """
    messages = []
    for fault in error.errors(include_url=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ")
        if fault["loc"]:
            field = str(fault["loc"][0])
            message = f"{options.get(field) or variable_of(field)}: {message}"
        messages.append(message)
    return "; ".join(messages)


def format_message(message: str | Text) -> Text:
    """The message as the command line says it on standard error: after the program's name."""
    return Text.assemble(("camserve: ", "bold red"), message)


def format_error(error: CycloptsError) -> Text:
    """What is wrong with a command line: the option, then what it may be."""
    argument, cause = error.argument, error.__cause__
    if argument is not None and isinstance(cause, ValidationError):
        options = {child.keys[-1]: child.name for child in argument.children if child.has_tokens}
        return format_message(describe_refused_fields(cause, options))
    if argument is not None and isinstance(error, ArgumentValidationError):
        return format_message(f"{argument.name}: {error.exception_message}")
    return format_message(error.__rich__())
