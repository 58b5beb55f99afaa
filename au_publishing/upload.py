"""The upload to the Hugging Face Hub, with one sentence for every refusal.

Nothing in this project talks to the Hub to publish except `check_target` and `upload`.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled


def check_target(repo_id: str, token: str | None = None) -> str:
    """Check, before anything is trained or sent, that a new model can be published.

    Args:
        repo_id: "USER/NAME", or "NAME" for the user's own repository.
        token: default: HF_TOKEN, or the token of `hf auth login`.

    Returns:
        "USER/NAME".

    Raises:
        ValueError: no token, a token that the Hub refuses, a repository that exists, or a Hub that does not answer.
    """
    api = HfApi(token=_checked_token(token))
    try:
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        if api.repo_exists(repo_id):
            raise ValueError(_exists(repo_id))
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(_refusal(repo_id, error)) from None
    return repo_id


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    token: str | None = None,
    private: bool = True,
    update: bool = False,
    **repository,
) -> str:
    """Create a repository and add `files` to it in one commit: all of them, or none.

    Args:
        update: whether the repository may exist. Weights in it that are not among `files` are then deleted: old shards
            would be loaded together with the new ones.
        repository: further arguments of `HfApi.create_repo`: `repo_type`, `space_sdk`.

    Returns:
        its address.

    Raises:
        ValueError: as in `check_target`.
    """
    api = HfApi(token=_checked_token(token))
    repo_type = repository.get("repo_type")
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=update, **repository)
        present = api.list_repo_files(url.repo_id, repo_type=repo_type) if update else []
        stale = [name for name in present if fnmatch(name, "model*.safetensors*") and name not in files]
        operations = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        api.create_commit(url.repo_id, operations, commit_message=message, repo_type=repo_type)
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(_refusal(repo_id, error)) from None
    return str(url)


def _checked_token(token: str | None) -> str:
    token = token or get_token()
    if token is None:
        raise ValueError("No Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token with write access.")
    return token


def _exists(repo_id: str) -> str:
    return f"{repo_id} exists: choose another name, or add a commit to it with tools/release.py --update."


def _refusal(repo_id: str, error: Exception) -> str:
    """One sentence for an error of the Hub. It quotes nothing of the request, which carries the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    reasons = {
        401: "The Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN to a valid one.",
        403: f"The token may not write to {repo_id}: use one with write access, and a name of your own.",
        409: _exists(repo_id),
    }
    if status is None:
        return f"The Hub cannot be reached ({type(error).__name__}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
    return reasons.get(status, f"The Hub answered with status {status} for {repo_id}; nothing was published.")
