"""Trains the tiny model in processes that can be killed: imports once, then forks a child for each line it
reads.

A line is JSON {"folder", "words", "status"}: the child works in the folder, runs the words of a command line,
and writes its exit code to STATUS. The answer is the child's process id.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

# What training imports, so that children start at once. No tensor is computed here: children inherit no
# threads.
import mixport.pipeline.training.train_model
from mixport.cli.program import run


def work(job: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.chdir(job["folder"])
    code = run(json.loads(job["words"]))
    status = Path(job["status"])
    beside = status.with_suffix(".new")
    beside.write_text(str(code))
    beside.replace(status)


def main() -> None:
    # Children are not waited for: who sent the line watches STATUS and the process id.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work(json.loads(line))
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    assert mixport.pipeline.training.train_model
    main()
