"""Exit codes and one-line errors of tools; `--import`."""

import os
import signal
import sys

import pytest
import torch

from fbnetv3.errors import UnknownNameError, UsageError, UserError
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool
from fbnetv3.utils.imports import import_modules, user_modules


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (UserError("wrong\nfile"), 1, "error: wrong file\n"),
        (UnknownNameError("unknown thing"), 2, "error: unknown thing\n"),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, "error: x.txt: No such file\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"),
            1,
            "error: CUDA out of memory. Tried\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; use --resume\n"),
    ],
)
def test_exit_codes(error, code, message, capsys):
    def main(argv):
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as exit:
        run_tool(main, [], after_interrupt="use --resume")
    assert exit.value.code == code
    assert capsys.readouterr().err == message


def test_other_errors_are_not_hidden():
    def main(argv):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run_tool(main, [])


def test_sigterm(capsys):
    def main(argv):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        run_tool(main, [], sigterm=True)
    assert exit.value.code == 143
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_rank_0_prints(monkeypatch, capsys):
    def main(argv):
        print("result")
        raise UserError("wrong")

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restore it afterwards
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_tool(main, [])
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "[process 1] error: wrong\n")


def test_a_long_message_is_shortened(capsys):
    def main(argv):
        raise UserError("begin " + "x" * 10_000 + " end")

    with pytest.raises(SystemExit):
        run_tool(main, [])
    message = capsys.readouterr().err
    assert len(message) < 4000 and "begin" in message and message.endswith("end\n")


@pytest.mark.parametrize("method", ["parse_args", "parse_intermixed_args"])
def test_import(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("first_plugin", "second_plugin"):
        (tmp_path / f"{name}.py").touch()
        monkeypatch.delitem(sys.modules, name, raising=False)
    parser = ArgumentParser(prog="tool.py")
    parser.add_argument("rest", nargs="*")
    args = getattr(parser, method)(["--import", "first_plugin", "--import", "second_plugin", "x"])
    assert vars(args) == {"rest": ["x"]}
    assert {"first_plugin", "second_plugin"} <= set(sys.modules)
    assert {"first_plugin", "second_plugin"} <= set(user_modules())


def test_an_error_in_a_users_module_names_the_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "faulty_plugin.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(UsageError, match=r"ZeroDivisionError: .* at .*faulty_plugin\.py:2\)"):
        import_modules(["faulty_plugin"])


def test_invalid_arguments_are_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        ArgumentParser(prog="tool.py").parse_args(["--nothing"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nothing; see tool.py --help\n"


@pytest.mark.parametrize(
    ("text", "message"), [("0", "--count: 0 must be at least 1"), ("x", "--count: 'x' must be an integer")]
)
def test_positive_int_names_the_option_and_its_bound(text, message, capsys):
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--count", type=positive_int)
    assert parser.parse_args(["--count", "3"]).count == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--count", text])
    assert message in capsys.readouterr().err
