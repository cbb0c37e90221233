import threading

import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from adaface.system.quiet import quiet_event_writer


def test_an_error_of_the_event_writer_is_raised_and_not_printed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail(*_args: object) -> None:
        raise FileNotFoundError("the folder is gone")

    with quiet_event_writer():
        writer = EventFileWriter(str(tmp_path))
        monkeypatch.setattr(RecordWriter, "write", fail)
        writer._async_writer.write(b"an event")
        writer._async_writer._worker.join()
        with pytest.raises(FileNotFoundError, match="the folder is gone"):
            writer.flush()
        assert told == []
        other = threading.Thread(target=fail)
        other.start()
        other.join()
    assert [args.thread for args in told] == [other]
