"""Small clients that show all of an answer, right or wrong, and the bytes of the file that they ask for."""

import http.client
import socket

BYTES = bytes(range(256)) * 40


class Client:
    """One kept-alive connection."""

    def __init__(self, url):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def ask(self, method="GET", path="/x.bin", **headers):
        """Status, headers, body."""
        self.connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        with self.connection.getresponse() as response:
            return response.status, response.headers, response.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()


def raw(url, *, path="/x.bin", range_="bytes=100-299"):
    """All bytes that come until the server closes the connection, and the error that ended it."""
    host, port = url.removeprefix("http://").split(":")
    came = b""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: {range_}\r\n".encode())
        connection.sendall(b"Connection: close\r\n\r\n")
        try:
            while piece := connection.recv(1 << 16):
                came += piece
        except ConnectionResetError as error:
            return came, error
    return came, None
