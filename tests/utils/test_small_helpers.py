"""Checks, nested keys, JSON lines, text, files."""

import errno
import logging
import os
import subprocess
import sys

import pytest

from fbnetv3.errors import FieldError, OutputError, UsageError, suggest
from fbnetv3.utils import checks
from fbnetv3.utils.files import FolderLock, atomic_write, make_folder, write_text
from fbnetv3.utils.json_lines import append_json_line, drop_partial_line, read_json_lines, write_json_lines
from fbnetv3.utils.logging_setup import log_to_file
from fbnetv3.utils.nested_keys import flatten, merge, nest, parse_pairs
from fbnetv3.utils.text import describe_error, evenly_spaced, first_few, format_duration, one_line


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: checks.check_int(1.0, "f", 0), "f: 1.0 must be an integer"),
        (lambda: checks.check_int(True, "f", 0), "f: True must be an integer"),
        (lambda: checks.check_int(-1, "f", 0), "f: -1 must be at least 0"),
        (lambda: checks.check_int(9, "f", 0, 5), r"f: 9 must be in \[0, 5\]"),
        (lambda: checks.check_number("1", "f"), "f: '1' must be a number"),
        (lambda: checks.check_number(float("nan"), "f", 0), "f: nan must be at least 0"),
        (lambda: checks.check_number(9, "f", high=5), "f: 9 must be at most 5"),
        (lambda: checks.check_choice(True, "f", (1, 2)), "f: True must be one of 1, 2"),
        (lambda: checks.check_type("x", "f", list, "a list"), "f: 'x' must be a list"),
        (lambda: checks.check_keys({"lrr": 1}, FieldError, ("lr",)), "lrr: unknown key: did you mean lr?"),
        (lambda: checks.check_keys({}, FieldError, ("lr",), required=("lr",)), "lr: is missing"),
    ],
)
def test_checks(check, message):
    with pytest.raises(FieldError, match=f"^{message}"):
        check()


def test_field_errors_are_extended_outward():
    context = checks.error_context
    with (
        pytest.raises(FieldError) as error,
        context(file="y.yaml"),
        context(file="x.yaml"),
        context("rows[0]"),
    ):
        raise FieldError("is even", "kernel")
    assert str(error.value) == "x.yaml: rows[0].kernel: is even"


def test_suggestions():
    assert suggest("sgdd", ["sgd", "rmsprop"]) == "did you mean sgd?"
    assert suggest("zzz", ["b", "a"]) == "available: a, b"
    assert suggest("zzz", []) == "there are none"
    letters = [chr(97 + i) for i in range(20)]
    assert suggest("zzz", letters) == f"available: {', '.join(letters[:12])} and 8 more"


def test_nested_keys():
    nested = {"A": {"B": {"C": 1}, "D": []}, "E": {}}
    assert flatten(nested) == {"A.B.C": 1, "A.D": [], "E": {}}
    assert nest(flatten(nested)) == nested
    assert merge({"A": {"B": 1, "C": 2}}, {"A": {"B": 3}}) == {"A": {"B": 3, "C": 2}}
    with pytest.raises(UsageError, match="x.yaml: A is a section in this file"):
        merge({"A": 1}, {"A": {"B": 1}}, "x.yaml: ")
    with pytest.raises(UsageError, match=r"^x\.yaml: A\.B\.C is a section"):
        merge({"A": {"B": {"C": 1}}}, {"A": {"B": {"C": {"D": 1}}}}, "x.yaml: ")
    with pytest.raises(UsageError, match="x.yaml: A is a single value in this file but a section in its"):
        merge({"A": {"B": 1}}, {"A": 3}, "x.yaml: ")


def test_overrides_are_pairs():
    assert parse_pairs(["A", "1", "B.C", "x"]) == {"A": "1", "B.C": "x"}
    with pytest.raises(UsageError, match="B has no value: pass overrides as KEY VALUE pairs"):
        parse_pairs(["A", "1", "B"])


def test_json_lines_survive_a_killed_writer(tmp_path):
    file = tmp_path / "x.jsonl"
    for i in range(3):
        append_json_line(file, {"i": i})
    file.write_bytes(file.read_bytes()[:-3])
    assert read_json_lines(file) == [{"i": 0}, {"i": 1}]
    drop_partial_line(file)
    append_json_line(file, {"i": 3})
    assert read_json_lines(file) == [{"i": 0}, {"i": 1}, {"i": 3}]
    write_json_lines(file, [{"i": 4}])
    assert read_json_lines(file) == [{"i": 4}]


def test_text():
    assert [format_duration(s) for s in (5, 65, 3723.4)] == ["0:05", "1:05", "1:02:03"]
    assert first_few(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert first_few(["a", "b"]) == "a, b"
    assert one_line("a\n  b") == "a b"
    assert one_line("a" * 50 + "b" * 50, 8) == "aaaa ... bb"
    assert describe_error(ValueError("first\nsecond")) == "ValueError: first second"
    assert evenly_spaced(list(range(10)), 3) == [0, 3, 6]
    assert evenly_spaced([1, 2], 3) == [1, 2]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "x") as f:
        f.write(b"new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_can_read_a_file(umask, mode, tmp_path):
    previous = os.umask(umask)
    try:
        write_text(tmp_path / "x", "text")
    finally:
        os.umask(previous)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_folders_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/x: cannot be written: .*; choose another"):
        make_folder(tmp_path / "file" / "x", "choose another")


def test_a_lock_is_released_and_can_be_taken_again(tmp_path):
    lock = FolderLock(tmp_path / "run", "training run", "choose another folder")
    with lock:
        assert (tmp_path / "run" / "lock").read_text().strip().isdigit()
    with lock:
        pass


def test_a_file_system_without_locks_is_not_a_running_search(tmp_path, monkeypatch):
    def lockf(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with pytest.raises(OutputError, match="lock: cannot be written: No locks available; choose another"):
        FolderLock(tmp_path, "search", "choose another folder").acquire()


def test_a_log_file_shortens_tracebacks(tmp_path, caplog):
    with log_to_file(tmp_path / "log.txt"):
        try:
            raise ValueError("no number")
        except ValueError:
            logging.getLogger("fbnetv3").exception("it failed:")
    assert (tmp_path / "log.txt").read_text().endswith(" it failed: ValueError: no number\n")
    assert "Traceback" in caplog.text  # other handlers get all of it


def test_a_folder_is_locked_once_within_a_process_too(tmp_path):
    with FolderLock(tmp_path, "search", "choose another folder"):
        for folder in (tmp_path, tmp_path / "x" / ".."):
            with pytest.raises(UsageError, match=rf"another search is using it \(process {os.getpid()}\)"):
                FolderLock(folder, "search", "choose another folder").acquire()
        # The failed attempts have not released the lock for other processes
        script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        attempt = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "lock"], capture_output=True, text=True
        )
        assert "BlockingIOError" in attempt.stderr
    FolderLock(tmp_path, "search", "choose another folder").acquire()
