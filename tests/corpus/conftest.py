"""What the data tests share: a hub that can misbehave, and some text of one's own."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import CLIMBMIX, HubServer, parquet, texts


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A running hub without files."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def climbmix(hub: HubServer) -> HubServer:
    """A hub with three training shards of about 1.5 MB, and small shards for validation and held-back text."""
    files = hub.files[CLIMBMIX]
    for number in range(3):
        files[f"shard_{number:05d}.parquet"] = parquet(texts(2_500, seed=number))
    files["shard_06541.parquet"] = parquet(texts(150, seed=6541))
    files["shard_06542.parquet"] = parquet(texts(150, seed=6542))
    return hub


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A folder of text of one's own: 200 documents in 40 files."""
    folder = tmp_path / "prose"
    folder.mkdir()
    for number in range(40):
        (folder / f"part{number:02d}.txt").write_text("\n\n".join(texts(24, seed=number)), encoding="utf-8")
    return folder
