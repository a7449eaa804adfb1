"""Proposals from CMA-ES over all knobs at once; on some trials a language model may override its suggestion.

The optimiser is a function of the tells on disk, and every draw has a seed of its own, so a killed session goes on with
the very suggestion that it would have had. When the code changes by another's edit, the search begins anew around the
new incumbent, with the shape that was learned on the knobs that are still there: knobs follow the code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from agent import prompt
from agent.clients.base import Client, Conversation, Message, Reply, estimate
from agent.constants import Value, find, render
from agent.errors import ProviderError, ProviderRefused, ReplyError
from agent.proposers.axis import settled
from agent.proposers.centaur import brief
from agent.proposers.centaur.override import TOOL, read
from agent.proposers.centaur.search import Origin, moved
from agent.proposers.centaur.state import CHANCE, CMAES, INCUMBENT, MODEL, ORIGIN, Answer, Asked, State, load, save
from agent.proposers.cube import Array, Cube, bins
from agent.proposers.point import applied, digest, edits_of, heading, score, skeleton
from agent.recording import CUT_OFF
from agent.values import History, Proposal, Record, Status

NAME = "centaur"
FRACTION = Fraction(3, 10)  # of the trials a model may override
WARM_UP = 10  # results before it is asked
GUIDED, ATTEMPTS = 20, 60  # draws by CMA-ES, and in all, before the space counts as exhausted
SHOWN = 5  # changed constants that a description names
USUAL_ANSWER = 1_000  # tokens, thinking included
MAX_PROBLEM = 4_000  # characters of a problem that go back to the model
UNREADABLE = "a reply without readable knobs"
AGAIN = "These values cannot be used. Correct them and send them again, all that shall differ from the suggestion."


@dataclass(frozen=True)
class _Turn:
    """What a proposal is about. talk: the conversation with the model, while it may be asked once more."""

    source: str
    cube: Cube
    talk: Conversation | None = None


class Centaur:
    """Implements agent.values.Proposer. A proposal's key is the number of its point."""

    name = NAME

    def __init__(
        self, state: Path, device: str, *, client: Client | None = None, target: str = "train.py", seed: int = 42,
        direction: str = "min", say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """state: a folder of this proposer's own. client: None for CMA-ES alone. say: for a person, one line."""
        self._file = state / "centaur.json"
        self._device, self._target, self._seed, self._say = device, target, seed, say
        self._client = client
        self._sign = 1 if direction == "min" else -1
        self._state = load(self._file)
        self._turns: dict[str, _Turn] = {}

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """The next point, or one that a kill has lost. ProviderRefused when none is left; ReplyError from a model."""
        turn, self._state = self._follow(history)
        if not turn.cube.axes:
            raise ProviderRefused(_exhausted(self._target))
        asked = self._lost(in_flight) or self._drawn(turn)
        self._keep(self._state.with_asked(asked))
        self._turns[asked.key] = turn
        if self._client is None or asked.by != CMAES or not overrides(asked.number, self._state.results):
            return self._proposal(asked, turn)
        talk = brief.build(history, self._state, self._state.search(), turn.cube, asked)
        return self._exchange(self._client, asked, replace(turn, talk=talk), talk.as_text())

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """A model is asked once more, then CMA-ES's own suggestion stands in. Its points have nothing to mend."""
        asked, turn = self._state.waits(proposal.key), self._turns.get(proposal.key)
        if asked is None or turn is None:
            return None
        if turn.talk is not None and self._client is not None:
            said = f"{AGAIN}\n\n{prompt.fence('what is wrong', prompt.tail(problem, MAX_PROBLEM))}"
            answer = Message("user", said, tool_call=turn.talk.turns[-1].tool_call)
            return self._exchange(self._client, asked, replace(turn, talk=turn.talk.then(answer)), said, last=True)
        return self._own(asked, turn) if asked.by == MODEL else None

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Every result is told, an override's and a failure's as well. What never came to be is proposed again."""
        asked = self._state.waits(proposal.key)
        self._turns.pop(proposal.key, None)
        never = record.status == Status.REJECT and (record.reason == CUT_OFF or not proposal.edits)
        if asked is None or never:
            return
        self._keep(self._state.with_told(self._answer(asked, record)))

    def expected_usd(self, history: History) -> float | None:
        """Dollars of a proposal, on average over those that a model is asked about and the others."""
        if self._client is None:
            return None
        turn, state = self._follow(history)
        if not turn.cube.axes:
            return None
        here = self._asked(state, turn, CMAES, state.search().mean)
        asked = estimate(brief.build(history, state, state.search(), turn.cube, here), "")
        return float(FRACTION) * self._client.price(replace(asked, output_tokens=USUAL_ANSWER))

    # ── where it searches ────────────────────────────────────────────────────────────────────────────────────────────

    def _follow(self, history: History) -> tuple[_Turn, State]:
        """The state, moved to the incumbent's code if that is new. Nothing is written."""
        ranges: dict[str, list[Any]] = dict(self._state.ranges)
        source = history.sources[self._target]
        cube = self._cube(source, ranges)
        turn, state = _Turn(source, cube), replace(self._state, ranges=ranges)
        if not cube.axes:
            return turn, state
        names = tuple(axis.name for axis in cube.axes)
        origin = Origin.of(skeleton(self._target, source, self._device, names), cube)
        if not state.origins:
            state = replace(state, origins=(origin,))
            return turn, self._enrolled(state, turn, history.incumbent, ORIGIN)
        old = state.origins[-1]
        if (old.skeleton, old.keys) == (origin.skeleton, origin.keys):
            return turn, self._enrolled(state, turn, history.incumbent, INCUMBENT)
        state = replace(state, origins=(*state.origins, moved(old, state.tells(), origin)))
        return turn, self._enrolled(state, turn, history.incumbent, ORIGIN)

    def _cube(self, source: str, ranges: dict[str, list[Any]]) -> Cube:
        constants = find(source, self._device)
        axes = [settled(constant, constant.range, ranges) for constant in constants if constant.range is not None]
        return Cube(tuple(axis for axis in axes if bins(axis) != 1))

    def _enrolled(self, state: State, turn: _Turn, now: Record | None, by: str) -> State:
        """With the incumbent as a point, where it is not known yet: another proposer may have turned the knobs."""
        known = {asked.digest for asked in state.asked if asked.search == state.here}
        if now is None or now.val_bpb is None or digest(turn.source) in known:
            return state
        here = self._asked(state, turn, by, turn.cube.now)
        return state.with_asked(here).with_told(self._answer(here, now))

    # ── a point ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lost(self, in_flight: Sequence[Proposal]) -> Asked | None:
        """A point without a result that nobody tries: it went down with a session, and is as good as ever."""
        alive = {proposal.key for proposal in in_flight if proposal.proposer == NAME}
        return next((asked for asked in self._state.open() if asked.key not in alive), None)

    def _drawn(self, turn: _Turn) -> Asked:
        """A suggestion whose values were not tried yet; by chance where CMA-ES repeats itself."""
        search, tried = self._state.search(), {asked.digest for asked in self._state.asked} | {digest(turn.source)}
        for attempt in range(ATTEMPTS):
            seed = f"{self._seed} {self._state.here} {len(self._state.asked)} {attempt}"
            if attempt < GUIDED:
                asked = self._asked(self._state, turn, CMAES, *search.draw(seed))
            else:
                rng = random.Random(seed)
                asked = self._asked(self._state, turn, CHANCE, np.array([rng.random() for _ in turn.cube.axes]))
            if asked.digest not in tried:
                return asked
        raise ProviderRefused(_exhausted(self._target))

    def _asked(self, state: State, turn: _Turn, by: str, place: Array, drawn: Array | None = None) -> Asked:
        """A new point. drawn: as CMA-ES wants it told, where that is not its place in the cube."""
        at, told = tuple(place.tolist()), tuple((place if drawn is None else drawn).tolist())
        new = Asked(len(state.asked), state.here, by, told, at, at, "", {})
        return self._placed(new, turn, by, place)

    def _placed(self, asked: Asked, turn: _Turn, by: str, place: Array) -> Asked:
        values = turn.cube.decode(place)
        edits = edits_of(self._target, turn.source, self._device, values)
        found = digest(applied(self._target, turn.source, edits))
        said = {name: render(value) for name, value in values.items()}
        return replace(asked, by=by, place=tuple(place.tolist()), digest=found, values=said)

    def _proposal(self, asked: Asked, turn: _Turn) -> Proposal:
        values = turn.cube.decode(asked.place)
        why = "CMA-ES, from the results so far." if asked.by != MODEL else "A model, in the place of CMA-ES."
        edits = edits_of(self._target, turn.source, self._device, values)
        return Proposal(
            edits, _described(turn.cube, asked), why, category="hyperparameter", proposer=NAME, key=asked.key
        )

    # ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _exchange(self, client: Client, asked: Asked, turn: _Turn, sent: str, *, last: bool = False) -> Proposal:
        """Ask it. What it cost is in the proposal, or in the one that the ReplyError has salvaged."""
        assert turn.talk is not None, "there is something to send"
        try:
            reply = client.complete(turn.talk, TOOL)
        except ProviderError as error:
            return replace(self._without_model(asked, turn, error), prompt=sent, cost_usd=error.cost_usd)
        self._turns[asked.key] = replace(turn, talk=None if last else turn.talk.then(reply.as_message()))
        try:
            override = read(reply, turn.cube)
        except ReplyError as error:
            if last:
                return _charged(self._own(asked, turn), sent, reply)
            bare = Proposal((), UNREADABLE, category="hyperparameter", proposer=NAME, key=asked.key)
            raise ReplyError(str(error), proposal=_charged(bare, sent, reply)) from error
        made = self._proposal(self._chosen(asked, turn, override.values), turn)
        return _charged(replace(made, hypothesis=override.why or "No reason was given."), sent, reply)

    def _chosen(self, asked: Asked, turn: _Turn, values: Mapping[str, Value]) -> Asked:
        """The suggestion with the model's values in it; nobody's override where they are the same."""
        own = turn.cube.decode(asked.own)
        wanted = own | dict(values)
        by = CMAES if wanted == own else MODEL
        chosen = self._placed(asked, turn, by, turn.cube.encode(wanted))
        self._keep(self._state.with_asked(chosen))
        return chosen

    def _own(self, asked: Asked, turn: _Turn) -> Proposal:
        """CMA-ES's suggestion after all."""
        self._turns[asked.key] = replace(turn, talk=None)
        return self._proposal(self._chosen(asked, turn, {}), turn)

    def _without_model(self, asked: Asked, turn: _Turn, error: ProviderError) -> Proposal:
        """The night goes on with CMA-ES. After a refusal the model is not asked again."""
        if isinstance(error, ProviderRefused):
            self._client = None
            self._say(f"{NAME}: {error}; going on with CMA-ES alone")
        return self._own(asked, turn)

    # ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, asked: Asked, record: Record) -> Answer:
        measured = score(record)
        measured = heading(record) if measured is None else measured
        value = None if measured is None else self._sign * measured
        return Answer(asked.number, value, record.trial, record.status)

    def _keep(self, state: State) -> None:
        self._state = state
        save(self._file, state)


def overrides(number: int, results: int) -> bool:
    """Whether a model may override the point of that number: on FRACTION of them, evenly spread, once warm."""
    return results >= WARM_UP and math.floor(FRACTION * (number + 1)) > math.floor(FRACTION * number)


def _charged(proposal: Proposal, sent: str, reply: Reply) -> Proposal:
    received = "\n\n".join(filter(None, (reply.text, reply.tool_arguments)))
    return replace(proposal, prompt=sent, reply=received, cost_usd=reply.cost_usd)


def _described(cube: Cube, asked: Asked) -> str:
    """The constants that it changes, those first that go farthest."""
    now = {axis.name: render(axis.constant.value) for axis in cube.axes}
    far = {axis.name: abs(there - here) for axis, there, here in zip(cube.axes, asked.place, cube.now, strict=True)}
    changed = sorted((name for name in now if asked.values[name] != now[name]), key=lambda name: -far[name])
    steps = [f"{name} {now[name]} -> {asked.values[name]}" for name in changed[:SHOWN]]
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return ", ".join(steps) + more


def _exhausted(target: str) -> str:
    return (
        f"{NAME}: expected constants in {target} left to vary, found none or all points tried; "
        "widen their `# range:` comments or take another proposer"
    )
