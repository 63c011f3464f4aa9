"""The one thread that owns MLX: it loads, runs, swaps and frees. Nobody else touches an array.

Orders come in through a queue of calls; what happened goes out through `post`, which must be safe
to call from here. Both carry plain Python objects only.
"""

from __future__ import annotations

import ctypes
import gc
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from bot.domain import Request
from bot.errors import GenerationFailed, ModelError
from config.settings import EngineSettings
from engine.cache import PrefixCache
from engine.desk import Failed, Piece, Report
from engine.models import LoadedModel
from engine.pacer import Pacer

if TYPE_CHECKING:  # imports MLX, which must wait for the plan's BLAS
    from engine.rows import RowKv
    from engine.views import View

MIB = 2**20
FAULTS_LIMIT = 3  # steps in a row that may fail before the thread gives up
SOON = 0.004  # seconds that an idle engine waits for more who came at the same moment
SPARE = 512 * MIB  # memory that MLX may keep for its next arrays; all goes back when idle

Build = Callable[[LoadedModel], Any]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the outside may know of a loaded model."""

    name: str
    folder: Path
    fingerprint: str
    tokenizer: Any
    context: int
    vocabulary: int
    bytes_per_token: int


class Runner:
    """The engine's thread, and the views in it: the last one takes new requests."""

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        settings: EngineSettings,
        post: Callable[[Sequence[Report]], None],
        clock: Callable[[], float],
    ) -> None:
        self._load = load
        self._post = post
        self._clock = clock
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._budget = settings.cache_mb * MIB
        self._cache: PrefixCache[RowKv] = PrefixCache(self._budget)
        self._pacer = Pacer(settings.prefill_step)
        self._views: list[View] = []
        self._base: LoadedModel | None = None
        self._serving: tuple[str, str, Build]  # revision, digest, and how to build it again
        self._bytes_per_token = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.loaded: Future[Facts] = Future()
        self.busy_since: float | None = None  # when the step began that is computed now
        self.cache_bytes = 0
        self.revision = ""

    def begin(self) -> None:
        """Start the thread; `loaded` tells when it is ready, or why it is not."""
        self.loaded.set_running_or_notify_cancel()
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after this step."""
        self._orders.put(None)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether there is still a thread that could make steps."""
        return self._thread.is_alive()

    def start(self, request: Request, max_tokens: int) -> None:
        """Begin an answer on the current view."""
        self._orders.put(partial(self._admit, request, max_tokens))

    def abort(self, request_id: str) -> None:
        """Drop an answer at the next step."""
        self._orders.put(partial(self._drop, request_id))

    def swap(self, revision: str, digest: str, build: Build) -> Future[None]:
        """Build another model from the base and give it all new requests."""
        return self._order(partial(self._open_view, revision, digest, build))

    def pause(self) -> Future[None]:
        """Give all memory back. Nothing may run, and nothing be started before `resume`."""
        return self._order(self._let_go)

    def resume(self) -> Future[None]:
        """Load and build again what was given back; a failure ends the thread."""
        return self._order(self._come_back, vital=True)

    def _order(self, work: Callable[[], None], *, vital: bool = False) -> Future[None]:
        """Have something done in the thread; what it raises is the future's."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()

        def order() -> None:
            try:
                work()
                self._settle()
            except Exception as fault:
                done.set_exception(fault)
                if vital:
                    raise
            else:
                done.set_result(None)

        self._orders.put(order)
        return done

    def _run(self) -> None:
        try:
            if self._prepare():
                self._serve()
        except Exception:
            log.exception("engine.thread_failed")
        finally:
            self._clean_up()

    def _prepare(self) -> bool:
        try:
            base = self._load()
            import mlx.core as mx

            from engine.rows import bytes_per_token

            mx.set_cache_limit(SPARE)

            self._base = base
            self._open_view(f"base:{base.fingerprint[:12]}", base.fingerprint, _as_it_came)
            self._bytes_per_token = bytes_per_token(base.model)
        except Exception as fault:  # noqa: BLE001 (raised again by whoever waits for the model)
            self.loaded.set_exception(fault)
            return False
        facts = Facts(
            name=base.name,
            folder=base.folder,
            fingerprint=base.fingerprint,
            tokenizer=base.tokenizer,
            context=base.context,
            vocabulary=base.vocabulary,
            bytes_per_token=self._bytes_per_token,
        )
        self.loaded.set_result(facts)
        return True

    def _serve(self) -> None:
        faults, read = 0, 0
        ahead = self._views[0].ahead
        while self._take_orders():
            began = self.busy_since = self._clock()
            writing = any(view.writing for view in self._views)
            chunk = self._pacer.chunk(writing=writing)
            sound = [self._step(view, chunk) for view in list(self._views)]
            failed = not all(sound)
            earlier, read = read, sum(view.last_read for view in self._views)
            if writing and not failed:
                # Ahead, a step waits for what was read before it and not for what comes after.
                self._pacer.note(earlier if ahead else read, self._clock() - began)
            faults = faults + 1 if failed else 0
            if faults >= FAULTS_LIMIT:
                return

    def _step(self, view: View, chunk: int) -> bool:
        """One step of one view. A fault ends its running answers and nothing else."""
        try:
            self._tell(view.step(chunk))
        except Exception:
            log.exception("engine.step_failed", revision=view.revision)
            self._tell(view.fail())
            return False
        return True

    def _tell(self, reports: Sequence[Report]) -> None:
        """Pass on what happened, after an answer's end with the memory it leaves in order."""
        if any(not isinstance(report, Piece) for report in reports):
            self._settle()
        self._post(reports)

    def _take_orders(self) -> bool:
        """Carry out what was asked for, waiting for it when there is nothing to compute."""
        soon = False
        while True:
            idle = all(view.idle for view in self._views)
            if idle and self.busy_since is not None:
                self.busy_since = None
                _return_memory()
            try:
                order = self._orders.get(block=idle or soon, timeout=SOON if soon else None)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            soon = idle or soon  # who comes at the same moment is read together

    def _settle(self) -> None:
        """Free views that nobody needs any more, and keep all KV caches within the budget."""
        for view in [view for view in self._views[:-1] if view.idle]:
            self._views.remove(view)
            if view.digest not in {other.digest for other in self._views}:
                self._cache.forget(view.digest)
        reserved = sum(view.reserved for view in self._views) * self._bytes_per_token
        self._cache.leave_room(reserved)
        self.cache_bytes = sum(view.nbytes for view in self._views) + self._cache.nbytes

    def _admit(self, request: Request, max_tokens: int) -> None:
        try:
            self._views[-1].admit(request, max_tokens)
        except Exception:
            log.exception("engine.admit_failed")
            self._tell([Failed(request.id, GenerationFailed())])
        self._settle()

    def _drop(self, request_id: str) -> None:
        for view in list(self._views):
            self._tell(list(view.drop(request_id)))

    def _let_go(self) -> None:
        """Free everything but what it takes to have it again."""
        import mlx.core as mx

        assert all(view.idle for view in self._views), "nobody waits for what runs here"
        self._views.clear()
        self._base = None
        self._cache = PrefixCache(self._budget)
        gc.collect()  # modules may hold each other
        mx.synchronize()
        _return_memory()
        _trim()

    def _come_back(self) -> None:
        if self._base is not None:
            return  # nothing was given back
        self._base = base = self._load()
        if base.fingerprint != self.loaded.result().fingerprint:
            raise ModelError("error.model_broken", path=base.folder, detail="changed meanwhile")
        self._open_view(*self._serving)

    def _open_view(self, revision: str, digest: str, build: Build) -> None:
        from engine.views import View

        assert self._base is not None, "views are made from the base"
        kin = self._views[-1] if self._views else None
        model = build(self._base)
        view = View(revision, digest, model, self._base.tokenizer, self._cache, kin=kin)
        self._views.append(view)
        self._serving = revision, digest, build
        self.revision = revision

    def _clean_up(self) -> None:
        """Free everything in this thread: MLX's streams belong to it."""
        import mlx.core as mx

        self._views.clear()
        self._base = None
        self._cache = PrefixCache(0)
        mx.synchronize()
        mx.clear_streams()


def _as_it_came(base: LoadedModel) -> Any:
    return base.model


def _return_memory() -> None:
    """Give what MLX keeps for later back to the system."""
    import mlx.core as mx

    mx.clear_cache()


def _trim() -> None:
    """Have glibc give back what was freed: it keeps most of a model's memory for itself."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other systems have none
        trim(0)
