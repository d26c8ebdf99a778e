"""
The real agent, started as pam_exec starts it.

The agent takes a configuration file from its environment only from somebody with a terminal, so it is started by a
small process of ours that has one (``python -m benchmarks.agents``) and says when each run began and ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import socket
import statistics
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.report import Report, Result
from benchmarks.server import temporary_directory
from tests.agent.scripted import SECRET as SCRIPTED_SECRET
from tests.agent.scripted import Request, ScriptedServer, approved, created
from tests.e2e.server import REPOSITORY, SHARED_SECRET

ARCHIVE = REPOSITORY / "build" / "identree.pyz"
SYSTEM_PYTHON = "/usr/bin/python3"
RUNS = 5
STARTS_PER_RUN = 20

# The prompt of break-glass, in English; and how long it is waited for.
BREAKGLASS_PROMPT = b"break-glass password: "
PROMPT_SECONDS = 60.0


def user(number: int) -> str:
    return f"agent-{number}"


class Starter:
    """The process with a terminal; talks in lines of JSON."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave  # open, or the terminal would hang up between two agents

        def own_the_terminal() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agents"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=own_the_terminal,
        )

    def tell(self, **order: object) -> None:
        stdin: Any = self._process.stdin
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()

    def read_terminal(self, wanted: bytes, seconds: float) -> float:
        """
        When the terminal had been sent ``wanted``, on the clock of all processes.

        :raise RuntimeError: it was not within ``seconds``.
        """
        shown, until = b"", time.perf_counter() + seconds
        while wanted not in shown:
            if not select.select([self._master], [], [], max(0.0, until - time.perf_counter()))[0]:
                raise RuntimeError(f"the terminal did not show {wanted!r} but {shown!r}")
            shown += os.read(self._master, 65536)
        return time.perf_counter()

    def type(self, typed: bytes) -> None:
        os.write(self._master, typed)

    def hear(self) -> Any:
        stdout: Any = self._process.stdout
        line = stdout.readline()
        if not line:
            raise RuntimeError("the process that starts agents has ended")
        return json.loads(line)

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()
        os.close(self._slave)
        os.close(self._master)


def write_conf(directory: Path, url: str, secret: str, more: str = "") -> Path:
    """:param more: further lines."""
    path = directory / "client.conf"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(
            f"IDENTREE_SERVER_URL={url}\nIDENTREE_SHARED_SECRET={secret}\nIDENTREE_HOSTNAME=bench-host\n"
            f"IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n{more}"
        )
    return path


def _environment(conf: Path, name: str) -> dict[str, str]:
    return {"PAM_USER": name, "PAM_TYPE": "auth", "PAM_SERVICE": "sudo", "IDENTREE_CLIENT_CONF": str(conf)}


