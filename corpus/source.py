"""What a data set is to the builder: a name, an identity, and shards of documents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Documents that are read together.

    `split` is "train", "val" or "held", or None where each document's own hash decides; `read` starts from the first
    document every time and always gives the same ones.
    """

    name: str
    split: str | None
    read: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Source:
    """`identity` is cheap and determines the content; `open` may download, and gives the shards in a fixed order."""

    name: str
    identity: str
    open: Callable[[], list[Shard]]
    eval_share: float = 0.05  # of documents placed by hash, for each of val and held
