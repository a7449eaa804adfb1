"""Ends a run before its time: when it is called off, or when its curve shows no hope."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.folder import CURVE
from agent.pruning import Watched

PAUSE_SECONDS = 0.25  # between two looks; a look reads a curve of some fifty lines, where it has changed


class Watcher:
    """Use it around the run. stop: what ends the run. told: why it was hopeless, "" while it is not."""

    def __init__(self, run: Path, watched: Watched | None, cancel: threading.Event) -> None:
        self._run, self._watched, self._cancel = run, watched, cancel
        self.stop = cancel if watched is None else threading.Event()
        self.told = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        watched, seen = self._watched, None
        while not self._over.wait(PAUSE_SECONDS):
            before, seen = seen, _state(self._run / CURVE)
            try:
                looked = watched.look(self._run) if watched is not None and seen != before else None
            except (OSError, ValueError):  # a full disk, say: the run goes on unjudged, and can still be called off
                watched = looked = None
            if looked is not None and looked.ran_on:
                watched = None
            elif looked is not None and looked.prospect is not None and self._watched is not None:
                self.told = self._watched.told(looked.prospect)
            if self.told or self._cancel.is_set():
                self.stop.set()
                return

    def __enter__(self) -> Self:
        if self._watched is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._watched is not None:
            self._thread.join()


def _state(file: Path) -> tuple[int, int] | None:
    """Another one after every write; None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
