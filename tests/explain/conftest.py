"""One small model for all tests that only read it."""

from __future__ import annotations

import pytest

from service.explain.model import Model
from tests.explain.small_service import small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the card `tiny`, as it comes; its workers are not running."""
    with pytest.MonkeyPatch.context() as patch:
        return small_model(tmp_path_factory.mktemp("models"), patch)
