"""What a batch engine tells the server: pieces of streams, of whole answers that they began."""

from __future__ import annotations

import pytest
from helpers import BUNDLED, Converter

from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Piece, Record, Result
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
from infer_os.serve.batch_seat import BatchSeat

_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")


@pytest.mark.parametrize("streams", [True, False])
def test_pieces_of_a_record(converted: Converter, streams: bool) -> None:
    engine = BatchEngine(
        converted(_MODEL, "q8_0"), EngineSettings(128, threads=2), BatchSettings(2)
    )
    seat = BatchSeat(engine)
    record = Record("a", 1, SamplingSettings(temperature=0), StopSettings(8), "It is", n=2)
    seat.submit(record, seat.prompt_tokens(record), streams=streams)
    while seat.step(lambda: None):
        pass
    events = seat.take()
    seat.close()
    pieces = [event for event in events if isinstance(event, Piece)]
    first, second = (event for event in events if isinstance(event, Result))
    assert first.text == second.text
    if streams:
        for result in (first, second):
            own = [piece.text for piece in pieces if piece.index == result.index]
            assert "".join(own) == result.text and len(own) > 4
    else:
        assert len(pieces) == 1 and first.text.startswith(pieces[0].text)
