"""Whether a process answers at a port, not only its kernel: `probe.py HOST:PORT [--tls]` ends with 0 if so, else with 1.

A server that stands by has bound its port, and the kernel takes connections for it that nobody answers; a check that only
connects would send devices there. With --tls the handshake is the answer; without, the settings that every HTTP/2 server sends
first.
"""

import socket
import ssl
import sys

SECONDS = 3.0
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4


def answers(host: str, port: int, tls: bool) -> bool:
    """Whose certificate it is does not matter here, and nothing is said over the connection."""
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as plain:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                with context.wrap_socket(plain):
                    return True
            plain.sendall(HELLO)
            frame = plain.recv(9)
            return len(frame) == 9 and frame[3] == SETTINGS
    except OSError:
        return False


if __name__ == "__main__":
    place, *options = sys.argv[1:]
    name, _, number = place.rpartition(":")
    sys.exit(0 if answers(name.strip("[]"), int(number), "--tls" in options) else 1)
