"""What the pages of `holdfast view` cost: a folder of 1,000 runs, and a run of 1,000,000 rows.

    PYTHONPATH=src:tests python benchmarks/view.py [FOLDER]

Makes the folders (default: a temporary one), serves them in a process of its own, and asks as a
browser does. Prints CPU seconds of the server for each page, and its memory. The list is asked for
by a server that has just started, then again.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from helpers.made_up_runs import make

RUNS, ROWS = 1000, 1_000_000
LIST = ("/", "/", "/?sort=-robust", "/?text=run-9&sort=cost", "/?page=10")
TABLE = (
    "/run/large",
    "/run/large",
    "/samples/large",
    "/samples/large?page=10000",
    "/samples/large?sort=-size",
    "/samples/large?sort=-size&page=5000",
    "/samples/large?sort=status",
    "/samples/large?status=broken&label=3&size_from=0.1&sort=margin",
    "/samples/large?status=broken&label=3&size_from=0.1&sort=margin&page=3",
    "/samples/large?id_from=500000&id_to=500050",
    "/csv/large?status=broken&label=3",
)
TICK = os.sysconf("SC_CLK_TCK")


def main(folder: Path) -> None:
    many, one = folder / "many", folder / "one"
    if not many.exists():
        make(many / "run-0000", classes=10)
        for i in range(1, RUNS):
            shutil.copytree(many / "run-0000", many / f"run-{i:04d}")
    if not one.exists():
        make(one / "large", n=ROWS, classes=10)
    for shown, pages in ((many, LIST), (one, TABLE)):
        ask(shown, pages)


def ask(folder: Path, pages: tuple[str, ...]) -> None:
    """Start a server, and print what each page takes of it."""
    code = "from holdfast.cli.main import main; main()"
    command = [sys.executable, "-c", code, "view", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        at = urlsplit(server.stdout.readline().decode().strip())
        cookie = f"holdfast-view-{at.port}={at.query.removeprefix('token=')}"
        print(f"\n{folder.name}: {spent(server.pid):.2f} s to start, {memory(server.pid)} MB")
        for page in pages:
            before = spent(server.pid)
            connection = http.client.HTTPConnection("127.0.0.1", at.port)
            connection.request("GET", page, headers={"Cookie": cookie})
            answer = connection.getresponse()
            size = len(answer.read())
            connection.close()
            seconds = spent(server.pid) - before
            print(f"{seconds:5.2f} s {size / 1024:8.0f} KiB {memory(server.pid):4} MB  {page}")
            assert answer.status == 200, answer.status
        server.terminate()


def spent(pid: int) -> float:
    """CPU seconds of a process, of all its threads."""
    said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(said[11]) + int(said[12])) / TICK


def memory(pid: int) -> int:
    """The most memory that a process has held, in MB."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(said.partition("VmHWM:")[2].split()[0]) // 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
