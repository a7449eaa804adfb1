from dataclasses import replace
from pathlib import Path

from agent.folder import SessionFolder
from agent.memory import Memory
from agent.values import Record, Status

ROW = Record("0123456", 1.58162574, 0.4321, Status.KEEP, "longer\twarm-down", trial=0, sigma=0.123456789)


def test_what_a_session_believes_is_what_the_next_one_reads(tmp_path: Path) -> None:
    folder, said = SessionFolder(tmp_path, "t"), list[str]()
    first = Memory(folder, said.append, "cpu")
    first.recall()
    first.record(ROW)
    again = Memory(folder, said.append, "cpu")
    assert again.recall() == []
    assert (
        first.records == again.records == [replace(first.records[0], val_bpb=1.581626, description="longer warm-down")]
    )
