"""The Hugging Face Hub: whether a push can be expected to succeed, and the push."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitwarm.errors import UserError
from vitwarm.exports.card import of_the_hub
from vitwarm.exports.layout import CARD, CONFIG


@contextmanager
def _pushing(repo_id: str) -> Iterator[None]:
    """The client's own errors, the network's, and those of the libraries between, as one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (of every kind)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        todo = (
            "give USER/NAME" if isinstance(error, HFValidationError) else "is `hf auth login` done and the network up?"
        )
        raise UserError(f"cannot push to {repo_id}: {reason}; {todo}") from error


def check_push(repo_id: str) -> None:
    """Refuse a push that would fail for want of a login, before anything is trained for it.

    Raises:
        UserError: not a name of a repository, nobody logged in, a token that may only read, somebody else's name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with _pushing(repo_id):
        validate_repo_id(repo_id)
        found = HfApi().whoami()
        token = found.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise UserError(f"cannot push to {repo_id}: the token may only read; log in with one that may write")
        own = [found["name"], *(org["name"] for org in found.get("orgs", []))]
        owner, slash, _ = repo_id.partition("/")
        if slash and owner not in own:
            raise UserError(f"cannot push to {repo_id}: you are logged in as {own[0]}; give {own[0]}/NAME, or log in")


def push_to_hub(folder: Path, repo_id: str) -> str:
    """Upload an export folder to the Hugging Face Hub in one commit; returns the address.

    The model card there loads the model from the Hub, that of the folder from the folder.

    Raises:
        UserError: no access, no network or no such folder.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no export folder; give RUN/export")
    with _pushing(repo_id):
        api = HfApi()
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id  # with the owner, where none was given
        files: dict[str, bytes | Path] = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        if CARD in files:
            files[CARD] = of_the_hub((folder / CARD).read_text(encoding="utf-8"), repo_id).encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(api.create_commit(repo_id, operations, commit_message="Upload of vitwarm"))
