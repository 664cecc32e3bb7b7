"""What platforms append to the container's entry point becomes a command line of ours; a person's own is left as it is."""

from __future__ import annotations

import pytest

from service.cli.platform_arguments import adapt_arguments


@pytest.mark.parametrize(
    ("arguments", "adapted", "ignored"),
    [
        (["serve"], ["serve"], []),  # SageMaker
        (["serve", "--port", "9000", "--models", "my_model"], ["serve", "--port", "9000", "--models", "my_model"], []),
        (
            ["--model_name", "cats", "--predictor_host", "cats.default", "--http_port", "8080"],  # KServe's explainer
            ["serve", "--model-name", "cats", "--port", "8080"],
            ["--predictor_host"],
        ),
        (["--http_port=8080", "--enable_docs_url=true"], ["serve", "--port", "8080"], ["--enable_docs_url"]),
        (["--workers_count", "--port", "1"], ["serve", "--port", "1"], ["--workers_count"]),
        (["serve", "--predictor_host", "h"], ["serve"], ["--predictor_host"]),
        (["--help"], ["--help"], []),
        (["explain", "my_photo.jpg", "--out", "my_folder"], ["explain", "my_photo.jpg", "--out", "my_folder"], []),
        ([], [], []),
    ],
)
def test_arguments(arguments: list[str], adapted: list[str], ignored: list[str]) -> None:
    assert adapt_arguments(arguments) == (adapted, ignored)
