"""What a session begins with: its baseline, or what an earlier run has left. The loop does what follows from it."""

from __future__ import annotations

from agent.desk import REPAIRS, Desk, Draft
from agent.folder import SessionFolder
from agent.memory import CutOff, Memory
from agent.recording import CUT_OFF
from agent.repo import Repo, trial_ref
from agent.trial import Bench
from agent.values import Candidate, Trial


def baseline(repo: Repo, folder: SessionFolder, code: Candidate) -> Trial:
    """The unchanged code is trial 0: what every other one is measured against."""
    repo.create_ref(trial_ref(folder.tag, 0), code.parent)
    folder.trial(0).write_proposal(code.proposal, 0.0)
    folder.trial(0).write_candidate(code, code.parent)
    return Trial(0, code.parent, code)


def crash_left(memory: Memory, desk: Desk) -> tuple[Draft | None, str]:
    """A crash in the last row, to be told and sent back as if the session had not stopped behind it.

    The draft that its proposer may mend, None without one; and the end of the log, "" without a crash.
    """
    if (left := memory.last_crash()) is None:
        return None, ""
    proposal, failure, in_a_row = left
    proposer, times = desk.named(proposal.proposer), (in_a_row - 1) % (1 + REPAIRS) + 1  # of one idea
    if proposer is None or times > REPAIRS:
        return None, failure
    return Draft(proposer, proposal, failure, crashes=times), failure


def taken_up(left: CutOff, memory: Memory, desk: Desk, bench: Bench) -> tuple[Trial | None, Draft]:
    """What was cut off: the trial with the runs that it has, None where it was only paid for; and its draft."""
    proposer = desk.named(left.proposal.proposer) if left.proposal else None
    draft = Draft(proposer or desk.proposers[0], left.proposal, CUT_OFF, left.cost_usd)
    if left.candidate is None or left.commit is None:
        return None, draft
    runs = bench.finished(memory.folder.trial(left.number))
    how = f"going on after {len(runs)} of its runs" if runs else "running it again"
    memory.say(f"trial {left.number} was cut off: {how}")
    return Trial(left.number, left.commit, left.candidate, runs), draft
