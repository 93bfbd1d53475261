"""Two processes of a made-up training for each fault, started by forking: torch is imported once.

Prints JSON: for each fault, by process, the exit status (-99: it hung) and what it said.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from opensora.acceleration.heartbeat import phase
from opensora.acceleration.parallel import all_reduce_mean, init_distributed, shut_down
from opensora.acceleration.watchdog import Watchdog
from opensora.utils.user_errors import one_line_errors

LIMIT_S, STEPS, AT = 6.0, 400, 20
FAULTS = {"none": None, "killed": "forward", "stopped": "encode", "fails": "data", "hangs": "backward"}


def strike(fault: str) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "fails":
        raise ValueError("clips/7.mp4: cannot be read; remove it.")
    if fault == "hangs":
        time.sleep(1000)


def train(fault: str, folder: Path) -> None:
    with one_line_errors():
        try:
            rank = init_distributed("cpu").rank
            with Watchdog(folder, LIMIT_S):
                for step in range(40 if fault == "none" else STEPS):
                    for name in ("data", "encode", "forward", "backward"):
                        phase(name, step if name == "data" else None)
                        if rank == 1 and step == AT and FAULTS[fault] == name:
                            strike(fault)
                        time.sleep(0.02)
                    all_reduce_mean(1.0)
        finally:
            shut_down()


def child(fault: str, folder: Path, rank: int, port: int) -> None:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({key: str(value) for key, value in place.items()})
    status, output = 1, os.open(folder / f"said{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        train(fault, folder)
        status = 0
    except SystemExit as end:
        status = int(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main(folder: Path, faults: list[str]) -> None:
    started, children, ended = time.monotonic(), {}, {}
    for fault in faults:
        (folder / fault).mkdir()
        port = free_port()
        for rank in (0, 1):
            pid = os.fork()
            if not pid:
                child(fault, folder / fault, rank, port)
            children[pid] = (fault, rank)
    while set(children) - set(ended) and time.monotonic() < started + 300:
        for pid in set(children) - set(ended):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
                fault, rank = children[pid]
                if fault == "stopped" and rank == 0:  # nobody else ends it
                    os.kill(next(p for p, who in children.items() if who == (fault, 1)), signal.SIGKILL)
        time.sleep(0.05)
    for pid in set(children) - set(ended):
        os.kill(pid, signal.SIGKILL)
        ended[pid] = -99
    told = {fault: [None, None] for fault in faults}
    for pid, (fault, rank) in children.items():
        told[fault][rank] = [ended[pid], (folder / fault / f"said{rank}").read_text()]
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
