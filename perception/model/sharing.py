"""Pushing a model's or an adapter's folder to the hub."""

from __future__ import annotations

import re
from pathlib import Path

from perception.model.adapter import check_adapter, is_adapter
from perception.model.folder import check_files
from perception.model.shipped import find_shipped, shipped_name


def push_to_hub(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Upload a folder that training wrote, with its card, and return its address.

    Args:
        folder: a whole model, or an adapter (`train.finetune --save adapter`).
        repo_id: owner/name. It is made if it does not exist.
        private: True for a new repository that only its owner sees.

    Raises:
        ValueError: for a folder that is not whole, an adapter whose base others cannot load, or a hub that cannot be
            reached or does not take the files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    folder = Path(folder)
    if is_adapter(folder):
        base = check_adapter(folder).base
        if not _others_can_load(base):
            raise ValueError(
                f"{folder} is an adapter for {base}, a folder of this machine that others cannot load; push the base, "
                "and write its hub name, owner/name, as base into perception_adapter.json"
            )
    else:
        check_files(folder)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; write its card: data, figures, limits and licence")
    api = HfApi()
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, ignore_patterns=[".*", "*.partial"], commit_message="Upload"
        )
    except HFValidationError as error:
        raise ValueError(f"{repo_id} is no name on the hub ({_first(error)}); give owner/name") from error
    except Exception as error:  # requests' and httpx's errors are no OSErrors everywhere
        raise ValueError(
            f"{folder} could not be pushed to {repo_id} ({type(error).__name__}: {_first(error)}); log in with "
            "`hf auth login`, check the connection, and push again"
        ) from error
    return str(made)


def _others_can_load(base: str) -> bool:
    """True for the name of what ships, and for owner/name where no folder here is called so."""
    if Path(base).exists():
        return shipped_name(Path(base)) in (base, base.removeprefix("models/"))
    return find_shipped(base) is not None or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) is not None


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