class Agents:
    """Real agents that wait on a real server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._context = temporary_directory()
        self._starter = Starter()
        self._ended: dict[int, tuple[float, int]] = {}

    def __enter__(self) -> Agents:
        self._conf = write_conf(self._context.__enter__(), f"http://127.0.0.1:{self._port}", SHARED_SECRET)
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.close()
        self._context.__exit__(None, None, None)

    def run(self, count: int) -> None:
        """Start them; they run until somebody decides."""
        environments = [_environment(self._conf, user(number)) for number in range(count)]
        self._starter.tell(command=[str(ARCHIVE)], environments=environments, together=True)

    def end_of(self, number: int) -> tuple[float, int]:
        """When it ended, on the clock of all processes, and its exit code. Waits."""
        while number not in self._ended:
            told = self._starter.hear()
            self._ended[told["number"]] = (told["ended"], told["code"])
        return self._ended[number]


def own_time(report: Report) -> None:
    """From the start of the agent to its request at the server, and to the end of an approved sudo."""
    arrived: list[float] = []

    def script(request: Request) -> Any:
        if request.method != "POST":
            return approved()
        arrived.append(time.perf_counter())
        return created()

    server = ScriptedServer(script)
    starter = Starter()
    commands = {
        "agent": [str(ARCHIVE)],
        "python3 -ISB -c pass": [SYSTEM_PYTHON, "-ISB", "-c", "pass"],
        "python3 -c pass": [SYSTEM_PYTHON, "-c", "pass"],
    }
    times: dict[str, list[list[float]]] = {name: [] for name in commands}
    starts: list[list[float]] = []
    try:
        with temporary_directory() as directory:
            conf = write_conf(directory, server.url, SCRIPTED_SECRET)
            environments = [_environment(conf, "alice")] * STARTS_PER_RUN
            for run in range(RUNS + 1):  # the first warms the caches of files
                for name, command in commands.items():
                    starter.tell(command=command, environments=environments, together=False)
                    told = [starter.hear() for _ in environments]
                    if any(one["code"] for one in told):
                        raise RuntimeError(f"{name} ended with {told[0]['code']}")
                    if run and name == "agent":
                        requests = arrived[-len(told) :]
                        starts.append([(at - one["started"]) * 1000 for one, at in zip(told, requests, strict=True)])
                    if run:
                        times[name].append([(one["ended"] - one["started"]) * 1000 for one in told])
    finally:
        starter.close()
        server.stop()
    if sum(1 for request in server.requests if request.method == "POST") < RUNS * STARTS_PER_RUN:
        raise RuntimeError("the agents did not ask the scripted server")
    medians = {name: [statistics.median(run) for run in runs] for name, runs in times.items()}
    report.add(
        Result(
            name="Agent's start, to its request at the server",
            unit="ms",
            target=60,
            digits=1,
            runs=[statistics.median(run) for run in starts],
        )
    )
    report.add(
        Result(
            name="Agent's own time in a sudo",
            unit="ms",
            target=120,
            digits=1,
            runs=medians["agent"],
            peer="; ".join(f"{name} {statistics.median(medians[name]):.1f} ms" for name in list(commands)[1:]),
        )
    )


@contextmanager
def _black_hole() -> Iterator[str]:
    """An address where connections neither succeed nor fail: its queue is full, and nobody takes from it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with suppress(BlockingIOError):
                filling.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def breakglass_decision(report: Report) -> None:
    """From the start of the agent to the break-glass prompt, when packets to the server vanish."""
    starter = Starter()
    times = []
    try:
        with temporary_directory() as directory, _black_hole() as url:
            hash_file = directory / "hash"
            with open(os.open(hash_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write("# compared with what nobody types\n")
            conf = write_conf(directory, url, SCRIPTED_SECRET, f"IDENTREE_BREAKGLASS_FILE={hash_file}\n")
            for _ in range(RUNS):
                starter.tell(command=[str(ARCHIVE)], environments=[_environment(conf, "alice")], together=False)
                asked = starter.read_terminal(BREAKGLASS_PROMPT, PROMPT_SECONDS)
                starter.type(b"\x03")
                told = starter.hear()
                if told["code"] != 1:
                    raise RuntimeError(f"the agent ended with {told['code']}")
                times.append(asked - told["started"])
    finally:
        starter.close()
    report.add(
        Result(
            name="Break-glass prompt, with a black-holed server",
            unit="s",
            target=7,
            digits=2,
            runs=times,
        )
    )


# -- in the process with a terminal -----------------------------------------------------------------------------------
def _start(command: list[str], environment: dict[str, str]) -> tuple[int, float, IO[bytes]]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    started = time.perf_counter()
    process = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_DUP2, writing, 2),
        ],
    )
    os.close(writing)
    return process, started, open(reading, "rb")


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _obey() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if order["together"]:
            running = {}
            pipes = []
            for number, environment in enumerate(order["environments"]):
                process, started, pipe = _start(order["command"], environment)
                running[process] = number
                pipes.append(pipe)
            while running:
                process, status = os.wait()
                ended = time.perf_counter()
                _say(number=running.pop(process), ended=ended, code=os.waitstatus_to_exitcode(status))
        else:
            for environment in order["environments"]:
                process, started, pipe = _start(order["command"], environment)
                _, status = os.waitpid(process, 0)
                _say(started=started, ended=time.perf_counter(), code=os.waitstatus_to_exitcode(status))
                pipe.close()


if __name__ == "__main__":
    _obey()
