"""A hardened nginx in front of a running server: clients reach infer and health over it, within limits, and nothing else.

    python -m serving.proxy
    python -m serving.proxy --listen 0.0.0.0:8443 --grpc-listen 0.0.0.0:8444 --tls-cert server.pem --tls-key server.key
    python -m serving.proxy --client-ca clients.pem --tls-cert server.pem --tls-key server.key      mutual TLS

Needs nginx (Debian: nginx). The server must listen without TLS of its own: the proxy ends it. Stops with Ctrl-C or
SIGTERM, when the requests in flight are answered. docs/security.md says what is refused, and why.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from contract.command import UsageError, run_command, stop_on_signals
from contract.tensors import MAX_BATCH_SIZE, MAX_QUEUE_SIZE, MAX_TEXT_BYTES
from serving.nginx import TEMPLATE, NginxProcess, address_of, find_nginx, listen, render
from serving.state import ServerState, read_state

LARGEST_BODY = MAX_BATCH_SIZE * (MAX_TEXT_BYTES + 4) + 65_536
"""Bytes of the largest request that the models answer: binary texts, a length of 4 bytes before each, and a header."""

START_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Put a hardened nginx in front of a running server."""

    repository: Path = Path("build/model_repository")
    """Deployed repository that `python -m serving` serves."""
    listen: str = "127.0.0.1:8443"
    """Address for HTTP, as host:port; port 0 takes a free one."""
    grpc_listen: str = "127.0.0.1:8444"
    """Address for gRPC, as host:port; port 0 takes a free one."""
    tls_cert: Path | None = None
    """PEM file with the certificate and its chain; without it nothing is encrypted, which is for loopback only."""
    tls_key: Path | None = None
    """PEM file with the certificate's key."""
    client_ca: Path | None = None
    """PEM file with the authority that signs clients' certificates: only clients with one are answered (mutual TLS)."""
    body_limit: int = LARGEST_BODY
    """Bytes in one request."""
    rate: int = 1000
    """Requests per second from one address; twice as many in a burst."""
    connections: int = 256
    """Requests in flight from one address."""
    in_flight: int = MAX_QUEUE_SIZE
    """Requests in flight from all addresses; one more is refused at once with 503 or UNAVAILABLE."""
    read_timeout_s: int = 30
    """Seconds until an answer must come."""
    client_timeout_s: int = 10
    """Seconds that a client may pause while it sends a request or reads an answer."""

    def __post_init__(self) -> None:
        for name in ("listen", "grpc_listen"):
            host, _, port = getattr(self, name).rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)!r}; host:port is needed, as 127.0.0.1:8443")
        for name in ("body_limit", "rate", "connections", "in_flight", "read_timeout_s", "client_timeout_s"):
            if getattr(self, name) < 1:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}; it must be at least 1")
        if (self.tls_cert is None) != (self.tls_key is None) or (self.client_ca is not None and self.tls_cert is None):
            raise UsageError("--tls-cert and --tls-key belong together, and --client-ca needs both")
        for name in ("tls_cert", "tls_key", "client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UsageError(f"{_flag(name)} is {path}, which is no file")
        if self.tls_cert is None and not all(_is_loopback(address) for address in (self.listen, self.grpc_listen)):
            raise UsageError("--listen or --grpc-listen is reached from elsewhere: give --tls-cert and --tls-key as well")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "localhost:"))


def values(options: Proxy, state: ServerState, folder: Path, *, http: str, grpc: str) -> dict[str, str]:
    """What the template is filled in with; `http` and `grpc` are the addresses to listen at."""
    tls = ""
    if options.tls_cert is not None and options.tls_key is not None:
        tls = f'ssl_certificate "{options.tls_cert.resolve()}"; ssl_certificate_key "{options.tls_key.resolve()}";'
    if options.client_ca is not None:
        tls += f' ssl_client_certificate "{options.client_ca.resolve()}"; ssl_verify_client on; ssl_verify_depth 3;'
    ssl = " ssl" if tls else ""
    return {
        "BERT_FOLDER": str(folder),
        "BERT_ACCESS_LOG": "off",
        "BERT_HTTP_LISTEN": http + ssl,
        "BERT_GRPC_LISTEN": grpc + ssl,
        "BERT_TLS": tls,
        "BERT_HTTP_UPSTREAM": state.http_url,
        "BERT_GRPC_UPSTREAM": state.grpc_url,
        "BERT_BODY_LIMIT": str(options.body_limit),
        "BERT_RATE": str(options.rate),
        "BERT_CONNECTIONS": str(options.connections),
        "BERT_IN_FLIGHT": str(options.in_flight),
        "BERT_READ_TIMEOUT_S": str(options.read_timeout_s),
        "BERT_CLIENT_TIMEOUT_S": str(options.client_timeout_s),
    }


def proxy(options: Proxy) -> None:
    """Run nginx until it is told to stop; see the module docstring."""
    find_nginx()
    state = read_state(options.repository)
    if state is None:
        raise UsageError(f"nothing serves {options.repository}; python -m serving --repository {options.repository} does")
    with (
        tempfile.TemporaryDirectory(prefix="bert-nginx-") as folder,
        listen(options.listen, "--listen") as http,
        listen(options.grpc_listen, "--grpc-listen") as grpc,
    ):
        urls = {"http": address_of(http), "grpc": address_of(grpc)}
        configuration = render(TEMPLATE.read_text(encoding="utf-8"), values(options, state, Path(folder), **urls))
        stop_on_signals()
        nginx = NginxProcess(Path(folder), configuration, [http, grpc])
        try:
            nginx.wait_until_started(START_TIMEOUT_S)
            secured = "mutual TLS" if options.client_ca else "TLS" if options.tls_cert else "no TLS"
            print(f"HTTP {urls['http']}   gRPC {urls['grpc']}   {secured}   (Ctrl-C stops)", flush=True)
            while not nginx.wait(1.0):
                pass
            nginx.check_alive()
        except KeyboardInterrupt:
            print("draining and stopping", file=sys.stderr)
        finally:
            nginx.stop()


if __name__ == "__main__":
    run_command(lambda: proxy(tyro.cli(Proxy, prog="python -m serving.proxy", description=__doc__)))
