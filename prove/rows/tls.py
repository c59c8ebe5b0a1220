"""TLS that proves nothing: expired, another host's, self-signed, none at all."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from prove.process import process
from prove.row import Broken, Outcome, Row, check

EXIT_REMOTE, EXIT_SETTING = 69, 78


class Server:
    """Accepts TLS connections, and keeps what it is then told."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        """Show this certificate."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.context)
        self.heard: list[bytes] = []
        self.refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(10)
        try:
            with self.context.wrap_socket(client, server_side=True) as stream:
                if data := stream.recv(1_000):
                    self.heard.append(data)
        except OSError:
            self.refused += 1

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def expired(authority: trustme.CA) -> trustme.LeafCert:
    """Return a certificate of yesterday."""
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return authority.issue_cert("127.0.0.1", not_after=past)


def of_another(authority: trustme.CA) -> trustme.LeafCert:
    """Return a certificate of another host."""
    return authority.issue_cert("fapi.example.org")


def good(authority: trustme.CA) -> trustme.LeafCert:
    """Return a certificate that is in order."""
    return authority.issue_cert("127.0.0.1")


def not_trusted(authority: trustme.CA) -> trustme.LeafCert:
    """Return a certificate of an authority that nobody has heard of."""
    return trustme.CA().issue_cert("127.0.0.1")


KINDS: dict[str, tuple[Callable[[trustme.CA], trustme.LeafCert], str]] = {
    "expired": (expired, "expired"),
    "another host": (of_another, "127.0.0.1"),
    "unknown authority": (not_trusted, "SSL_CERT_FILE"),
}
"""By kind, what makes the certificate, and a word that the message must have."""


@contextmanager
def serving(authority: trustme.CA, make: Callable[[trustme.CA], trustme.LeafCert]) -> Iterator:
    """Serve with a certificate."""
    server = Server(make(authority))
    try:
        yield server
    finally:
        server.close()


def run(seed: int, folder: Path, outcome: Outcome) -> None:
    """Each kind by REST and by websocket; plain text off loopback; and what is in order."""
    authority = trustme.CA()
    trusted = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    env = {"SSL_CERT_FILE": str(trusted)}
    for name, (make, word) in KINDS.items():
        with serving(authority, make) as server:
            url = f"https://127.0.0.1:{server.port}"
            arguments = ("backfill", "--data-dir", folder / "data", "--rest-url", url)
            with process(folder, f"rest-{name}", arguments, env=env) as filling:
                code = filling.wait(60)
                check(code == EXIT_REMOTE, f"{name}: exit {code}\n{filling.tail()}")
                filling.check_quiet()
                check(word in filling.text, f"{name}: the reason is not told\n{filling.tail()}")
            urls = ("--rest-url", url, "--ws-url", f"wss://127.0.0.1:{server.port}/market")
            with process(folder, f"doctor-{name}", ("doctor", *urls), env=env) as doctor:
                check(doctor.wait(60) != 0, f"{name}: doctor is content\n{doctor.tail()}")
                doctor.check_quiet()
            check(not server.heard, f"{name}: something was sent: {server.heard}")
            check(server.refused > 0, f"{name}: nobody came")
            outcome.cases += 2
    for option, url in (("--rest-url", "http://192.0.2.1"), ("--ws-url", "ws://192.0.2.1")):
        arguments = ("doctor", option, url)
        with process(folder, f"plain{option}", arguments) as plain:
            code = plain.wait(60)
            check(code == EXIT_SETTING, f"{url}: exit {code}\n{plain.tail()}")
        outcome.cases += 1
    with serving(authority, good) as server:
        url = f"https://127.0.0.1:{server.port}"
        with process(folder, "good", ("backfill", "--rest-url", url), env=env) as filling:
            filling.wait(60)
        if not server.heard:
            raise Broken(f"a good certificate was refused\n{filling.tail()}")


ROW = Row(
    name="tls",
    what="certificates that are expired, another host's, of no known authority; plain text",
    holds="refused before anything is sent, with the reason",
    run=run,
    ci=1,
    release=3,
)
