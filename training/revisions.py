"""Trained revisions on disk: immutable folders, and one pointer file that says which one serves.

A folder counts once its `metadata.json` is there, which is written last. The pointer is replaced
atomically; it also remembers the way back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from bot.errors import ModelError
from engine.lora import CONFIG, WEIGHTS
from training.files import sync, to_json, write

METADATA = "metadata.json"
POINTER = "current.json"
WAY_BACK = 20  # revisions that a pointer remembers
BASE = "base"  # the revision that is none: the model as it came


class RevisionError(ModelError):
    """A revision cannot be used; the text says why."""

    key = "error.revision"


@dataclass(frozen=True, slots=True)
class Revision:
    """One trained revision, as its metadata tells."""

    id: str
    folder: Path
    metadata: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Names its weights: what was computed with others is never taken for its own."""
        return str(self.metadata["digest"])

    @property
    def promoted(self) -> bool:
        """Whether the gate let it into service."""
        return bool(self.metadata["promoted"])

    @property
    def created_at(self) -> datetime:
        """When it was made."""
        return datetime.fromisoformat(self.metadata["created_at"])


class Revisions:
    """The folder of revisions of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # What is there

    def all(self) -> list[Revision]:
        """Every complete revision, the newest first; what cannot be read is left out."""
        found = []
        for path in self.folder.glob(f"*/{METADATA}"):
            try:
                found.append(self.get(path.parent.name))
            except RevisionError:
                continue
        return sorted(found, key=lambda revision: revision.id, reverse=True)

    def get(self, name: str) -> Revision:
        """One revision by its id. Raises RevisionError."""
        folder = self.folder / name
        if not name or folder.parent != self.folder or name.startswith("."):
            raise RevisionError("error.revision_missing", name=name)
        try:
            metadata = json.loads((folder / METADATA).read_bytes())
            revision = Revision(name, folder, metadata)
            sound = {"digest", "promoted", "created_at", "base", "files"} <= set(metadata)
        except (OSError, ValueError, TypeError) as fault:
            raise RevisionError("error.revision_missing", name=name) from fault
        if not sound:
            raise RevisionError("error.revision_missing", name=name)
        return revision

    def verify(self, name: str, fingerprint: str | None = None) -> Revision:
        """Look at everything before a revision is ever loaded. Raises RevisionError.

        `fingerprint` is that of the base it would be put on.
        """
        revision = self.get(name)
        if fingerprint is not None and revision.metadata["base"]["fingerprint"] != fingerprint:
            raise RevisionError("error.revision_base", name=name)
        for file, digest in revision.metadata["files"].items():
            try:
                same = _sha256(revision.folder / file) == digest
            except OSError:
                same = False
            if not same:
                raise RevisionError("error.revision_damaged", name=name, detail=file)
        _check_weights(revision)
        return revision

    # Making one

    def draft(self, name: str) -> Path:
        """An empty folder in which a revision is put together, unseen until it is committed."""
        folder = self.folder / f".draft-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def commit(self, name: str, draft: Path, metadata: Mapping[str, Any]) -> Revision:
        """Make a draft a revision: all its files first, `metadata.json` last.

        `digest` and the checksums of all files are added to the metadata.
        """
        folder = self.folder / name
        if (folder / METADATA).exists():
            raise RevisionError("error.revision_exists", name=name)
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted commit left
        files = {
            str(path.relative_to(draft)): _sha256(path)
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        weights = files[WEIGHTS] + files[CONFIG]
        whole = {
            "id": name,
            **metadata,
            "digest": hashlib.sha256(weights.encode()).hexdigest(),
            "files": files,
        }
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        draft.replace(folder)
        write(folder / METADATA, to_json(whole))
        sync(self.folder)
        return self.get(name)

    def prune(self, keep: int) -> list[str]:
        """Remove the oldest, but none that serves or that a rollback may need; returns which."""
        current, history = self._pointer()
        needed = {current, *history[-1:]}
        gone = [r for r in self.all()[keep:] if r.id not in needed]
        for revision in gone:
            (revision.folder / METADATA).unlink()  # first: half a folder counts as none
            shutil.rmtree(revision.folder, ignore_errors=True)
        return [revision.id for revision in gone]

    # Which one serves

    @property
    def current(self) -> str:
        """The revision in service; `base` when it is the model as it came."""
        return self._pointer()[0]

    @property
    def before(self) -> str | None:
        """The revision that a rollback puts into service."""
        history = self._pointer()[1]
        return history[-1] if history else None

    @property
    def pointer(self) -> Path:
        """The file that names the revision in service."""
        return self.folder / POINTER

    def use(self, name: str) -> None:
        """Point at a revision. The one that served before is the way back.

        A pointer that cannot be read is replaced: there is no way back from then on.
        """
        with self._lock():
            try:
                current, history = self._pointer()
            except RevisionError:
                self._point(name, [])
                return
            if name != current:
                self._point(name, [*history, current][-WAY_BACK:])

    def step_back(self) -> str:
        """Point at the one before and forget the present one; returns which that is.

        Where nothing is before, it is the base.
        """
        with self._lock():
            _, history = self._pointer()
            before = history[-1] if history else BASE
            self._point(before, history[:-1])
            return before

    def roll_back(self) -> str:
        """The same at an admin's word. Raises RevisionError where nothing is before."""
        if self.before is None:
            raise RevisionError("error.revision_first")
        return self.step_back()

    def _pointer(self) -> tuple[str, list[str]]:
        try:
            pointer = json.loads(self.pointer.read_bytes())
            return str(pointer["revision"]), [str(name) for name in pointer["before"]]
        except FileNotFoundError:
            return BASE, []
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise RevisionError("error.revision_pointer", path=self.pointer) from fault

    def _point(self, name: str, before: list[str]) -> None:
        write(self.pointer, to_json({"revision": name, "before": before}))

    def _lock(self) -> FileLock:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.folder / ".pointer.lock", timeout=10)


def _check_weights(revision: Revision) -> None:
    """Names, shapes, rank, scale and finite values of an adapter, against its own config."""
    try:
        config = json.loads((revision.folder / CONFIG).read_bytes())
        wanted = config["lora_parameters"]
        rank, scale = int(wanted["rank"]), float(wanted["scale"])
        with safe_open(str(revision.folder / WEIGHTS), "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        detail = str(fault) or type(fault).__name__
        raise RevisionError("error.revision_damaged", name=revision.id, detail=detail) from fault
    modules = {name.rpartition(".")[0] for name in tensors}
    kinds = {"lora_a", "lora_b"} | ({"m"} if config.get("fine_tune_type") == "dora" else set())
    expected = {f"{module}.{kind}" for module in modules for kind in kinds}
    if not modules or expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:1] or [WEIGHTS]
        raise RevisionError("error.revision_damaged", name=revision.id, detail=odd[0])
    if not (np.isfinite(scale) and scale > 0):
        raise RevisionError("error.revision_damaged", name=revision.id, detail="scale")
    for name, tensor in tensors.items():
        side = {"lora_a": -1, "lora_b": 0}.get(name.rpartition(".")[2])
        if side is not None and (tensor.ndim != 2 or tensor.shape[side] != rank):  # noqa: PLR2004 (a matrix)
            raise RevisionError("error.revision_damaged", name=revision.id, detail=name)
        if not np.isfinite(tensor).all():
            raise RevisionError("error.revision_damaged", name=revision.id, detail=name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
