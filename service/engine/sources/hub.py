"""The Hugging Face hub, or the cache that its library keeps: which commit a branch or tag means now."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from service.engine.cards.card import COMMIT, Card
from service.errors import ConfigurationError

DEFAULT_REVISION: Final = "main"
TIMEOUT_S: Final = 10.0

log = structlog.get_logger(__name__)


def resolve_commit(card: Card, repository: str, revision: str | None) -> str:
    """The commit of a repository that a revision means: a branch or tag is asked of the hub, or else of the cache.

    Args:
        card: for messages.
        repository: OWNER/REPOSITORY.
        revision: commit, branch or tag; None for the default branch.

    Raises:
        ConfigurationError: there is no such repository or revision, or neither the hub nor the cache can tell.
    """
    if revision is not None and COMMIT.match(revision):
        return revision
    name = revision or DEFAULT_REVISION
    try:
        commit = HfApi().model_info(repository, revision=name, timeout=TIMEOUT_S).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        gated = isinstance(error, GatedRepoError)
        raise ConfigurationError(
            f"card {card.name}: weights: the hub has no repository {repository} at {name} that it shows to you; check the "
            f"name, or {'ask for access to it and ' if gated else ''}set HF_TOKEN"
        ) from error
    except Exception as error:  # offline mode, or no connection: an exception of the hub's HTTP library, whichever it uses
        commit = _cached_commit(repository, name)
        if commit is None:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
            raise ConfigurationError(
                f"card {card.name}: weights: {why}, and the cache ({constants.HF_HUB_CACHE}) has no {repository} at {name}; "
                "connect once to fill the cache, mount one and name it in HF_HOME, or give the path of a folder"
            ) from error
    assert commit is not None
    log.info("revision", model=card.name, repository=repository, revision=name, commit=commit)
    return commit


def _cached_commit(repository: str, revision: str) -> str | None:
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    path = folder / "refs" / revision
    return path.read_text(encoding="ascii").strip() if path.is_file() else None
