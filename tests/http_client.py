"""A small HTTP client, and a server in a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time

COMMAND = [sys.executable, "-c", "from fbnetv3.commands.cli import main; main()", "serve"]


class RunningServer:
    """`fbnetv3 serve` with its port; a context manager that kills it at the end."""

    def __init__(self, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("serving on"):
                self.port = int(line.split(";")[0].rpartition(":")[2])
                return
        raise AssertionError(self.process.stderr.read())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def connect(self, timeout=60):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout))

    def request(self, method, path, body=None, content_type="image/png"):
        """Return the status and the content, parsed if it is JSON."""
        with self.connect() as connection:
            return send(connection, method, path, body, content_type)

    def stop(self, timeout=60):
        """Send SIGTERM; return the exit code and standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors

    def resident_bytes(self):
        text = self.request("GET", "/metrics")[1]
        line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes"))
        return float(line.split()[1])


def send(connection, method, path, body=None, content_type="image/png"):
    connection.request(method, path, body, {"Content-Type": content_type} if body is not None else {})
    response = connection.getresponse()
    content = response.read()
    if response.headers.get_content_type() == "application/json":
        return response.status, json.loads(content)
    return response.status, content.decode()


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
