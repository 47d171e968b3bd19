"""A TLS entrance in front of a real server, as a proxy is; and one that can lose its connections."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
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
        self._connections: set[asyncio.Task[None]] = set()
        self.loop = asyncio.new_event_loop()
        self.accepted = 0

    async def start(self) -> str:
        """Listen; the address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = self.loop.create_task(self._pass_on(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with hung_up(writer):
            inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
            async with hung_up(inner_writer):
                both = [self.loop.create_task(pump(reader, inner_writer)), self.loop.create_task(pump(inner_reader, writer))]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in both:
                        one.cancel()
                    await asyncio.gather(*both, return_exceptions=True)

    async def lose(self) -> None:
        """Lose every connection there is."""
        lost = list(self._connections)
        for connection in lost:
            connection.cancel()
        await asyncio.gather(*lost, return_exceptions=True)

    async def stop(self) -> None:
        """Hang up on everybody and listen no more."""
        self._server.close()
        await self.lose()

    def lose_connections(self) -> None:
        """`lose`, from another thread; done when it returns."""
        asyncio.run_coroutine_threadsafe(self.lose(), self.loop).result(60)


@contextlib.asynccontextmanager
async def hung_up(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Nothing is left of the connection when the block ends."""
    try:
        yield
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until nothing comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def relayed(target: str, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, Relay]]:
    """The address of a relay to `target`, and the relay."""
    relay = Relay(target, context)
    thread = threading.Thread(target=relay.loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(relay.start(), relay.loop).result(60), relay
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), relay.loop).result(60)
        relay.loop.call_soon_threadsafe(relay.loop.stop)
        thread.join(60)
        relay.loop.close()


def tls_context(certificate: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """Of a server; with `client_ca` it asks every client for a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context
