"""What runs in this process, as people call it: a script, a notebook."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from tests.agent.helpers import only

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.sources.script import command_words, is_notebook, script_name

KERNEL = ["/usr/bin/python", "-m", "ipykernel_launcher", "-f", "/run/user/kernel-1.json", "--f=/run/user/kernel-1.json"]


@pytest.mark.parametrize(
    ("word", "name"),
    [("train.py", "train"), ("/a/b/steps.train.py", "steps.train"), ("", "python"), ("-c", "python"), ("-", "python"),
     ("/site/package/__main__.py", "package"), ("tool", "tool")],
)  # fmt: skip
def test_a_script_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch, word: str, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [word, "--flag"])
    assert script_name() == name
    assert command_words() == sys.orig_argv
    assert not is_notebook()


def _kernel(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    """Have IPython say that this process is a notebook's kernel."""
    ipython = ModuleType("IPython")
    shell = SimpleNamespace(kernel=object(), user_ns=names)
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "argv", [*KERNEL[2:]])
    monkeypatch.setattr(sys, "orig_argv", KERNEL)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


def test_a_notebook_without_a_name_is_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    _kernel(monkeypatch)
    assert is_notebook()
    assert script_name() == "notebook"
    assert command_words() == ["/usr/bin/python", "-m", "ipykernel_launcher", "notebook"]


def test_a_notebook_is_named_as_its_editor_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    _kernel(monkeypatch, __vsc_ipynb_file__="/home/maria/First look.ipynb")
    assert (script_name(), command_words()[-1]) == ("First look", "First look.ipynb")
    _kernel(monkeypatch)
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/maria/second.ipynb")
    assert (script_name(), command_words()[-1]) == ("second", "second.ipynb")


def test_a_shell_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    _kernel(monkeypatch)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not is_notebook()


def test_a_run_in_a_notebook_records_no_connection_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    _kernel(monkeypatch)
    with cmf.run("p", script_name()):
        pass
    header, body = only(home, "execution.started")
    assert ("stage", ("p", "notebook")) in header.about
    assert body["facts"]["command"] == ("/usr/bin/python", "-m", "ipykernel_launcher", "notebook")
