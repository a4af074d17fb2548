"""HTTP/1.1 by hand: what a library would hide is what these tests look at."""

import errno
import json
import socket
from dataclasses import dataclass, field

from server import limit


@dataclass
class Reply:
    status: int
    headers: dict = field(default_factory=dict)  # names in lower case
    body: bytes = b""

    def json(self):
        return json.loads(self.body)


class Closed(Exception):
    """The server closed the connection before a whole reply had come."""


def request_bytes(method, path, body=b"", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion_bytes(prompt, **fields):
    body = json.dumps({"prompt": prompt, "temperature": 0, **fields}).encode()
    return request_bytes("POST", "/v1/completions", body)


def chat_bytes(messages, **fields):
    """A text is a user's message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = json.dumps({"messages": messages, "temperature": 0, **fields}).encode()
    return request_bytes("POST", "/v1/chat/completions", body)


class Connection:
    """A keep-alive connection. Closing it is how a client hangs up."""

    def __init__(self, port, seconds=60):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=limit(seconds))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise Closed(self._unread)
        self._unread += data

    def read_until(self, mark):
        """What comes up to and with `mark`."""
        while mark not in self._unread:
            self._more()
        end = self._unread.index(mark) + len(mark)
        taken, self._unread = self._unread[:end], self._unread[end:]
        return taken

    def _read_exactly(self, n_bytes):
        while len(self._unread) < n_bytes:
            self._more()
        taken, self._unread = self._unread[:n_bytes], self._unread[n_bytes:]
        return taken

    def read_head(self):
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
        return Reply(int(lines[0].split(" ")[1]), headers)

    def read_chunk(self):
        """One chunk of a chunked body; b"" is the last."""
        n_bytes = int(self.read_until(b"\r\n"), 16)
        data = self._read_exactly(n_bytes)
        assert self._read_exactly(2) == b"\r\n"
        return data

    def read_reply(self, is_head=False):
        reply = self.read_head()
        if is_head:
            return reply
        if reply.headers.get("transfer-encoding") == "chunked":
            while chunk := self.read_chunk():
                reply.body += chunk
        else:
            reply.body = self._read_exactly(int(reply.headers.get("content-length", "0")))
        return reply

    def ask(self, method, path, body=b"", headers=()):
        self.send(request_bytes(method, path, body, headers))
        return self.read_reply(is_head=method == "HEAD")

    def start_stream(self, prompt, ask=completion_bytes, **fields):
        """Asks for a stream and reads its first chunk."""
        self.send(ask(prompt, stream=True, **fields))
        reply = self.read_head()
        if reply.status == 200:
            reply.body = self.read_chunk()
        return reply

    def read_rest_of_stream(self):
        body = b""
        while chunk := self.read_chunk():
            body += chunk
        return body


def send_raw(port, data, seconds=20):
    """All bytes that come back until the server closes; the sender closes its side at once.

    A server may refuse and close while the request is still being sent; what arrived by then counts."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=limit(seconds)) as raw:
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(65536):
                reply += piece
        except OSError as fault:
            if fault.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
    return reply


def sse_events(body):
    """The documents of a stream, whose bytes must be frames and nothing else."""
    assert body.endswith(b"data: [DONE]\n\n"), body[-100:]
    assert body.count(b"[DONE]") == 1
    frames = body[:-2].split(b"\n\n")
    for frame in frames:
        assert frame.startswith(b"data: "), frame
        assert b"\n" not in frame and b"\r" not in frame, frame
    return [json.loads(frame[len(b"data: "):]) for frame in frames[:-1]]
