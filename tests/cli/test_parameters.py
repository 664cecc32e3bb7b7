"""Command-line options made of a model's fields: every kind of field, what is left out, what is refused."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.cli.parameters import FIELDS_AS_OPTIONS, expose_fields, format_error
from tests.commands import CommandResult, invoke

SHAPE = Group.create_ordered("Shape")
TASTE = Group.create_ordered("Taste")


class Cake(BaseModel):
    """One field of each kind that the service's own models have."""

    kind: Literal["plum", "apple"] = Field("plum", description="Which [fruit].")
    layers: int = Field(2, ge=1, description="How many.")
    weight: float | None = Field(None, gt=0)
    sliced: bool = False
    glazed: bool | None = None
    guests: tuple[str, ...] = ("Ada", "Bo")
    height: Literal["low", "high"] | Annotated[int, Field(ge=1)] = "low"
    secret: str = "cinnamon"

    @model_validator(mode="after")
    def _stands(self) -> Cake:
        if self.layers > 9 and self.kind == "plum":
            raise ValueError("plums do not carry ten layers")
        return self


@expose_fields({SHAPE: ("layers", "weight", "height", "sliced"), TASTE: ("kind", "glazed", "guests")})
class OrderedCake(Cake):
    """A cake without its secret."""


@expose_fields({SHAPE: ("size", "keys")})
class Oven(BaseSettings):
    """Settings, two of which are options."""

    model_config = SettingsConfigDict(env_prefix="CAMSERVE_", frozen=True)

    size: int = 1
    heat: int = Field(200, le=300)
    keys: tuple[SecretStr, ...] = ()


def run(*arguments: str) -> tuple[CommandResult, list[tuple[str, OrderedCake | None]]]:
    made: list[tuple[str, OrderedCake | None]] = []
    app = App(error_formatter=format_error, default_parameter=Parameter(negative_iterable=()))

    @app.default
    def bake(baker: str, /, *, cake: Annotated[OrderedCake | None, FIELDS_AS_OPTIONS] = None) -> None:
        """Bakes a cake."""
        made.append((baker, cake))

    return invoke(app, *arguments, columns=160), made


def bake(*arguments: str) -> OrderedCake:
    _, [(_, cake)] = run("Cy", *arguments)
    assert cake is not None
    return cake


def heat(*arguments: str) -> tuple[CommandResult, list[Oven | None]]:
    made: list[Oven | None] = []
    app = App(error_formatter=format_error)

    @app.default
    def heat_oven(*, oven: Annotated[Oven | None, FIELDS_AS_OPTIONS] = None) -> None:
        made.append(oven)

    return invoke(app, *arguments), made


def test_what_is_not_given_is_left_to_the_model() -> None:
    result, made = run("Cy")
    assert result.exit_code == 0
    assert made == [("Cy", None)]
    assert bake("--layers", "2").model_fields_set == {"layers"}


def test_a_cake_of_the_command_line_is_a_cake() -> None:
    cake = bake("--layers", "3")
    assert isinstance(cake, OrderedCake)
    assert isinstance(cake, Cake)
    assert cake.model_dump() == Cake(layers=3).model_dump()
    assert OrderedCake.__doc__ == "A cake without its secret."
    assert OrderedCake.__module__ == __name__


def test_every_kind_of_field() -> None:
    cake = bake(
        "--kind", "apple", "--layers", "3", "--weight", "1.5", "--sliced", "--glazed", "--guests", "Di", "--guests", "Ed",
        "--height", "7",
    )  # fmt: skip
    assert cake == OrderedCake(kind="apple", layers=3, weight=1.5, sliced=True, glazed=True, guests=("Di", "Ed"), height=7)
    cake = bake("--height", "high", "--no-sliced", "--no-glazed")
    assert cake == OrderedCake(height="high", sliced=False, glazed=False)
    assert cake.model_fields_set == {"height", "sliced", "glazed"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "0"), "--layers: Input should be greater than or equal to 1"),
        (("--layers", "0", "--weight", "-1"), "; --weight: Input"),
        (("--height", "middling"), "--height: Input should be 'low' or 'high'; --height: Input should be a valid integer"),
        (("--layers", "10"), "camserve: plums do not carry ten layers\n"),
        (("--kind", "pear"), "--kind: Input should be 'plum' or 'apple'"),
        (("--secret", "salt"), "Unknown option: --secret"),
        (("--layers",), "--layers requires an argument"),
    ],
)
def test_what_the_model_refuses_ends_the_command(arguments: tuple[str, ...], words: str) -> None:
    result, made = run("Cy", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert not made


def test_help_is_the_models_own_words() -> None:
    result, _ = run("--help")
    for words in (
        "Bakes a cake.", "Which [fruit].", "How many.", "[default: plum]", "Ada, Bo", "[choices: plum, apple]", "--no-sliced",
    ):  # fmt: skip
        assert words in result.stdout
    for words in ("secret", "cinnamon", "None", "--empty-guests"):
        assert words not in result.stdout


def test_help_has_the_groups_in_order() -> None:
    result, _ = run("--help")
    shape, taste = result.stdout.index("─ Shape ─"), result.stdout.index("─ Taste ─")
    assert shape < result.stdout.index("--layers") < taste < result.stdout.index("--kind")


def test_the_command_line_is_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_SIZE", "2")
    monkeypatch.setenv("CAMSERVE_HEAT", "150")
    _, [oven] = heat("--size", "3", "--keys", "cinnamon")
    assert oven == Oven(size=3, heat=150, keys=(SecretStr("cinnamon"),))
    _, [oven] = heat("--keys", "cinnamon")
    assert oven == Oven(size=2, heat=150, keys=(SecretStr("cinnamon"),))


def test_a_field_that_is_no_option_is_told_as_the_variable_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_HEAT", "900")
    result, made = heat("--size", "x")
    assert result.exit_code == 2
    assert "--size: Input should be a valid integer" in result.stderr
    assert "CAMSERVE_HEAT: Input should be less than or equal to 300" in result.stderr
    assert "900" not in result.stderr
    assert not made
    assert "Unknown option: --heat" in heat("--heat", "100")[0].stderr


def test_fields_that_the_model_lacks_are_no_options() -> None:
    with pytest.raises(ValueError, match="OrderedCake has no field candles, icing"):
        expose_fields({SHAPE: ("layers", "icing"), TASTE: ("candles",)})(OrderedCake)
