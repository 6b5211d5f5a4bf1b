"""The Dockerfile names what exists: files, an extra, a command, its options and the path of the health check."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fbnetv3.commands.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def instructions():
    """Return the instructions as pairs of a word and its arguments."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_copied_files_exist_and_are_those_that_pip_needs(instructions):
    copied = {name for word, text in instructions if word == "COPY" for name in text.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    packages = {"fbnetv3", *re.findall(r'"fbnetv3\.\w+": "(\w+)"', (ROOT / "setup.py").read_text())}
    assert packages | {"setup.py", "README.md", "LICENSE"} <= copied


def test_the_extra_exists(instructions):
    (extra,) = {word for _, text in instructions for word in re.findall(r"'\.\[(\w+)\]'", text)}
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text()


def test_the_command_has_these_options(instructions, capsys):
    program, name, *options = json.loads(dict(instructions)["ENTRYPOINT"])
    assert program == "fbnetv3" and name in COMMANDS
    from fbnetv3.commands.serve import main

    with pytest.raises(SystemExit):
        main([*options, "--help"])
    assert "--host" in options and "--host" in capsys.readouterr().out


def test_the_health_check_is_a_path_of_the_server(instructions):
    pytest.importorskip("starlette", reason="pip install '.[serve]'")
    pytest.importorskip("prometheus_client", reason="pip install '.[serve]'")
    from fbnetv3.deploy.server.http_app import create_app
    from fbnetv3.deploy.server.inference_service import InferenceService
    from fbnetv3.deploy.server.server_limits import ServerLimits
    from fbnetv3.deploy.server.server_metrics import ServerMetrics

    check = next(text for word, text in instructions if word == "HEALTHCHECK")
    _, _, script = shlex.split(check[check.index("[") :].strip("[]").replace(",", " "))
    port, path = re.search(r"127\.0\.0\.1:(\d+)(/[\w/]+)", script).groups()
    assert port == dict(instructions)["EXPOSE"]
    app = create_app(InferenceService({}, ServerLimits(), ServerMetrics()))
    assert path in {route.path for route in app.routes}
