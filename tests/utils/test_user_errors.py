import pytest

from opensora.utils import user_errors
from opensora.utils.logging import get_logger
from opensora.utils.user_errors import one_line_errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("lr=-1: use a number\n  above 0."), "error: lr=-1: use a number above 0.\n"),
        (KeyError("--foo: no such key"), "error: --foo: no such key\n"),
        (FileNotFoundError(2, "No such file", "a.csv"), "error: [Errno 2] No such file: 'a.csv'\n"),
        (ImportError("run pip install x"), "error: run pip install x\n"),
        (KeyError("foo"), "error: KeyError foo; set OPENSORA_LOG=DEBUG to see where it comes from\n"),
        (KeyError(), "error: KeyError ; set OPENSORA_LOG=DEBUG to see where it comes from\n"),
    ],
)
def test_an_error_becomes_one_line_and_status_2(error, line, capsys):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err == line


def test_other_processes_wait_and_say_who_they_are(monkeypatch, capsys):
    waited = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(user_errors.time, "sleep", waited.append)
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError("lr=-1: use a number above 0.")
    assert capsys.readouterr().err == "error in process 3: lr=-1: use a number above 0.\n"
    assert waited == [3.0]


def test_errors_of_ours_and_success_pass():
    with pytest.raises(RuntimeError, match="bug"), one_line_errors():
        raise RuntimeError("bug")
    with one_line_errors():
        pass


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(get_logger(), "level", 10)
    monkeypatch.setattr(get_logger(), "_cache", {})
    with pytest.raises(ValueError, match="wrong"), one_line_errors():
        raise ValueError("wrong")
