"""TLS, and mutual TLS, of the server's own gRPC port. HTTP has none in Triton: put `serving.proxy` in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.command import UsageError


@dataclass(frozen=True, kw_only=True)
class GrpcTls:
    """Which PEM files the gRPC port uses."""

    grpc_tls_cert: Path | None = None
    """PEM file with the certificate that the gRPC port shows; without it gRPC is not encrypted."""
    grpc_tls_key: Path | None = None
    """PEM file with that certificate's key."""
    grpc_tls_ca: Path | None = None
    """PEM file with the authority of the clients' certificates: only clients with one are answered (mutual TLS)."""

    def __post_init__(self) -> None:
        if (self.grpc_tls_cert is None) != (self.grpc_tls_key is None) or (self.grpc_tls_ca and not self.grpc_tls_cert):
            raise UsageError("--grpc-tls-cert and --grpc-tls-key belong together, and --grpc-tls-ca needs both")
        for name in ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UsageError(f"--{name.replace('_', '-')} is {path}, which is no file")

    def __bool__(self) -> bool:
        """Whether gRPC is encrypted."""
        return self.grpc_tls_cert is not None

    def arguments(self) -> list[str]:
        """tritonserver's own flags for it."""
        if self.grpc_tls_cert is None or self.grpc_tls_key is None:
            return []
        flags = ["--grpc-use-ssl=true"]
        flags += [f"--grpc-server-cert={self.grpc_tls_cert.resolve()}", f"--grpc-server-key={self.grpc_tls_key.resolve()}"]
        if self.grpc_tls_ca is not None:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.grpc_tls_ca.resolve()}"]
        return flags
