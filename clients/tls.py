"""The files that a TLS connection needs on the client's side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import UsageError


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Encrypt the connection and check who the server is; with `certificate` and `key`, also say who the client is."""

    ca: Path | None = None
    """PEM file of the authorities that may have signed the server's certificate; None: those that the system trusts."""
    certificate: Path | None = None
    """PEM file of the client's own certificate (and chain), for a server that asks for one: mutual TLS."""
    key: Path | None = None
    """PEM file of that certificate's private key."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError(f"certificate is {self.certificate} and the key is {self.key}; give both, or neither")
        for name, path in self.files().items():
            if path is not None and not path.is_file():
                raise ValueError(f"{name} is {path}, which is no file")

    def files(self) -> dict[str, Path | None]:
        """The three files by name."""
        return {"ca": self.ca, "certificate": self.certificate, "key": self.key}

    def grpc_options(self) -> dict[str, Any]:
        """What both gRPC clients of tritonclient take."""
        return {
            "ssl": True,
            "root_certificates": _text(self.ca),
            "certificate_chain": _text(self.certificate),
            "private_key": _text(self.key),
        }

    def context(self, create: Any) -> Any:
        """A context of `create`: `ssl.create_default_context`, or gevent's of the same name."""
        context = create(cafile=_text(self.ca))
        if self.certificate is not None:
            context.load_cert_chain(_text(self.certificate), _text(self.key))
        return context


def tls_from_flags(tls: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """The `Tls` of a command's flags --tls, --tls-ca, --tls-certificate and --tls-key; raises UsageError naming them."""
    if not tls:
        if ca or certificate or key:
            raise UsageError("--tls-ca, --tls-certificate and --tls-key need --tls")
        return None
    try:
        return Tls(ca=ca, certificate=certificate, key=key)
    except ValueError as error:
        raise UsageError(f"--tls-{error}") from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
