"""Command-line options made of a model's fields: every kind of field, what is left out, what is refused."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel, Field, model_validator
from typer.testing import CliRunner, Result

from service.cli.fields import with_fields


class Cake(BaseModel):
    """One field of each kind that the service's own models have."""

    kind: Literal["plum", "apple"] = Field("plum", description="Which [fruit].")
    layers: int = Field(2, ge=1, description="How many.")
    weight: float | None = Field(None, gt=0)
    sliced: bool = False
    guests: tuple[str, ...] = ("Ada", "Bo")
    height: Literal["low", "high"] | Annotated[int, Field(ge=1)] = "low"
    secret: str = "cinnamon"

    @model_validator(mode="after")
    def _stands(self) -> Cake:
        if self.layers > 9 and self.kind == "plum":
            raise ValueError("plums do not carry ten layers")
        return self


def run(*arguments: str) -> tuple[Result, list[tuple[str, Cake]]]:
    made: list[tuple[str, Cake]] = []
    app = typer.Typer()

    @app.command()
    @with_fields("cake", Cake, "kind", "layers", "weight", "sliced", "guests", "height")
    def bake(baker: str, cake: Cake) -> None:
        """Bakes a cake."""
        made.append((baker, cake))

    environment = {"COLUMNS": "160", "TERMINAL_WIDTH": "160", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, list(arguments)), made


def test_what_is_not_given_is_left_to_the_model() -> None:
    result, made = run("Cy")
    assert result.exit_code == 0
    assert made == [("Cy", Cake())]
    assert made[0][1].model_fields_set == set()


def test_every_kind_of_field() -> None:
    options = [
        "--kind",
        "apple",
        "--layers",
        "3",
        "--weight",
        "1.5",
        "--sliced",
        "--guests",
        "Di",
        "--guests",
        "Ed",
        "--height",
        "7",
    ]
    _, [(_, cake)] = run("Cy", *options)
    assert cake == Cake(kind="apple", layers=3, weight=1.5, sliced=True, guests=("Di", "Ed"), height=7)
    _, [(_, cake)] = run("Cy", "--height", "high", "--no-sliced")
    assert cake == Cake(height="high", sliced=False)
    assert cake.model_fields_set == {"height", "sliced"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "0"), "--layers: Input should be greater than or equal to 1"),
        (("--layers", "0", "--weight", "-1"), "; --weight: Input"),
        (("--height", "middling"), "--height: "),
        (("--layers", "10"), "--options: Value error, plums do not carry ten layers"),
        (("--kind", "pear"), "pear"),
        (("--secret", "salt"), "--secret"),
    ],
)
def test_what_the_model_refuses_ends_the_command(arguments: tuple[str, ...], words: str) -> None:
    result, made = run("Cy", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not made


def test_help_is_the_models_own_words() -> None:
    result, _ = run("--help")
    for words in ("Bakes a cake.", "Which [fruit].", "How many.", "[default: (plum)]", "Cake", "Ada, Bo"):
        assert words in result.stdout
    assert "secret" not in result.stdout
    assert "cinnamon" not in result.stdout
