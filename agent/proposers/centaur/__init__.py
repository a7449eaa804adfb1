"""CMA-ES over all knobs at once, with a language model that overrides some of its suggestions."""

from agent.proposers.centaur.centaur import Centaur

__all__ = ["Centaur"]
