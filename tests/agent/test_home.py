"""Finding and making `.cmf`, configuration, keys, joining."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import CLI, cli, cli_json, environment, recorded

from cmf_agent.home import find_home, future_home, init_home
from cmf_agent.hub_file import hub_in_force, join, load_hub
from cmf_agent.keys import make_key, read_signer
from cmf_agent.settings import Settings, load_settings, user_config_path
from cmf_agent.verify import verify
from cmf_link.login import new_login
from cmf_protocol.errors import CallerError, StoreError

NEXT = "next: `cmf-agent run -p PIPELINE -s STAGE -- CMD`; keep a copy of {keys} elsewhere"


def test_init_makes_a_private_key_an_ignore_file_and_a_log(project: Path) -> None:
    done = cli("init", cwd=project)
    assert (done.returncode, done.stdout) == (
        0,
        f"made {project}/.cmf\n{NEXT.format(keys=project / '.cmf' / 'keys')}\n",
    )
    folder = project / ".cmf"
    assert (folder / ".gitignore").read_text() == "*\n"
    assert (folder / "keys" / "signing.key").stat().st_mode & 0o777 == 0o600
    home = find_home(project)
    (header, body), *rest = recorded(home)
    assert not rest
    assert header.about == (("key", read_signer(home.key_path).public_key),)
    assert body["agent"].startswith("cmf-sync/")
    assert load_settings(home.config_path)


def test_a_second_init_changes_nothing_and_says_so(project: Path) -> None:
    cli("init", cwd=project)
    home = find_home(project)
    before = home.key_path.read_bytes(), len(recorded(home))
    done = cli("init", cwd=project)
    assert done.returncode == 0
    assert "nothing changed" in done.stdout
    assert (home.key_path.read_bytes(), len(recorded(home))) == before


def test_init_finishes_what_was_half_made(project: Path) -> None:
    home = future_home(project)
    home.key_path.parent.mkdir(parents=True)
    make_key(home.key_path)
    assert init_home(home)
    assert not init_home(home)
    (home.path / ".gitignore").unlink()
    assert init_home(home)
    assert len(recorded(home)) == 1


def test_a_key_is_never_made_anew_for_a_log_that_exists(project: Path) -> None:
    home = future_home(project)
    init_home(home)
    home.key_path.unlink()
    init_home(home)
    with pytest.raises(StoreError, match="is missing"):
        read_signer(home.key_path)


@pytest.mark.parametrize("form", ["raw", "hex"])
def test_a_key_may_be_raw_or_hexadecimal(tmp_path: Path, form: str) -> None:
    path = tmp_path / "key"
    seed = bytes(range(32))
    path.write_bytes(seed if form == "raw" else seed.hex().encode() + b"\n")
    assert read_signer(path).public_key.hex().startswith("03a107bff3ce10be")
    path.write_bytes(b"short")
    with pytest.raises(StoreError, match="no signing key"):
        read_signer(path)


def test_the_home_is_found_upwards(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init_home(future_home(project))
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert find_home().path == project / ".cmf"
    assert find_home().root == project


def test_no_home_is_the_callers_error_with_the_way_out(project: Path) -> None:
    for command in (["status"], ["log"], ["verify"], ["tag", "x", "y"], ["push"]):
        done = cli(*command, cwd=project)
        assert done.returncode == 2, command
        assert "cmf-agent init" in done.stderr
        assert not done.stdout


def test_cmf_home_overrides_and_the_root_is_the_git_root(project: Path, tmp_path: Path) -> None:
    (project / ".git").mkdir()
    inner = project / "inner"
    inner.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home = find_home(inner, {"CMF_HOME": str(elsewhere)})
    assert (home.path, home.root) == (elsewhere, project)
    with pytest.raises(CallerError, match="does not exist"):
        find_home(inner, {"CMF_HOME": str(tmp_path / "nothing")})


def test_flags_go_before_environment_before_files(tmp_path: Path) -> None:
    project, user = tmp_path / "config.toml", tmp_path / "user"
    environment = {"XDG_CONFIG_HOME": str(user)}
    user_file = user_config_path(environment)
    user_file.parent.mkdir(parents=True)
    user_file.write_text('team = "users"\nactor = "users"\n[hub]\nurl = "nats://users"\n')
    project.write_text('team = "projects"\n[capture]\ndiff = true\n')
    settings = load_settings(project, environment)
    assert (settings.team, settings.actor, settings.hub_url) == ("projects", "users", "nats://users")
    assert settings.capture_diff
    changed = load_settings(
        project,
        environment | {"CMF_TEAM": "env", "CMF_HUB": "nats://env", "CMF_CAPTURE_DIFF": "no"},
        hub_url="nats://flag",
    )
    assert (changed.team, changed.hub_url, changed.capture_diff) == ("env", "nats://flag", False)
    assert load_settings(project, environment | {"CMF_CAPTURE_ENV": "A, B,"}).capture_env == ("A", "B")


def test_the_users_file_lies_where_the_platform_keeps_it() -> None:
    assert user_config_path({"HOME": "/h"}, "linux") == Path("/h/.config/cmf-sync/config.toml")
    assert user_config_path({"HOME": "/h"}, "darwin") == Path("/h/Library/Application Support/cmf-sync/config.toml")


@pytest.mark.parametrize(
    ("line", "key"),
    [("team = 3", "team"), ('capture.env = "A"', "capture.env"), ('capture.diff = "x"', "capture.diff")],
)
def test_one_wrong_key_is_told_and_left_out_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, key: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'actor = "maria"\n{line}\n')
    settings = load_settings(path, {"HOME": "/nonexistent"})
    assert settings == Settings(actor="maria")
    told = capsys.readouterr().err
    assert f"{key} in {path} is " in told
    assert "mend that line" in told


@pytest.mark.parametrize(("value", "holds"), [('"full"', True), ("true", True), ("false", False), ('"off"', False)])
def test_the_diff_is_captured_if_the_configuration_says_so(tmp_path: Path, value: str, holds: bool) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[capture]\ndiff = {value}\n")
    assert load_settings(path, {"HOME": "/nonexistent"}).capture_diff is holds
    assert load_settings(path, {"HOME": "/nonexistent", "CMF_CAPTURE_DIFF": "full"}).capture_diff
    assert not load_settings(path, {"HOME": "/nonexistent", "CMF_CAPTURE_DIFF": "perhaps"}).capture_diff


@pytest.mark.parametrize("content", ["hub = 1\n[hub]\n", "\xff = 1\n"])
def test_a_wrong_configuration_names_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CallerError, match=r"config\.toml"):
        load_settings(path, {"HOME": "/nonexistent"})


# -- joining -------------------------------------------------------------------------------------------------------


def join_file(folder: Path, **changes: Any) -> Path:
    content = {
        "version": 1,
        "site": "clinic-a",
        "url": "nats://hub:4222",
        "hub_id": "ab" * 16,
        "hub_key": "cd" * 32,
        "login": new_login().seed,
        "token": "once",
        "ca": None,
    }
    path = folder / "a.join"
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value != "left out"}))
    return path


def test_joining_keeps_the_hub_privately(project: Path) -> None:
    path = join_file(project)
    done = cli("init", "--join", str(path), "--hub", "nats://other:1", cwd=project)
    assert done.returncode == 0, done.stderr
    home = find_home(project)
    assert home.hub_path.stat().st_mode & 0o777 == 0o600
    hub = load_hub(home)
    assert hub is not None
    assert (hub.site, hub.url, hub.hub_id, hub.token) == ("clinic-a", "nats://other:1", b"\xab" * 16, "once")
    hub.forget_token()
    kept = load_hub(home)
    assert kept is not None
    assert kept.token is None
    status = cli_json("status", cwd=project)
    assert (status["site"], status["hub"]) == ("clinic-a", "nats://other:1")
    assert "cmf-agent push" in status["waits_for"]


def test_the_hub_in_force_follows_the_configuration(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = future_home(project)
    init_home(home)
    with pytest.raises(CallerError, match="not joined"):
        hub_in_force(home)
    join(home, join_file(project))
    monkeypatch.setenv("CMF_HUB", "nats://env:1")
    hub = hub_in_force(home)
    assert hub.url == "nats://env:1"
    hub.forget_token()
    kept = load_hub(home)
    assert kept is not None
    assert (kept.url, kept.token) == ("nats://hub:4222", None)
    assert hub_in_force(home, url="nats://flag:1").url == "nats://flag:1"


def test_the_answer_of_a_hub_uses_up_no_token_but_its_own(project: Path) -> None:
    home = future_home(project)
    init_home(home)
    served = join(home, join_file(project))
    join(home, join_file(project, hub_id="ef" * 16, token="another hub's"), replaces=True)
    served.forget_token()  # the daemon was still served by the hub before
    kept = load_hub(home)
    assert kept is not None
    assert (kept.hub_id, kept.token) == (b"\xef" * 16, "another hub's")


def test_another_hub_is_taken_only_when_told(project: Path) -> None:
    cli("init", cwd=project)
    assert cli("join", str(join_file(project)), cwd=project).returncode == 0
    assert cli("join", str(join_file(project, token="again")), cwd=project).returncode == 0
    other = join_file(project, site="clinic-b")
    refused = cli("join", str(other), cwd=project)
    assert refused.returncode == 2
    assert "--replace" in refused.stderr
    assert cli_json("status", cwd=project)["site"] == "clinic-a"
    assert cli("join", str(other), "--replace", cwd=project).returncode == 0
    assert cli_json("status", cwd=project)["site"] == "clinic-b"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "as new as the hub's"),
        ({"version": "left out"}, "cmf-hub site add"),
        ({"site": "Not A Name"}, "'site'"),
        ({"site": "left out"}, "'site'"),
        ({"hub_id": "xyz"}, "'hub_id'"),
        ({"hub_key": "left out"}, "'hub_key'"),
        ({"hub_key": "cd" * 31}, "'hub_key'"),
        ({"login": None}, "'login'"),
        ({"login": "SUNOTASEED"}, "'login'"),
        ({"url": ""}, "'url'"),
        ({"url": None}, "'url'"),
        ({"token": 7}, "'token'"),
    ],
)
def test_a_wrong_join_file_is_refused_and_says_why(project: Path, changes: dict[str, Any], words: str) -> None:
    cli("init", cwd=project)
    done = cli("join", str(join_file(project, **changes)), cwd=project)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (project / ".cmf" / "hub.json").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_a_file_that_is_no_join_file_is_refused(project: Path, content: bytes) -> None:
    cli("init", cwd=project)
    (project / "x").write_bytes(content)
    done = cli("join", "x", cwd=project)
    assert done.returncode == 2
    assert "not a join file" in done.stderr
    missing = cli("join", "nowhere", cwd=project)
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_many_inits_at_once_make_one_log(project: Path) -> None:
    several = [
        subprocess.Popen([*CLI, "init"], cwd=project, env=environment(), stdout=subprocess.DEVNULL) for _ in range(4)
    ]
    assert [process.wait(60) for process in several] == [0] * 4
    home = find_home(project)
    assert len(recorded(home)) == 1
    assert not verify(home).problems
    assert list(home.key_path.parent.iterdir()) == [home.key_path]


# -- folders that can't be used ------------------------------------------------------------------------------------


def test_a_deleted_working_directory_is_the_callers_error(project: Path) -> None:
    project.rmdir()
    with pytest.raises(CallerError, match="the working directory is gone"):
        find_home()


@pytest.mark.parametrize("url", ["foo bar", "http://hub", "nats://hub:port"])
def test_an_address_that_is_none_is_not_saved(project: Path, url: str) -> None:
    home = future_home(project)
    init_home(home)
    with pytest.raises(CallerError, match="not an address"):
        join(home, join_file(project), url=url)
    assert not home.hub_path.exists()
    with pytest.raises(CallerError, match="not an address"):
        join(home, join_file(project, url=url.replace(" ", "/")))
    join(home, join_file(project))
    with pytest.raises(CallerError, match="not an address"):
        hub_in_force(home, url=url)


def test_a_good_join_file_replaces_one_that_cannot_be_read(project: Path) -> None:
    home = future_home(project)
    init_home(home)
    home.hub_path.write_text("{damaged")
    assert join(home, join_file(project)).site == "clinic-a"
    hub = load_hub(home)
    assert hub is not None
    assert hub.url == "nats://hub:4222"
