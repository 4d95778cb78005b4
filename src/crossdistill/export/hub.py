"""Upload an exported folder to the Hugging Face Hub."""

from pathlib import Path

from crossdistill.errors import UserError, first_line


def check_name(name: str) -> None:
    """Raise UserError for a name that a repository cannot have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name!r}: {first_line(error)}") from error
    if "/" not in name:
        raise UserError(f"--push-to-hub {name!r}: write OWNER/NAME, with your name at the hub, or an organisation's")


def uploads(folder: Path) -> list[tuple[str, int]]:
    """Return the files that are uploaded, with their sizes in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def push(folder: Path, name: str, *, public: bool) -> str:
    """Upload a folder, and return its address. Raises UserError where the hub cannot be reached, or refuses.

    The token is that of huggingface_hub (`hf auth login`, or HF_TOKEN).
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, allow_patterns=[path for path, _ in uploads(folder)]
        )
    except Exception as error:  # errors of the network, of the token, and of the hub have no common type
        raise UserError(
            f"{str(folder)!r} was written, but could not be uploaded to {name!r} ({first_line(error)}); "
            "`hf auth login` stores a token"
        ) from error
    return str(made)
