"""From a name to a model in memory: names, faults of a folder, and downloads from the hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.hf_api import RepoSibling

from bot.errors import ModelError
from config.texts import text
from engine import embedded, hub, models, weights
from engine.models import Kind, Source
from engine.plan import Backend, ComputePlan

ROOT = Path(__file__).resolve().parent.parent
FAST = ComputePlan(Backend.CPU, None, dequantise=True, why="tests")
AS_IS = ComputePlan(Backend.METAL, None, dequantise=False, why="tests")
REPO = "farense/small-4bit"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(embedded_model, tmp_path):
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(embedded_model, tmp_path / "copy"))


def fault(call, *args):
    """The key of the ModelError that a call raises, which must make a sentence in Portuguese."""
    with pytest.raises(ModelError) as caught:
        call(*args)
    assert text(caught.value.key, "pt", **caught.value.values)
    return caught.value.key


# Names


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Darwin", "arm64", "mlx-community/Mistral-7B-Instruct-v0.3-4bit"),
        ("Darwin", "x86_64", "embedded"),
        ("Linux", "x86_64", "embedded"),
    ],
)
@pytest.mark.usefixtures("no_cache")
def test_with_no_name_the_platform_decides(system, machine, name, monkeypatch, tmp_path):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)

    source = models.resolve(None, tmp_path)

    assert (source.name, source.folder) == (name, None)
    assert source.kind is (Kind.EMBEDDED if name == "embedded" else Kind.HUB)


def test_a_folder_is_a_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for name in (str(folder), "./copy", "copy"):
        source = models.resolve(name, tmp_path / "models")
        assert source.kind is Kind.FOLDER
        assert source.name == "copy"
        assert models.install(source, tmp_path / "models").resolve() == folder


def test_the_embedded_model_is_found_once_it_is_installed(tmp_path):
    before = models.resolve("embedded", tmp_path)
    folder = models.install(before, tmp_path)

    assert before == Source(Kind.EMBEDDED, "embedded", None)
    assert models.resolve("embedded", tmp_path).folder == folder


def test_a_name_that_is_nothing_is_refused(tmp_path):
    assert fault(models.resolve, "what is this", tmp_path) == "error.model_name"


def test_names_are_resolved_without_mlx():
    code = "import sys, engine.models; assert 'mlx.core' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# Loading


@pytest.mark.model
def test_a_model_is_loaded_as_the_plan_says(embedded_model):
    import mlx.core as mx

    fast, as_is = models.load(embedded_model, FAST), models.load(embedded_model, AS_IS, "small")
    layers = [m.model.model.layers[0].self_attn.q_proj for m in (fast, as_is)]

    assert [layer.weight.dtype for layer in layers] == [mx.float32, mx.uint32]
    assert fast.fingerprint == as_is.fingerprint
    assert (fast.name, as_is.name) == ("smollm2-135m-int4", "small")
    assert (fast.context, fast.vocabulary) == (8192, 49152)
    assert fast.tokenizer.eos_token_ids == {2}


def test_loading_happens_in_the_thread_that_asks(embedded_model):
    import mlx.core as mx

    logits = []

    def run():
        model = models.load(embedded_model, FAST).model
        logits.append(model(mx.array([[1, 2, 3]])).shape)
        mx.synchronize()
        mx.clear_streams()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert logits == [(1, 3, 49152)]


def truncate(folder):
    weight_file = folder / "model.safetensors"
    with weight_file.open("r+b") as file:
        file.truncate(weight_file.stat().st_size - 1)


def rewrite(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def forget_a_piece(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / weights.INDEX).write_text(json.dumps(index))


def no_template(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (shutil.rmtree, "error.model_missing"),
        (lambda folder: (folder / "config.json").unlink(), "error.model_not_a_model"),
        (lambda folder: (folder / "config.json").write_text("{"), "error.model_not_a_model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "error.model_not_a_model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "error.model_not_a_model"),
        (truncate, "error.model_truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "error.model_truncated"),
        (lambda folder: (folder / weights.INDEX).write_text("{}"), "error.model_truncated"),
        (forget_a_piece, "error.model_truncated"),
        (only_pickle, "error.model_pickle"),
        (lambda folder: rewrite(folder, model_type="skynet"), "error.model_unknown"),
        (lambda folder: rewrite(folder, model_type="../llama"), "error.model_unknown"),
        (lambda folder: rewrite(folder, model_type=None), "error.model_unknown"),
        (lambda folder: rewrite(folder, hidden_size=64), "error.model_broken"),
        (lambda folder: rewrite(folder, model_file="run_me.py"), "error.model_broken"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "error.model_broken"),
        (no_template, "error.model_no_template"),
    ],
)
def test_each_damage_has_its_sentence(folder, damage, key):
    damage(folder)

    assert fault(models.load, folder, AS_IS) == key


@pytest.mark.parametrize("header", [b"null", b"[]", b"{}", b'{"a": 1}', b'{"a": {}}', b"\xff"])
def test_a_header_of_nonsense_is_a_damaged_file(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    assert fault(weights.check, tmp_path) == "error.model_truncated"


def test_a_model_that_does_not_fit_is_not_begun(embedded_model, monkeypatch):
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(available=500_000_000, total=2**32)
    )

    assert fault(models.load, embedded_model, FAST) == "error.model_memory"
    models.check_memory(500_000_000, FAST)


def test_a_sound_model_is_known_without_loading_it(embedded_model):
    config, files = models.inspect(embedded_model, FAST)

    assert config["model_type"] == "llama"
    assert [file.path.name for file in files] == ["model.safetensors"]


def test_a_mac_makes_room_by_itself():
    assert models.usable_memory(1, 8 * models.GIB, Backend.METAL) > 5 * models.GIB
    assert models.usable_memory(1, 8 * models.GIB, Backend.CPU) == 1


def test_the_fingerprint_knows_the_weights_and_not_the_folder(embedded_model, folder):
    def fingerprint(path):
        return weights.fingerprint(weights.read_config(path), weights.check(path))

    first = fingerprint(embedded_model)
    assert fingerprint(folder) == first
    rewrite(folder, transformers_version="9")
    assert fingerprint(folder) == first

    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert fingerprint(folder) != first


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 32768}, 32768),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({}, models.DEFAULT_CONTEXT),
        ({"max_position_embeddings": "many"}, models.DEFAULT_CONTEXT),
    ],
)
def test_the_context_is_what_the_config_says(config, length):
    assert models.context_length(config) == length


# The hub


@dataclass
class Hub:
    """A loopback hub: the two calls that a download makes, with byte ranges and cut connections."""

    files: dict[str, bytes]
    status: int = 200
    error: str = ""
    cut_at: int | None = None
    stall: bool = False
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def describe(self) -> bytes:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(data).hexdigest(),
                "lfs": {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 1,
                }
                if name.endswith(".safetensors")
                else None,
            }
            for name, data in self.files.items()
        ]
        return json.dumps({"id": REPO, "sha": REVISION, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    """What the hub answers."""

    hub: Hub

    def do_GET(self):
        if self.hub.status != 200:
            return self.reply(self.hub.status, b"{}", {"X-Error-Code": self.hub.error})
        if self.path.startswith("/api/models/"):
            return self.reply(200, self.hub.describe(), {"Content-Type": "application/json"})
        name = self.path.removeprefix(f"/{REPO}/resolve/{REVISION}/")
        data, wanted = self.hub.files[name], self.headers.get("Range")
        self.hub.ranges.append((name, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        return self.reply(206 if wanted else 200, data[start:], extra)

    def reply(self, status, body, headers):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        cut = self.hub.cut_at
        if cut is None or len(body) <= cut:
            self.wfile.write(body)
            return
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if self.hub.stall:
            self.hub.stalled.set()
            self.hub.release.wait()
        self.hub.cut_at = None
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """The hub's shared cache, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loopback(embedded_model, monkeypatch, no_cache):
    files = {file.name: file.read_bytes() for file in embedded_model.iterdir()}
    extra = {"README.md": b"#", "run_me.py": b"1/0", "pytorch_model.bin": b"pickle"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub_server = Hub(files | extra, url=f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Bound", (Handler,), {"hub": hub_server})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_server.url)
    template = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pause before a retry
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub_server
    hub_server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def same(folder, embedded_model):
    return {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in embedded_model.iterdir()
    }


def test_a_hub_model_is_downloaded_without_code_and_pickle(loopback, embedded_model, tmp_path):
    told = []
    source = models.resolve(REPO, tmp_path)
    folder = models.install(source, tmp_path, told.append)

    assert source == Source(Kind.HUB, REPO, None)
    assert told == [REPO]
    assert same(folder, embedded_model)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_downloaded_model_needs_no_network(loopback, tmp_path):
    models.install(models.resolve(REPO, tmp_path), tmp_path)
    loopback.status = 503

    again = models.resolve(REPO, tmp_path)
    assert models.install(again, tmp_path, pytest.fail) == again.folder


def test_a_damaged_download_is_fetched_anew(loopback, embedded_model, tmp_path):
    folder = models.install(models.resolve(REPO, tmp_path), tmp_path)
    truncate(folder)

    assert same(models.install(models.resolve(REPO, tmp_path), tmp_path), embedded_model)


def test_a_cut_connection_goes_on_where_it_was(loopback, embedded_model, tmp_path):
    loopback.cut_at = 50_000_000

    assert same(hub.download(REPO, tmp_path), embedded_model)
    assert [r for name, r in loopback.ranges if name == "model.safetensors"][1] is not None


def test_a_killed_download_goes_on_after_the_restart(loopback, embedded_model, tmp_path):
    loopback.cut_at, loopback.stall = 50_000_000, True
    code = (
        "import sys, pathlib, engine.hub as h; h.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, REPO, tmp_path],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": loopback.url},
        stderr=subprocess.DEVNULL,
    )
    assert loopback.stalled.wait(60)
    (draft,) = tmp_path.glob(".*.part")
    partial = draft / "model.safetensors"
    while not partial.exists() or partial.stat().st_size < 10_000_000:  # until it is on the disk
        assert child.poll() is None
    child.kill()
    child.wait()
    kept = partial.stat().st_size
    loopback.release.set()
    loopback.ranges.clear()

    assert models.resolve(REPO, tmp_path).folder is None
    assert same(hub.download(REPO, tmp_path), embedded_model)
    assert loopback.ranges == [("model.safetensors", f"bytes={kept}-")]


def test_bytes_that_are_not_the_hubs_are_thrown_away(loopback, tmp_path):
    draft = tmp_path / f".farense--small-4bit.{REVISION}.part"
    draft.mkdir()
    size = len(loopback.files["model.safetensors"])
    (draft / "model.safetensors").write_bytes(b"\0" * (size - 10))

    assert fault(hub.download, REPO, tmp_path) == "error.model_truncated"
    assert not (draft / "model.safetensors").exists()
    hub.download(REPO, tmp_path)


@pytest.mark.parametrize(
    ("status", "error", "key"),
    [
        (404, "RepoNotFound", "error.model_not_found"),
        (401, "RepoNotFound", "error.model_not_found"),
        (403, "GatedRepo", "error.model_gated"),
        (500, "", "error.model_download"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(loopback, tmp_path, status, error, key):
    loopback.status, loopback.error = status, error

    assert fault(hub.download, REPO, tmp_path) == key


def test_a_hub_out_of_reach_is_a_sentence(loopback, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    assert fault(hub.download, REPO, tmp_path) == "error.model_download"


def test_a_disk_too_small_is_said_before_the_download(loopback, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**8))

    assert fault(hub.download, REPO, tmp_path) == "error.model_disk"
    assert not loopback.ranges


def test_pickle_alone_is_refused():
    files = [RepoSibling("config.json", 2), RepoSibling("pytorch_model.bin", 9)]

    assert fault(hub.wanted, REPO, files) == "error.model_pickle"
    assert fault(hub.wanted, REPO, files[:1]) == "error.model_not_a_model"


def test_only_data_files_of_the_top_folder_are_wanted():
    names = ["model.safetensors", "config.json", "../config.json", "a/b.json", "x.py", "y.bin"]

    found = hub.wanted(REPO, [RepoSibling(name, index) for index, name in enumerate(names)])
    assert [file.rfilename for file in found] == ["model.safetensors", "config.json"]


def test_a_model_in_the_hubs_shared_cache_is_used(no_cache, embedded_model, tmp_path):
    repo = tmp_path / "cache" / "models--farense--small-4bit"
    shutil.copytree(embedded_model, repo / "snapshots" / REVISION)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)

    source = models.resolve(REPO, tmp_path / "models")
    assert source.folder == repo / "snapshots" / REVISION
    assert models.install(source, tmp_path / "models") == source.folder


def test_the_embedded_model_is_whole_only_with_its_weights(folder):
    assert embedded.is_complete(folder)
    truncate(folder)
    assert not embedded.is_complete(folder)
