"""What systemd is told (sd_notify(3)), through a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmf_agent.service_manager import sign_of_life_every_s, tell


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(30)
        yield listening, address


def test_lines_arrive_as_one_message(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    assert tell("READY=1", "STATUS=idle", environment={"NOTIFY_SOCKET": address})
    assert listening.recv(1000) == b"READY=1\nSTATUS=idle"


def test_a_name_without_a_file_is_an_abstract_one() -> None:
    name = f"cmf-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        assert tell("READY=1", environment={"NOTIFY_SOCKET": f"@{name}"})
        assert listening.recv(1000) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nonexistent/notify"}])
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    assert not tell("READY=1", environment=environment)


@pytest.mark.parametrize(
    ("environment", "every_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_signs_of_life_come_twice_in_the_time(environment: dict[str, str], every_s: float | None) -> None:
    assert sign_of_life_every_s(environment) == every_s
