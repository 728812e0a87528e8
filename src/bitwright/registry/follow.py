"""`follow()`: a model in the user's own process that is always the registry's champion.

A thread looks at the link `current` a few times a second. Where it names another version, the thread loads that beside
the one that works, tries it on a text, and puts it in place: one assignment. Calls that are under way keep the model
that they began with, which is freed when the last one ends. Whatever fails, the model that works goes on working.

Reading the link needs no log and no library, so servers need only the folder, and may read it over a network.
"""

import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import BitwrightError, InputError, ModelError
from bitwright.registry.store import CURRENT, MODELS, VERSIONS, linked

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

_RETRY_S = 10.0  # after a version that could not be loaded
_TEXT = "a first text, so that the first request need not wait"


@dataclass(frozen=True, slots=True)
class Status:
    """What a followed model is at.

    version, path: what is served. since: when it was put in place, in seconds since the epoch. swaps: how often that
    happened. error: why it does not follow, None while it does. wanted: the version that could not be loaded.
    """

    version: int
    path: Path
    since: float
    swaps: int = 0
    error: str | None = None
    wanted: int | None = None


class Followed:
    """The champion of a model, as `Model`: what is asked of it goes to the version that is served at that moment.

    `encode` and its like, `generate` and `stream` are methods; other attributes are those of the model of the moment.
    A method that is kept (`encode = model.encode`) follows, too. `status` says what is served, and what is wrong.
    """

    def __init__(self, folder: Path, poll_s: float, options: Mapping[str, Any]) -> None:
        self._folder, self._poll_s, self._options = folder, poll_s, options
        self._stop = threading.Event()
        version = _wanted(folder)
        if version is None:
            raise InputError(
                f"{folder}: no version is promoted yet; `bitwright registry promote {folder.name}` does it"
            )
        self._model = self._loaded(version)
        self._status = Status(version, self._model.path, time.time())
        self._starting = threading.Lock()
        self._thread = self._started()

    @property
    def status(self) -> Status:
        """What is served, since when, and what keeps it from following."""
        return self._status

    @property
    def version(self) -> int:
        """The version that is served."""
        return self._status.version  # set last: whoever sees it finds the model and the status of that version

    @property
    def model(self) -> "Model":
        """The model that is served now. Who keeps it keeps that version."""
        if not self._thread.is_alive() and not self._stop.is_set():  # a fork has no threads
            with self._starting:
                if not self._thread.is_alive():
                    self._thread = self._started()
        return self._model

    def close(self) -> None:
        """Follow no longer. The model goes on working."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "Followed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what a copy or a pickle asks of an object that is not made yet
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        """As `Model.__call__`."""
        return self.model(**inputs)

    def encode(self, *items: Any, **options: Any) -> Any:
        """As `Model.encode`."""
        return self.model.encode(*items, **options)

    def encode_query(self, *items: Any, **options: Any) -> Any:
        """As `Model.encode_query`."""
        return self.model.encode_query(*items, **options)

    def encode_document(self, *items: Any, **options: Any) -> Any:
        """As `Model.encode_document`."""
        return self.model.encode_document(*items, **options)

    def tokenize(self, *items: Any, **options: Any) -> list[list[int]]:
        """As `Model.tokenize`."""
        return self.model.tokenize(*items, **options)

    def similarity(self, *items: Any, **options: Any) -> Any:
        """As `Model.similarity`."""
        return self.model.similarity(*items, **options)

    def predict(self, *items: Any, **options: Any) -> Any:
        """As `Model.predict`."""
        return self.model.predict(*items, **options)

    def rank(self, *items: Any, **options: Any) -> list[dict[str, Any]]:
        """As `Model.rank`."""
        return self.model.rank(*items, **options)

    def generate(self, *prompts: Any, **options: Any) -> Any:
        """As `generate` of a language model."""
        return self.__getattr__("generate")(*prompts, **options)

    def stream(self, *prompts: Any, **options: Any) -> Iterator[Any]:
        """As `stream` of a language model; an answer that has begun ends with the version that began it."""
        found: Iterator[Any] = self.__getattr__("stream")(*prompts, **options)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Followed, (self._folder, self._poll_s, dict(self._options))

    def _loaded(self, version: int) -> "Model":
        from bitwright.runtime.load import load

        return load(self._folder / VERSIONS / str(version), **self._options)

    def _started(self) -> threading.Thread:
        """The thread. It knows the object weakly, so that an object that nobody has any more ends it."""
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), self._stop, self._poll_s), name=f"follow {self._folder.name}",
            daemon=True,
        )  # fmt: skip
        thread.start()
        return thread

    def _look(self, tried: tuple[int, float] | None) -> tuple[int, float] | None:
        """Follow the link once. tried: the version that failed last, and when; so is what this returns."""
        version, status = _wanted(self._folder), self._status
        if version is None:
            self._say(replace(status, error=f"{self._folder / CURRENT}: the registry cannot be reached"))
            return tried
        if version == status.version:
            if status.error is not None:
                self._status = replace(status, error=None, wanted=None)
            return None
        if tried is not None and tried[0] == version and time.monotonic() - tried[1] < _RETRY_S:
            return tried
        try:
            model = self._loaded(version)
            _try(model)
        except Exception as error:  # whatever is wrong with it, what works goes on
            said = str(error) if isinstance(error, BitwrightError) else f"{type(error).__name__}: {error}"
            self._say(replace(status, error=f"version {version} cannot be loaded: {said}", wanted=version))
            return version, time.monotonic()
        self._model = model
        self._status = Status(version, model.path, time.time(), status.swaps + 1)
        return None

    def _say(self, status: Status) -> None:
        """Keep what is wrong in `status`, and warn of it once."""
        before, self._status = self._status.error, status
        if status.error != before:
            text = f"{self._folder.name}: version {status.version} goes on: {status.error}"
            with suppress(RuntimeWarning):  # an error where warnings are errors, but no reason to stop following
                warnings.warn(text, RuntimeWarning, stacklevel=2)


def follow(registry: str | Path, name: str, *, poll_s: float = 0.25, **options: Any) -> Followed:
    """The champion of a registry's model, as a model that swaps by itself when another version is promoted.

    `model = bitwright.follow("registry", "minilm")` has the methods of `load`'s model, for any thread. A promotion or a
    rollback is taken up after at most `poll_s` and the time that loading takes. No call fails or waits for it: calls
    that have begun end on the version with which they began. If the registry cannot be reached, or the new version
    cannot be loaded, it goes on with what it has, warns, and says so in `model.status`.

    Args:
        registry: the folder. It needs to be readable only.
        poll_s: seconds between two looks at the link.
        options: of `load`.

    Raises:
        InputError: no such model, or none of its versions is promoted. And as `load`, for the first version.
    """
    folder = Path(registry).expanduser().absolute() / MODELS / name
    if not poll_s > 0:
        raise InputError(f"poll_s = {poll_s}: give seconds above 0")
    if not folder.is_dir():
        raise InputError(f"{registry}: this registry has no model {name!r}, or is no registry; check the path")
    return Followed(folder, poll_s, options)


def _watch(followed: "weakref.ref[Followed]", stop: threading.Event, poll_s: float) -> None:
    tried = None
    while not stop.wait(poll_s):
        one = followed()
        if one is None:
            return
        tried = one._look(tried)
        del one


def _wanted(folder: Path) -> int | None:
    return linked(folder / CURRENT)


def _try(model: "Model") -> None:
    """One text, before anybody waits for it: buffers are mapped, and a model that cannot answer is found out."""
    try:
        model.encode([_TEXT])
    except ModelError:  # no tokenizer: its users give ids
        model.encode([[0, 1]])
