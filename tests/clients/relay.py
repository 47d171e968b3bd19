"""A TLS entrance in front of a real server, as a proxy is; and one that can lose its connections."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Signs certificates for 127.0.0.1; its own is `ca.pem` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a new certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.BasicConstraints(ca=False, path_length=None))
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return paths

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=self._name, public_key=key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(constraints, critical=True)
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        return builder.add_extension(address, critical=False).sign(self._key, hashes.SHA256())


class Relay:
    """Passes bytes on to `target`, in a thread with an event loop of its own."""

    def __init__(self, target: str, context: ssl.SSLContext | None) -> None:
        self._host, _, port = target.rpartition(":")
        self._port, self._context = int(port), context
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted = 0

    async def start(self) -> str:
        """Listen; the address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
        pair = {writer, inner_writer}
        self._writers |= pair
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        self._writers -= pair

    async def stop(self) -> None:
        """Hang up on everybody and listen no more."""
        self._server.close()
        self.drop()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    def drop(self) -> None:
        """Lose every connection there is."""
        for writer in list(self._writers):
            writer.transport.abort()

    def lose_connections(self) -> None:
        """`drop`, from another thread; done when it returns."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(self.drop)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(60)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


@contextlib.contextmanager
def relayed(target: str, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, Relay]]:
    """The address of a relay to `target`, and the relay."""
    relay = Relay(target, context)
    thread = threading.Thread(target=relay._loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(relay.start(), relay._loop).result(60), relay
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), relay._loop).result(60)
        relay._loop.call_soon_threadsafe(relay._loop.stop)
        thread.join(60)
        relay._loop.close()


def tls_context(certificate: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """Of a server; with `client_ca` it asks every client for a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context
