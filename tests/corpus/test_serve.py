"""The trusted side against whatever a run may send: the run ends, the session does not."""

from __future__ import annotations

import json
import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus.scoring import Data, audit, referee
from corpus.serve import CURVE_BYTES, MAX_OPENINGS, feed
from corpus.wire import count

SPEC = {"seed": 1, "budget": "100tok", "flop_per_token": None, "checkpoint": None, "curve": None}


class Talk:
    """One end of a line to `role`, which runs in a thread; its result after `close`."""

    def __init__(self, role: Any, data: Path, spec: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self.link, served = Connection(ours.detach()), Connection(theirs.detach())
        self.result: dict[str, Any] = {}

        def serve() -> None:
            self.result = role(served, Data.load(data), spec)
            served.close()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def ask(self, message: bytes) -> dict[str, Any]:
        self.link.send_bytes(message)
        answer: dict[str, Any] = json.loads(self.link.recv_bytes())
        if answer.get("shape"):
            self.link.recv_bytes()
        return answer

    def close(self) -> dict[str, Any]:
        self.link.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.result


@pytest.mark.parametrize(
    "message",
    [
        b"x", b"[1]", b"[" * 60_000, b"{}", b'{"op": 7}', b'{"op": "next", "B": Infinity, "T": 1}',
        b'{"op": "next", "B": "\xc3\x28", "T": 1}', b'{"op": "next", "B": 1, "T": ' + b"9" * 5_000 + b"}",
        b'{"op": "measured", "flop_per_token": NaN}', b'{"op": "measured", "flop_per_token": -1}',
        b'{"op": "measured", "flop_per_token": true}', b'{"op": "rehearsed", "forward_flop_per_token": 1e400}',
        b'{"op": "log", "row": 7}', b'{"op": "seal", "config": null, "bytes": -1}',
        b'{"op": "seal", "config": null, "bytes": 1e30}',
        b'{"op": "seal", "bytes": 0, "config": ' + b"[" * (MAX_OPENINGS + 1) + b"]" * (MAX_OPENINGS + 1) + b"}",
    ],
    ids=range(16),
)  # fmt: skip
def test_what_cannot_be_understood_is_answered_and_changes_nothing(data: Path, message: bytes) -> None:
    talk = Talk(feed, data, {**SPEC, "smoke": True})
    assert "error" in talk.ask(message)
    assert talk.ask(b'{"op": "next", "B": 1, "T": 8}')["tokens"] == 8
    result = talk.close()
    assert (result["described"], result["flop_per_token"], result["tokens"]) == (None, None, 8)


def test_what_steps_cost_is_unknown_only_where_we_look_at_shapes(data: Path) -> None:
    """Or a run would leave the FLOPs of its forward pass out, and nothing would be compared in scoring."""
    unknown = b'{"op": "rehearsed", "forward_flop_per_token": null, "shapes_mb": 1.5, "shapes": true}'
    real = Talk(feed, data, {**SPEC, "smoke": True, "shapes": False})
    assert "error" in real.ask(unknown)
    assert not {"forward_flop_per_token", "shapes_mb"} & set(real.close())
    look = Talk(feed, data, {**SPEC, "smoke": True, "shapes": True})
    assert "error" not in look.ask(unknown)
    found = look.close()
    assert (found["forward_flop_per_token"], found["shapes_mb"]) == (None, 1.5)


def test_a_checkpoint_that_breaks_off_leaves_nothing(data: Path, tmp_path: Path) -> None:
    talk = Talk(feed, data, {**SPEC, "checkpoint": str(tmp_path / "model")})
    talk.link.send_bytes(b'{"op": "seal", "config": {}, "bytes": 1000}')
    talk.link.send_bytes(b"x" * 10)
    assert talk.close()["sealed_after"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_curve_holds_numbers_only_and_so_many(data: Path, tmp_path: Path) -> None:
    talk = Talk(feed, data, {**SPEC, "curve": str(tmp_path / "curve")})
    talk.ask(json.dumps({"op": "log", "row": {"loss": 1.5, "text": "y" * 60_000, "step": 1}}).encode())
    talk.ask(b'{"op": "log", "row": {"loss": NaN}}')
    assert [json.loads(row) for row in (tmp_path / "curve").read_text().splitlines()] == [
        {"loss": 1.5, "step": 1},
        {"loss": None},
    ]
    talk.close()
    assert CURVE_BYTES < 1 << 30


def test_who_never_draws_the_end_may_not_train_on_for_ever(data: Path) -> None:
    talk = Talk(feed, data, SPEC)
    for _ in range(3):
        talk.ask(b'{"op": "next", "B": 1, "T": 8}')
    threading.Event().wait(1.0)
    talk.ask(b'{"op": "seal", "config": {}, "bytes": 0}')
    assert talk.close()["sealed_after"] > 0.8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1.0, True, None, "1", 10**400])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        count(value)


def answering(talk: Talk, vocabulary: int) -> list[tuple[list[int], np.ndarray]]:
    """Play a model of uniform logits to the end; what was asked: places (none of a referee) and rows."""
    asked = []
    while True:
        facts = json.loads(talk.link.recv_bytes())
        if facts["shape"] is None:
            talk.link.send_bytes(b"[1]")
            talk.close()
            return asked
        rows = np.frombuffer(talk.link.recv_bytes(), "<u2").reshape(facts["shape"])
        asked.append((facts.get("at"), rows))
        shape = (len(rows), vocabulary) if "at" in facts else (len(rows), rows.shape[1] - 1)
        value = 0.0 if "at" in facts else np.log(vocabulary)
        talk.link.send_bytes(np.full(shape, value, "<f4").tobytes())


def test_no_question_shows_the_answer_of_a_later_one(data: Path, tmp_path: Path) -> None:
    scored = Talk(referee, data, {"split": "val", "nats": str(tmp_path / "nats.npy")})
    answering(scored, 257)
    assert "forward_flop_per_token" not in scored.result  # `[1]` is no note
    spec = {"split": "val", "nats": str(tmp_path / "nats.npy"), "seed": 3, "probes": 200}
    asked = answering(talk := Talk(audit, data, spec), 257)
    assert talk.result["worst"] < 1e-5
    places = [place for at, _ in asked for place in at]
    assert len(places) == 200
    assert places == sorted(places)
    rows = Data.load(data).rows("val")
    shown = np.concatenate([part for _, part in asked])
    for place, row in zip(places, shown, strict=True):
        assert any((known[: place + 1] == row[: place + 1]).all() for known in rows)
    unchanged = sum(any((known == row).all() for known in rows) for row in shown)
    assert unchanged < 20  # the end of a row may be that of another one by chance


def test_an_impossible_special_token_is_no_fault_and_any_other_is(data: Path) -> None:
    bos = Data.load(data).meta["bos_id"]
    for hide, fails in ((bos, False), (None, True)):
        talk = Talk(referee, data, {"split": "val"})
        while True:
            facts = json.loads(talk.link.recv_bytes())
            if facts["shape"] is None:
                break
            rows = np.frombuffer(talk.link.recv_bytes(), "<u2").reshape(facts["shape"])
            nats = np.full((len(rows), rows.shape[1] - 1), 2.0, "<f4")
            nats[rows[:, 1:] == bos if hide is not None else rows[:, 1:] != bos] = np.inf
            try:
                talk.link.send_bytes(nats.tobytes())
            except BrokenPipeError:
                break
            if fails:
                break
        assert ("error" in talk.close()) == fails
