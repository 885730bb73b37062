"""The Hub, with a stand-in for its client: what a push uploads, and what is refused before anything is trained."""

import os

import pytest
import timm

import vitwarm
from vitwarm.errors import UserError
from vitwarm.exports import check_push, export, push_to_hub
from vitwarm.recipe import load_recipe
from vitwarm.run import run

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}


class FakeApi:
    """Records what would be uploaded."""

    calls: list = []
    trouble: Exception | None = None
    who: dict = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}

    def whoami(self):
        if self.trouble:
            raise self.trouble
        return self.who

    def create_repo(self, repo_id, exist_ok):
        if self.trouble:
            raise self.trouble
        self.calls.append(("create", repo_id, exist_ok))
        return type("RepoUrl", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def create_commit(self, repo_id, operations, *, commit_message):
        files = {}
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()
        self.calls.append(("commit", repo_id, files))
        return f"https://huggingface.co/{repo_id}/commit/0"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(timm.create_model("vit_tiny_patch16_224", **SMALL), tmp_path_factory.mktemp("hub") / "export")


def test_push_uploads_the_whole_folder_in_one_commit(folder, api):
    assert push_to_hub(folder, "vit") == "https://huggingface.co/me/vit/commit/0"
    (create, (_, repo_id, files)) = api.calls
    assert create == ("create", "vit", True) and repo_id == "me/vit"
    assert set(files) == {"README.md", "config.json", "model.safetensors", "vitwarm.json"}
    local = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b'create_model("hf-hub:me/vit", pretrained=True)' in files["README.md"]
    assert b'create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)' in local["README.md"]
    assert {**files, "README.md": b""} == {**local, "README.md": b""}


def test_export_pushes_what_it_wrote(tmp_path, api):
    vitwarm.export(timm.create_model("vit_tiny_patch16_224", **SMALL), tmp_path / "export", push="lab/vit")
    assert [call[:2] for call in api.calls] == [("create", "lab/vit"), ("commit", "lab/vit")]


@pytest.mark.parametrize("trouble", [RuntimeError("401 Unauthorized\nlong\nstory"), ConnectionError()])
def test_push_that_fails_says_why_in_one_line(folder, api, monkeypatch, trouble):
    monkeypatch.setattr(api, "trouble", trouble)
    for call in (lambda: push_to_hub(folder, "me/vit"), lambda: check_push("me/vit")):
        with pytest.raises(UserError, match="cannot push to me/vit: (401 Unauthorized|ConnectionError);") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_push_of_another_folder_is_refused_before_the_hub_is_asked(tmp_path, api):
    with pytest.raises(UserError, match="no export folder"):
        push_to_hub(tmp_path, "me/vit")
    assert api.calls == []


@pytest.mark.parametrize(
    ("repo_id", "role", "reason"),
    [
        ("you/vit", "write", "logged in as me; give me/NAME"),
        ("me/vit", "read", "may only read"),
        ("me/vit/more", "write", "Repo id must .* argument if needed; give USER/NAME$"),
    ],
)
def test_a_push_that_would_fail_is_refused_before_anything_is_written(
    tmp_path, api, monkeypatch, repo_id, role, reason
):
    monkeypatch.setattr(api, "who", api.who | {"auth": {"accessToken": {"role": role}}})
    with pytest.raises(UserError, match=reason):
        vitwarm.export(timm.create_model("vit_tiny_patch16_224", **SMALL), tmp_path / "export", push=repo_id)
    config = load_recipe(["recipe=digits_proc", f"run.dir={tmp_path / 'run'}", f"run.push={repo_id}"])
    with pytest.raises(UserError, match=reason):
        run(config)
    assert os.listdir(tmp_path) == [] and api.calls == []


def test_who_may_push(api):
    for repo_id in ("vit", "me/vit", "lab/vit"):
        check_push(repo_id)
