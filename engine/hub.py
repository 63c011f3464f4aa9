"""Models from the Hugging Face hub, kept in our models folder.

The hub's own `snapshot_download` throws a partial file away when it is interrupted; on a home
connection a 4 GB model would never arrive. So each file is fetched with the hub library's
`http_get` into a draft folder, goes on where it stopped, also after a restart, is checked against
the hub's size and hash, and the draft is renamed when it is whole.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented

from bot.errors import ModelError
from engine import weights

# No code and no pickle: what mlx-lm reads as data, in the top folder only.
WANTED = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
SPARE = 512 * 2**20  # bytes of disk to leave free
GIB = 2**30


def folder_for(repo: str, models: Path) -> Path:
    """Where a hub model is kept."""
    return models / repo.replace("/", "--")


def find(repo: str, models: Path) -> Path | None:
    """The model's folder if it is on this machine: ours, or one in the hub's shared cache."""
    ours = folder_for(repo, models)
    if ours.is_dir():
        return ours
    try:
        shared = snapshot_download(repo, allow_patterns=list(WANTED), local_files_only=True)
        weights.check(Path(shared))
    except (LocalEntryNotFoundError, HFValidationError, ModelError):
        return None
    return Path(shared)


def download(repo: str, models: Path) -> Path:
    """Fetch a hub model, going on where an interrupted download stopped. Raises ModelError."""
    target = folder_for(repo, models)
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        files = wanted(repo, info.siblings or [])
        draft = models / f".{target.name}.{info.sha}.part"
        draft.mkdir(parents=True, exist_ok=True)
        check_disk(files, draft)
        for file in files:
            _fetch(repo, str(info.sha), file, draft / file.rfilename)
        weights.check(draft)
    except ModelError:
        raise
    except GatedRepoError as fault:
        raise ModelError("error.model_gated", name=repo) from fault
    except (RepositoryNotFoundError, HFValidationError) as fault:
        raise ModelError("error.model_not_found", name=repo) from fault
    except (httpx2.HTTPError, OSError) as fault:
        raise ModelError("error.model_download", name=repo, detail=_line(fault)) from fault
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    for leftover in models.glob(f".{target.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def wanted(repo: str, files: list[RepoSibling]) -> list[RepoSibling]:
    """The files to fetch, small ones first. Raises ModelError when no weights are among them."""
    chosen = [
        file
        for file in files
        if Path(file.rfilename).name == file.rfilename
        and any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in WANTED)
    ]
    if not any(file.rfilename.endswith(".safetensors") for file in chosen):
        pickled = any(Path(file.rfilename).match(p) for file in files for p in weights.PICKLES)
        raise ModelError("error.model_pickle" if pickled else "error.model_not_a_model", path=repo)
    return sorted(chosen, key=lambda file: file.size or 0)


def check_disk(files: list[RepoSibling], draft: Path) -> None:
    """Whether the rest of the download fits on the disk. Raises ModelError."""
    there = sum(file.stat().st_size for file in draft.iterdir())
    needed = sum(file.size or 0 for file in files) - there + SPARE
    free = shutil.disk_usage(draft).free
    if needed > free:
        raise ModelError(
            "error.model_disk", needed=round(needed / GIB, 1), free=round(free / GIB, 1)
        )


def _fetch(repo: str, revision: str, file: RepoSibling, path: Path) -> None:
    """Fetch one file, or the rest of it; a file that does not match its hash is thrown away."""
    size = path.stat().st_size if path.exists() else 0
    if file.size is not None and size > file.size:
        path.unlink()
        size = 0
    with path.open("ab") as partial:
        http_get(
            hf_hub_url(repo, file.rfilename, revision=revision),
            partial,
            resume_size=size,
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.rfilename,
        )
    if file.lfs is not None:
        with path.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != file.lfs.sha256:
            path.unlink()
            raise ModelError("error.model_truncated", file=file.rfilename)


def _line(fault: BaseException) -> str:
    """The first line of a fault, for a person."""
    return (str(fault).strip() or repr(fault)).splitlines()[0]
