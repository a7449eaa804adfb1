"""Everything that may go wrong, as one tree; the class decides what the loop does about it.

    OvernightError
    ├── UsageError          the user asked for something that cannot be        exit 2
    ├── StateError          repository, ledger, data or disk is not usable     exit 1, resumable
    ├── ProposalError       this proposal cannot become a trial                repair at most twice, then reject
    │   ├── ReplyError          the reply held no edits that could be read
    │   ├── PatchError          an edit does not fit the source
    │   ├── PreflightError      the candidate breaks the contract
    │   ├── DuplicateError      it was tried before
    │   ├── SteeringError       more of what has led nowhere
    │   └── SmokeError          two small steps of it fail
    ├── ProviderError       whoever makes proposals cannot be reached
    │   ├── ProviderRefused     400 401 403 404, unknown model or price        pause it, others go on, else exit 1
    │   └── ProviderOverloaded  408 409 429 5xx 529 after all retries          back off and ask again
    └── Waiting             a proposer's runs in flight decide what follows    ask another, else wait for a run

Anything else propagates: the session stays resumable and the command exits 1 with the traceback.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.values import Proposal


class OvernightError(Exception):
    """Base of all errors meant for a person. The text is one line: expected, found, what to do."""

    exit_code = 1


class UsageError(OvernightError):
    exit_code = 2


class StateError(OvernightError):
    pass


class ProposalError(OvernightError):
    """This proposal cannot become a trial.

    proposal: what was salvaged of it (prompt, reply, cost) when the failure came before a Proposal existed.
    """

    def __init__(self, message: str, proposal: Proposal | None = None) -> None:
        super().__init__(message)
        self.proposal = proposal


class ReplyError(ProposalError):
    pass


class PatchError(ProposalError):
    pass


class PreflightError(ProposalError):
    pass


class DuplicateError(ProposalError):
    pass


class SteeringError(ProposalError):
    pass


class SmokeError(ProposalError):
    pass


class ProviderError(OvernightError):
    """Whoever makes proposals cannot be reached.

    cost_usd: dollars already spent in the conversation that failed and not yet charged to any proposal.
    """

    def __init__(self, message: str, cost_usd: float = 0.0) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd


class ProviderRefused(ProviderError):
    pass


class ProviderOverloaded(ProviderError):
    """retry_after: seconds that it asked to be left alone, 0 where it named none."""

    def __init__(self, message: str, cost_usd: float = 0.0, retry_after: float = 0.0) -> None:
        super().__init__(message, cost_usd)
        self.retry_after = retry_after


class Waiting(OvernightError):
    pass


def because(error: OSError) -> str:
    """What the system said, and what to do about it."""
    advice = {
        errno.ENOSPC: "free some disk space and resume",
        errno.EDQUOT: "free some of your disk quota and resume",
        errno.EFBIG: "raise the file size limit (ulimit -f) and resume",
        errno.EACCES: "make it accessible to you (chmod)",
        errno.EROFS: "mount it writable or work elsewhere",
        errno.ENOENT: "check the path",
    }
    return f"{error.strerror or error}; {advice.get(error.errno or 0, 'check the path and the disk')}"
