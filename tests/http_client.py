"""`fbnetv3 serve` in a process of its own, and requests to it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys

COMMAND = [sys.executable, "-c", "from fbnetv3.commands.cli import main; main()", "serve"]


class RunningServer:
    """`fbnetv3 serve ARGUMENTS` on a free port; a context manager that kills it at the end."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("serving on"):
                self.port = int(line.split(";")[0].rpartition(":")[2])
                return
        raise AssertionError(f"{''.join(lines)}{self.process.stderr.read()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def connect(self, timeout=60):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout))

    def get(self, path):
        with self.connect() as connection:
            return send(connection, "GET", path)

    def post(self, content, content_type="image/png"):
        with self.connect() as connection:
            return send(connection, "POST", "/predict", content, content_type)

    def metric(self, name):
        """Return the value of a metric."""
        lines = self.get("/metrics")[1].splitlines()
        return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])

    def stop(self, timeout=90):
        """Send SIGTERM; return the exit code, and the rest of standard output and error."""
        self.process.send_signal(signal.SIGTERM)
        out, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, errors


def send(connection, method, path, content=None, content_type="image/png"):
    """Return the status and the content of an answer, parsed if it is JSON."""
    headers = {} if content is None else {"Content-Type": content_type}
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    text = answer.read()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, json.loads(text) if is_json else text.decode()
