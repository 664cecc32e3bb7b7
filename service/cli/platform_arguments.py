"""The arguments that platforms append to a container's: SageMaker says `serve`, KServe `--model_name cats --http_port 8080`.

KServe replaces the image's arguments, so that the command's name is missing too. KServe writes its options with underscores,
this service with hyphens, which tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

PLATFORM_OPTION: Final = re.compile(r"^(--[a-z]+(?:_[a-z]+)+)(?:=(.*))?$")
OWN_OPTIONS: Final = {"--model_name": "--model-name", "--http_port": "--port"}  # those that mean something here


def adapt_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the command line, with a platform's translated or left out.

    Returns:
        The arguments for the command line, and the names of the platform's options that were left out.
    """
    adapted, ignored = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = PLATFORM_OPTION.match(argument)
        if match is None:
            adapted.append(argument)
            continue
        name, value = match.groups()
        if value is None and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        if name in OWN_OPTIONS and value is not None:
            adapted += [OWN_OPTIONS[name], value]
        else:
            ignored.append(name)
    if adapted != list(arguments) and (not adapted or adapted[0].startswith("-")):
        adapted.insert(0, "serve")
    return adapted, ignored
