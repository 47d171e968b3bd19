"""Which tritonserver is started, with which arguments and environment.

The one on the PATH when there is one (the NGC container); else the real server 2.51 inside the PyPI wheel nvidia-pytriton,
whose python backend needs its stub, its libraries and libpython brought together first.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract.command import UsageError
from serving.state import CONTROL_HEADER

CLOSED_TO_CLIENTS = ("shared-memory", "model-config", "model-repository", "statistics", "trace", "logging")
"""Groups of Triton's API that need the operator's token; health, metadata and inference are open."""

DRAIN_TIMEOUT_S = 10

SHM_PREFIX_VARIABLE = "BERT_SHM_PREFIX"
"""Environment variable that tells the python models of one server what their common shared memory is called."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started."""

    binary: Path
    arguments: list[str] = field(default_factory=list)
    """What this installation needs on the command line."""
    environment: dict[str, str] = field(default_factory=dict)
    """What it needs in the environment, beside the caller's own."""


def find_installation(workspace: Path) -> Installation:
    """The tritonserver to start; `workspace` is an empty folder for what has to be put together.

    Raises:
        UsageError: there is none, or this Python cannot run the wheel's python backend.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path))
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise UsageError("no tritonserver on the PATH and no nvidia-pytriton installed: pip install nvidia-pytriton==0.7.0")
    return _wheel_installation(Path(spec.origin).parent / "tritonserver", workspace)


def _wheel_installation(server: Path, workspace: Path) -> Installation:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise UsageError(f"the wheel's server has no stub for Python {python}; use Python 3.11 or 3.12")
    backend = workspace / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(server / "backends" / "python" / name, backend)
    shutil.copy(stub, backend)
    libraries = [server.parents[1] / "nvidia_pytriton.libs", *_libpython_folders(python)]
    return Installation(
        server / "bin" / "tritonserver",
        [f"--backend-directory={workspace / 'backends'}", f"--cache-directory={server / 'caches'}"],
        {
            "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *_current("LD_LIBRARY_PATH")]),
            # The stub runs the first python3 of the PATH: this environment's, which has what the models import.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_current("PATH")]),
        },
    )


def _libpython_folders(python: str) -> list[Path]:
    """Where libpythonX.Y.so.1.0 lies, which the stub is linked to; [] when the loader finds it by itself."""
    name = f"libpython{python}.so.1.0"
    folder, triplet = Path(sysconfig.get_config_var("LIBDIR")), sysconfig.get_config_var("MULTIARCH") or ""
    found = [candidate for candidate in (folder, folder / triplet) if (candidate / name).exists()]
    if not found and ctypes.util.find_library(f"python{python}") is None:
        raise UsageError(
            f"this Python has no {name}, which Triton's python backend needs; use one built with --enable-shared "
            f"(Debian and Ubuntu: apt-get install libpython{python}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )
    return found


def _current(variable: str) -> list[str]:
    return [os.environ[variable]] if os.environ.get(variable) else []


def server_arguments(
    *,
    repository: Path,
    models: Sequence[str],
    config_name: str,
    address: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    token: str,
    shm_prefix: str,
) -> list[str]:
    """tritonserver's command line: explicit model control, closed to clients; `models` and what they need are loaded."""
    closed = ",".join(CLOSED_TO_CLIENTS)
    arguments = [
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--disable-auto-complete-config",
        f"--http-address={address}",
        f"--http-port={http_port}",
        f"--grpc-address={address}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={address}",
        f"--metrics-port={metrics_port}",
        f"--http-restricted-api={closed}:{CONTROL_HEADER}={token}",
        f"--grpc-restricted-protocol={closed}:{CONTROL_HEADER}={token}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        # 32 idle threads an instance otherwise, for calls from python models to the server, of which ours make few.
        "--backend-config=python,thread-pool-size=2",
        f"--exit-timeout-secs={DRAIN_TIMEOUT_S}",
    ]
    if config_name:
        arguments.append(f"--model-config-name={config_name}")
    if config_name == "cpu":
        arguments += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    return arguments
