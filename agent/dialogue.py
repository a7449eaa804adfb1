"""A child of unknown code beside the trusted process of ours that it talks to (corpus.serve), over one socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.errors import StateError
from sandbox.process import Execution

LAST_WORDS_SECONDS = 30.0  # for the trusted side to write its result after the child has hung up


def converse(
    role: str, spec: Mapping[str, Any], folder: Path, child: Callable[[int], Execution]
) -> tuple[Execution, dict[str, Any]]:
    """Start the trusted side of `role` (feed or referee), run `child` with its descriptor, wait for both.

    Returns how the child ended and what the trusted side measured: {} if it left nothing. Its own messages are in
    `<folder>/<role>.log`.
    """
    result = folder / f"{role}.json"
    result.unlink(missing_ok=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        told = dict(spec) | {"fd": ours.fileno(), "result": str(result)}
        with _server(role, told, ours, folder / f"{role}.log"):
            ours.close()
            execution = child(theirs.fileno())
            theirs.close()
    measured: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    return execution, measured


@contextmanager
def _server(role: str, spec: Mapping[str, Any], link: socket.socket, log: Path) -> Iterator[None]:
    """It ends by itself when the other side hangs up; it is not left behind if it does not, or if we fail."""
    # -P: a folder `corpus` where the user stands is not ours.
    command = [sys.executable, "-P", "-m", "corpus.serve", role, json.dumps(spec)]
    server = subprocess.Popen(
        command,
        pass_fds=[link.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # few words, and a full disk may be what they are about
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in a terminal is for us, not for it
    )
    try:
        yield
        server.wait(LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # its result is missing then, which the caller sees
    finally:
        server.kill()
        said = server.communicate()[0]
    with suppress(OSError):
        log.write_bytes(said)
    if server.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise StateError(f"{role}: expected the process that owns the data to end well, found: {last[0]}; see {log}")
