"""Artifact bytes over S3 (moto's server) and SSH (a real sshd), with the wrong credentials too."""

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from tests.agent.artifact_sites import FILES, Site, copy_site, make_colleague, make_site
from tests.support.nats import HOST, free_port

from cmf_agent.artifact_bytes import Wanted
from cmf_protocol.errors import StoreError

pytestmark = pytest.mark.extended
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("made") / "site")


def configure(site: Site, url: str, **settings: str) -> None:
    """Give a site the default remote `store`."""
    dvc = [sys.executable, "-m", "dvc"]
    commands = [["remote", "add", "-d", "-f", "store", url]]
    commands += [["remote", "modify", "--local", "store", name, value] for name, value in settings.items()]
    for words in commands:
        subprocess.run([*dvc, *words, "-q"], cwd=site.folder, check=True)


def check_way(site: Site, colleague: Site) -> None:
    """Push from one and pull at the other, again and again, with damage on the way."""
    assert site.push(Wanted()).count("transferred") == 2
    assert site.push(Wanted()).count("present") == 2
    report = colleague.pull(Wanted())
    assert report.count("transferred") == 2 and all(item.is_good for item in report.items)
    assert {name: (colleague.folder / name).read_bytes() for name in FILES} == FILES


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, with the bucket `bucket`."""
    server = import_module("moto.server").ThreadedMotoServer(ip_address=HOST, port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client(endpoint).create_bucket(Bucket="bucket")
    yield endpoint
    server.stop()


def with_s3(site: Site, endpoint: str, url: str = "s3://bucket/store", **more: str) -> None:
    settings = {"endpointurl": endpoint, "region": "us-east-1", "access_key_id": "a", "secret_access_key": "b"}
    configure(site, url, **(settings | more))


def client(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    return import_module("boto3").client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def test_bytes_go_over_s3(made: Site, s3: str, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    colleague = make_colleague(made, tmp_path / "colleague")
    with_s3(site, s3)
    with_s3(colleague, s3)
    check_way(site, colleague)
    (model,) = colleague.needed("model.pkl")
    key = f"store/files/md5/{model.content_id[4:6]}/{model.content_id[6:]}"
    client(s3).put_object(Bucket="bucket", Key=key, Body=b"evil!" * 100)
    colleague.cached(model.content_id).unlink()
    (item,) = colleague.pull(Wanted(), "model.pkl").items
    assert (item.state, item.is_damaged) == ("failed", True)
    client(s3).put_object(Bucket="bucket", Key=key, Body=b"short")
    assert site.push(Wanted()).count("transferred") == 1
    assert colleague.pull(Wanted(), "model.pkl").count("transferred") == 1


def test_a_bucket_that_is_not_there_is_told(made: Site, s3: str, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    with_s3(site, s3, "s3://nobody/store")
    try:
        report = site.push(Wanted())
    except StoreError as error:
        assert "s3://nobody" in str(error) and "\n" not in str(error)
    else:
        assert report.count("failed") == 2
        assert all("\n" not in item.reason for item in report.items)


def test_a_key_that_s3_refuses_is_told_in_one_line(made: Site, s3: str, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    with_s3(site, s3, access_key_id="AKIAWRONG")
    check_keys_after(s3, 0)
    try:
        with pytest.raises(StoreError) as caught:
            site.push(Wanted())
    finally:
        check_keys_after(s3, 1_000_000)
    assert "s3://bucket/store refuses: " in str(caught.value) and "\n" not in str(caught.value)
    assert "credentials" in caught.value.hint


def check_keys_after(endpoint: str, requests: int) -> None:
    """Let the server check keys after so many more requests."""
    urlopen(
        Request(f"{endpoint}/moto-api/reset-auth", data=str(requests).encode(), headers={"Content-Type": "text/plain"})
    ).close()


def test_a_server_that_is_not_there_is_told(made: Site, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    with_s3(site, f"http://{HOST}:{free_port()}", connect_timeout="1", read_timeout="1")
    with pytest.raises(StoreError) as caught:
        site.push(Wanted())
    assert "s3://bucket/store" in str(caught.value) and "\n" not in str(caught.value)
    assert "reachable" in caught.value.hint


# -- SSH ---------------------------------------------------------------------------------------------------------------


class Sshd:
    """An sshd of this user's own on a free port; `key` logs in there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.key = folder, free_port(), folder / "login"
        self.user = pwd.getpwuid(os.getuid()).pw_name
        for name in ("host", "login"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "authorized").write_text((folder / "login.pub").read_text())
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress {HOST}\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert sshd, "sshd is missing: apt-get install openssh-server"
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=log)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while b"listening" not in (self.folder / "log").read_bytes():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.process.terminate()
    server.process.wait(LIMIT_S)


def with_ssh(site: Site, sshd: Sshd, store: Path, **settings: str) -> None:
    url = f"ssh://{sshd.user}@{HOST}:{sshd.port}{store}"
    configure(site, url, **({"keyfile": str(sshd.key), "allow_agent": "false"} | settings))


def test_bytes_go_over_ssh(made: Site, sshd: Sshd, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    colleague = make_colleague(made, tmp_path / "colleague")
    for at in (site, colleague):
        with_ssh(at, sshd, tmp_path / "store")
    check_way(site, colleague)
    assert not list((tmp_path / "store").rglob("*.part"))
    (model,) = colleague.needed("model.pkl")
    stored = tmp_path / "store/files/md5" / model.content_id[4:6] / model.content_id[6:]
    stored.chmod(0o644)
    stored.write_bytes(b"cut")
    assert site.push(Wanted()).count("transferred") == 1
    assert stored.read_bytes() == FILES["model.pkl"]
    stored.write_bytes(b"evil!" * 100)
    colleague.cached(model.content_id).unlink()
    (item,) = colleague.pull(Wanted(), "model.pkl").items
    assert (item.state, item.is_damaged) == ("failed", True)


def test_a_key_that_ssh_refuses_is_told_in_one_line(made: Site, sshd: Sshd, tmp_path: Path) -> None:
    site = copy_site(made, tmp_path / "site")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    with_ssh(site, sshd, tmp_path / "store", keyfile=str(tmp_path / "other"))
    with pytest.raises(StoreError) as caught:
        site.push(Wanted())
    assert " refuses: " in str(caught.value) and "\n" not in str(caught.value)
    assert "credentials" in caught.value.hint
