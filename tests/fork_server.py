"""Runs the command in forks of a process that has imported its modules, which saves most of the time of a short run.

Each run has its own process, arguments, working folder and files for its output, as if a user had called the command.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from typing import NoReturn

# What nearly every command imports, and what the commands import that use torch.
PRELOADED = (
    *("cli.process", "cli.annotations", "cli.recordings", "cli.progress"),
    *("jobs.isolated", "jobs.annotations", "jobs.score"),
)
WITH_TORCH = ("models.training", "models.evaluation", "models.operating_point", "export.onnx_file")
# Variables that are read when a command needs them, and not while modules are imported. Ray sets the third by itself.
READ_LATE = {"COLUMNS", "TMPDIR", "RAY_CLIENT_MODE", "RAY_AUTH_MODE"}
TORCH_COMMANDS = {"train", "tune", "evaluate", "export"}
MAX_REQUEST = 1 << 20


@dataclass
class ForkServer:
    """The process that forks.

    Attributes:
        environment: variables of all runs. Libraries read them while they are imported.
    """

    environment: dict[str, str]
    _socket: socket.socket = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
        )
        theirs.close()

    def changes(self, environment: dict[str, str]) -> dict[str, str] | None:
        """The variables that a run needs besides those of all runs; None: they could change what was imported."""
        changed = {name: value for name, value in environment.items() if self.environment.get(name) != value}
        return changed if changed.keys() <= READ_LATE and self.environment.keys() <= environment.keys() else None

    def run(
        self, arguments: list[str], environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end.

        Args:
            arguments: name and arguments of the command.
            environment: further variables of this run, which nothing reads before it begins.
            timeout: number of seconds after which the run is killed.

        Raises:
            TimeoutError: it has not ended in this time.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            request = json.dumps({"arguments": arguments, "environment": environment, "folder": os.getcwd()}).encode()  # noqa: PTH109
            socket.send_fds(self._socket, [request], [output.fileno(), errors.fileno()])
            self._socket.settimeout(timeout)
            try:
                code = int(self._socket.recv(MAX_REQUEST))
            except TimeoutError:
                os.killpg(self._process.pid, signal.SIGKILL)
                raise
            output.seek(0), errors.seek(0)
            return subprocess.CompletedProcess(arguments, code, output.read(), errors.read())

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()


def environment_of_tests() -> dict[str, str]:
    """The environment without what pytest sets for each test."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def serve(requests: socket.socket) -> None:
    """Run commands until the other end closes."""
    _import(PRELOADED)
    while True:
        request, files, *_ = socket.recv_fds(requests, MAX_REQUEST, 2)
        if not request:
            return
        call = json.loads(request)
        if TORCH_COMMANDS.intersection(call["arguments"][1:2]):
            _import(WITH_TORCH)
        child = os.fork()
        if child == 0:
            requests.close()
            os.environ.update(call["environment"])
            _run(call["arguments"], call["folder"], files)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        import_module(f"polypstream.{name}")


def _run(arguments: list[str], folder: str, files: list[int]) -> NoReturn:
    """Run the command in this process, and end it."""
    from polypstream.__main__ import main

    for target, file in zip((1, 2), files, strict=True):
        os.dup2(file, target)
        os.close(file)
    os.chdir(folder)
    sys.argv = arguments
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Do what Python does at its end, but leave the memory to the system: to clear all modules takes 0.15 seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
