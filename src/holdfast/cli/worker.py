"""A worker: one command on one shard, for `cli/workers.py`, which draws the bar of progress.

Its standard input begins with a line that says what is to be run, and the worker ends when that
input does; so none outlives who started it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import threading

import typer

from holdfast import memory, quiet
from holdfast.cli import writing
from holdfast.cli.command import guarded, with_shared_options
from holdfast.cli.main import COMMANDS


def main() -> None:
    # written by the process that started this one
    name, given, argv = pickle.loads(base64.b64decode(sys.stdin.readline()))
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(130)), daemon=True).start()
    line, sys.stdout = sys.stdout, sys.stderr  # what frameworks print is not for the listener
    writing.listener = lambda p: print(json.dumps(p), file=line, flush=True)
    sys.argv = argv
    quiet.silence_frameworks()
    memory.manage()
    try:
        guarded(with_shared_options(COMMANDS[name]))(**given)
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
