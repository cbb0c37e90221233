"""One of W processes under the watch, which ends as it is told, for test_process_watch.py.

python watch_worker.py RANK W PORT HOW_IT_ENDS

The others wait, not for a collective but for nothing, as on a GPU whose collective never returns.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import torch.distributed as dist

from agreement import ToldError
from callbacks import InterruptedTrainingError
from process_watch import ProcessWatch


def end(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "forked":  # a data worker lives on for a while
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise ValueError("its own error")
    if how == "interrupted":
        raise InterruptedTrainingError("last.ckpt")
    if how == "gloo":  # what a collective raises where another process is gone
        time.sleep(0.2)
        raise RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    if how == "timeout":
        raise RuntimeError("Timed out waiting 1000ms for recv operation to complete")
    if how == "waits":
        time.sleep(60)


def main(rank: int, W: int, port: str, how: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=W, timeout=timedelta(seconds=30))
    watch = ProcessWatch({"--lr": 0.1}, lambda: "go on so", 7.0)
    trainer = SimpleNamespace(world_size=W, strategy=SimpleNamespace(launcher=None))
    try:
        with watch:
            watch.setup(trainer, None, "fit")
            watch.setup(trainer, None, "test")
            dist.barrier()
            end(how)
    except ToldError:
        sys.exit(12)
    print("left", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
