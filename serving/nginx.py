"""nginx as a child process: its configuration rendered into a folder of its own, its sockets held before it starts.

What it lets through is written in `docker/nginx/nginx.conf.template`; compose's nginx fills in the same template.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from contract.command import Failure, UsageError

TEMPLATE = Path(__file__).parents[1] / "docker" / "nginx" / "nginx.conf.template"
STOP_S = 15.0
POLL_S = 0.02

_PLACEHOLDER = re.compile(r"\$\{(BERT_[A-Z_]+)\}")
_PR_SET_PDEATHSIG = 1


def find_nginx() -> str:
    """The nginx binary. Raises `UsageError` when there is none."""
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise UsageError("no nginx on the PATH nor in /usr/sbin; apt-get install nginx, or compose's image, has one")
    return found


def placeholders(template: str) -> set[str]:
    """The names that have to be filled in."""
    return set(_PLACEHOLDER.findall(template))


def render(template: str, values: Mapping[str, str]) -> str:
    """`template` with every `${BERT_NAME}` replaced; nginx's own variables have no braces and stay.

    Raises:
        ValueError: a name without a value, or a value without a name.
    """
    different = placeholders(template) ^ set(values)
    if different:
        raise ValueError(f"the template and the values differ in {', '.join(sorted(different))}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def listen(address: str, flag: str) -> socket.socket:
    """A listening socket at "host:port"; port 0 takes a free one. Raises `Failure` naming the flag when it is in use."""
    host, _, port = address.rpartition(":")
    holder = socket.socket()
    holder.setblocking(False)  # nginx takes an inherited socket as it is, and its workers must not wait in accept
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, int(port)))
        holder.listen(511)
    except OSError as error:
        holder.close()
        raise Failure(f"{flag} {address}: {error.strerror}; choose another port, or 0 for a free one") from error
    return holder


def address_of(holder: socket.socket) -> str:
    """ "host:port" of a bound socket."""
    host, port = holder.getsockname()[:2]
    return f"{host}:{port}"


class NginxProcess:
    """One nginx over a rendered configuration, with sockets that it inherits: between the choice of a free port and its use
    nobody can take it."""

    def __init__(self, folder: Path, configuration: str, sockets: list[socket.socket]) -> None:
        folder.chmod(0o711)  # started by root, its workers are somebody else and put large bodies in here
        path = folder / "nginx.conf"
        path.write_text(configuration, encoding="utf-8")
        descriptors = [holder.fileno() for holder in sockets]
        libc = ctypes.CDLL(None)
        self._pid_file = folder / "nginx.pid"
        self._process = subprocess.Popen(
            [find_nginx(), "-e", "stderr", "-p", str(folder), "-c", str(path)],
            env={"PATH": os.environ.get("PATH", ""), "NGINX": "".join(f"{number};" for number in descriptors)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches us alone, and we drain it
            pass_fds=descriptors,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - no threads yet
        )

    def check_alive(self) -> None:
        """Raise `Failure` when nginx has ended; why, it has said on the standard error."""
        code = self._process.poll()
        if code is not None:
            raise Failure(f"nginx ended with code {code}; its reason stands above")

    def wait_until_started(self, timeout_s: float) -> None:
        """Wait until nginx has taken its configuration and its sockets; what connects from then on is answered.

        Raises:
            Failure: nginx ended, or was not there within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not self._pid_file.exists():
            self.check_alive()
            if time.monotonic() > deadline:
                raise Failure(f"nginx did not start within {timeout_s:g} s")
            time.sleep(POLL_S)

    def wait(self, seconds: float) -> bool:
        """Whether nginx ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def stop(self) -> None:
        """Let requests in flight finish, for `STOP_S` at most."""
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                if self.wait(STOP_S):
                    break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # workers that outlived a killed master
