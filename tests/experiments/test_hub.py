"""``trajgen hub``: a run is pushed and pulled, by a small server on loopback that speaks what the client needs."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import trajgen
from trajgen.cli import main
from trajgen.cli.evaluate import RunOptions, read_run
from trajgen.core.errors import CheckpointError, ConfigError, DataError
from trajgen.experiments import hub

pytest.importorskip("huggingface_hub", reason="of the extra 'hub'")
SHA = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory: names to the contents of their files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            plain = json.loads(body)
            name = "/".join(filter(None, (plain.get("organization"), plain["name"])))
            self.server.repos.setdefault(name, {})
            is_private = plain.get("private") or plain.get("visibility") == "private"  # by the version of the client
            self.server.private |= {name} if is_private else set()
            self.answer({"url": f"{self.server.address}/{name}", "id": name})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repos[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.server.repos[match[1]][line["value"]["path"]]
            self.answer({"commitUrl": f"{self.server.address}/{match[1]}/commit/{SHA}", "commitOid": SHA})
        else:
            self.answer({"valid": True} if "validate-yaml" in self.path else {}, 200 if "yaml" in self.path else 404)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path):
            files = self.server.repos.get(match[1])
            if files is None:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            shown = {"id": match[1], "modelId": match[1], "private": match[1] in self.server.private, "tags": []}
            self.answer({**shown, "sha": SHA, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+(?:/.*)?", path):
            files = self.server.repos[match[1]]
            tree = [{"type": "file", "path": n, "size": len(c), "oid": sha1(c).hexdigest()} for n, c in files.items()]
            self.answer(tree)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            content = self.server.repos[match[1]][match[2]]
            self.server.fetched.append(match[2])
            self.answer(content, ETag=f'"{sha1(content).hexdigest()}"', X_Repo_Commit=SHA)
        else:
            self.answer({}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_is_pushed_with_a_card_and_pulled_as_it_was(run: Path, server: Hub, tmp_path: Path) -> None:
    main(["hub", "push", f"run={run}", "repo=me/maze"])
    files = server.repos["me/maze"]
    assert {name.rpartition(".")[2] for name in files} == {"json", "jsonl", "md", "png", "safetensors"}
    card = files["README.md"].decode()
    head = card.split("---\n")[1]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert "library_name: trajgen" in head and "type: mean_return" in head
    assert f"value: {round(evaluation['return']['mean'], 4)}" in head
    assert 'load_policy("hf://me/maze")' in card and "| return, mean |" in card and "plots/" in card
    assert not any(str(run.parents[1]).encode() in content for name, content in files.items() if name == "config.json")
    main(["hub", "pull", "repo=me/maze", f"out={tmp_path / 'pulled'}"])
    for name in ("evaluation.json", "checkpoints/final.safetensors", "summary.md"):
        assert (tmp_path / "pulled" / name).read_bytes() == (run / name).read_bytes()
    observation = {"observation": np.zeros(4), "achieved_goal": np.zeros(2), "desired_goal": np.ones(2)}
    one, two = (trajgen.load_policy(each, device="cpu") for each in (str(run), "hf://me/maze"))
    for policy in (one, two):
        policy.reset()
    np.testing.assert_array_equal(one.act(observation), two.act(observation))


def test_a_run_replaces_a_run_and_nothing_else(run: Path, server: Hub) -> None:
    server.repos |= {"me/empty": {".gitattributes": b""}, "me/model": {"config.json": b'{"model_type": "bert"}'}}
    server.repos |= {"me/text": {"README.md": b"# mine"}, "me/odd": {"config.json": b"["}}
    for repo in ("me/empty", "me/empty", "me/new"):
        hub.push(run, repo, private=repo == "me/new")
    hub.push(run, "me/new", private=True)
    assert all("summary.md" in server.repos[repo] for repo in ("me/empty", "me/new"))
    before = {repo: dict(server.repos[repo]) for repo in ("me/model", "me/text", "me/odd")}
    for repo in before:
        with pytest.raises(ConfigError, match=f"over a run[\\s\\S]*{repo}"):
            hub.push(run, repo)
    with pytest.raises(ConfigError, match="which is public"):
        hub.push(run, "me/empty", private=True)
    assert before == {repo: server.repos[repo] for repo in before}


def test_nothing_of_a_run_that_was_replaced_is_taken_for_the_new_one(run: Path, server: Hub, tmp_path: Path) -> None:
    hub.push(run, "me/maze")
    server.repos["me/maze"] |= {"checkpoints/best.safetensors": b"older", "plots/older.png": b"", "notes.txt": b"mine"}
    pulled = hub.pull("me/maze", tmp_path / "pulled")
    assert (pulled / "checkpoints/best.safetensors").is_file()
    hub.push(run, "me/maze")
    assert not {"checkpoints/best.safetensors", "plots/older.png"} & {*server.repos["me/maze"]}
    assert server.repos["me/maze"]["notes.txt"] == b"mine"
    hub.pull("me/maze", pulled)
    assert [path.name for path in (pulled / "checkpoints").iterdir()] == ["final.safetensors"]


def test_a_run_of_another_repository_is_not_overwritten(run: Path, server: Hub, tmp_path: Path) -> None:
    """Both would be put into runs/maze."""
    for repo in ("me/maze", "you/maze"):
        hub.push(run, repo)
    pulled = hub.pull("me/maze", tmp_path / "maze")
    server.repos["you/maze"]["summary.md"] = b"yours"
    with pytest.raises(ConfigError, match=r"pulled from me/maze[\s\S]*out=ANOTHER"):
        hub.pull("you/maze", pulled)
    assert (pulled / "summary.md").read_bytes() == (run / "summary.md").read_bytes()


def test_only_the_files_of_a_run_are_pulled_and_they_are_guarded(run: Path, server: Hub, tmp_path: Path) -> None:
    hub.push(run, "me/maze")
    files = server.repos["me/maze"]
    files |= {"evil.py": b"raise SystemExit", "model.pkl": b"\x80", "plots/evil.svg": b"<svg/>"}
    for _ in range(2):  # an earlier pull is brought up to date
        folder = hub.pull("me/maze", tmp_path / "pulled")
    assert not {"evil.py", "model.pkl", "plots/evil.svg"} & {*server.fetched}
    assert not list(folder.rglob("*.py"))
    plain = json.loads(files["config.json"])
    files["config.json"] = json.dumps(plain | {"data": plain["data"] | {"env_id": "evil:Env-v0"}}).encode()
    with pytest.raises(CheckpointError, match="modules that are imported"):
        hub.pull("me/maze", tmp_path / "again")


def test_commands_take_a_run_of_the_hub(
    run: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(run, "me/maze")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        options, _ = read_run(["run=hf://me/maze"], RunOptions)
        assert options.run == Path("runs/hub/me--maze")
    weights = "checkpoints/final.safetensors"
    assert (options.run / weights).read_bytes() == (run / weights).read_bytes()
    with pytest.raises(ConfigError, match="USER/NAME"):
        read_run(["run=hf://maze"], RunOptions)


def test_mistakes_are_answered(run: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="me/none") as caught:
        hub.pull("me/none", tmp_path / "none")
    assert "hf auth login" in str(caught.value.fix)
    server.repos["me/other"] = {"README.md": b"# other"}
    with pytest.raises(DataError, match="no run of trajgen"):
        hub.pull("me/other", tmp_path / "other")
    ours = tmp_path / "maze"
    ours.mkdir()
    (ours / "config.json").write_text("of another run")
    server.repos["me/maze"] = {"config.json": b"{}"}
    with pytest.raises(ConfigError, match=r"was not pulled[\s\S]*out=ANOTHER"):
        hub.pull("me/maze", ours)
    assert (ours / "config.json").read_text() == "of another run"
    del server.repos["me/maze"]
    with pytest.raises(ConfigError, match="USER/NAME"):
        trajgen.load_policy("hf://../../maze")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="no finished training"):
        hub.push(unfinished, "me/maze")
    assert "me/maze" not in server.repos
