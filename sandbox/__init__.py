"""Runs one command safely and says what happened. Has not heard of `agent`; standard library only."""
