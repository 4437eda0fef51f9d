import pytest

from cmf_hub.addresses import Addresses, is_loopback, normal, read_addresses, read_host_port
from cmf_link.address import Address, read_address
from cmf_protocol.errors import CallerError


def urls(nats: str, advertise: str | None = None, this_host: str = "hub-1") -> tuple[str, str, str]:
    found = read_addresses(nats, advertise, this_host)
    assert found.tls == found.advertised.tls == found.local.tls
    return found.listen.url, found.advertised.url, found.local.url


@pytest.mark.parametrize("address", ["127.0.0.1:4222", "localhost:4222", "[::1]:4222", "127.8.8.8:1"])
def test_on_this_machine_only_it_is_plain(address: str) -> None:
    assert urls(address) == (f"nats://{address}",) * 3


def test_a_hub_that_others_reach_is_tls() -> None:
    assert urls("10.1.2.3:4222") == ("tls://10.1.2.3:4222",) * 3
    assert urls("hub.example.org:4222")[1] == "tls://hub.example.org:4222"


def test_a_tunnel_from_elsewhere_is_tls_too() -> None:
    assert urls("127.0.0.1:4222", "hub.example.org:14222") == (
        "tls://127.0.0.1:4222",
        "tls://hub.example.org:14222",
        "tls://127.0.0.1:4222",
    )
    assert urls("127.0.0.1:4222", "127.0.0.1:5000")[1] == "nats://127.0.0.1:5000"


def test_on_every_address_sites_are_told_this_hosts_name_or_what_is_advertised() -> None:
    assert urls("0.0.0.0:4222") == ("tls://0.0.0.0:4222", "tls://hub-1:4222", "tls://127.0.0.1:4222")
    assert urls("[::]:4222", "[fd00::2]:4222") == ("tls://[::]:4222", "tls://[fd00::2]:4222", "tls://[::1]:4222")
    assert urls("0.0.0.0:4222", "127.0.0.1:4222")[0] == "tls://0.0.0.0:4222"


@pytest.mark.parametrize(
    ("advertise", "this_host"), [(None, ""), (None, "müller"), ("0.0.0.0:1", "hub"), ("a b:1", "hub"), ("ü:1", "hub")]
)
def test_what_no_site_could_reach_is_refused(advertise: str | None, this_host: str) -> None:
    with pytest.raises(CallerError, match="no address at which a site") as caught:
        read_addresses("0.0.0.0:4222", advertise, this_host)
    assert "--advertise" in caught.value.hint


@pytest.mark.parametrize("text", ["", "4222", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²", ":4222"])
def test_an_address_without_host_or_port_is_refused(text: str) -> None:
    with pytest.raises(CallerError, match="is not HOST:PORT"):
        read_host_port(text)


def test_the_certificate_names_every_way_to_the_hub_in_one_spelling() -> None:
    found = read_addresses("10.0.0.1:4222", "Hub.Example.org:4222", "Box").names("Box")
    assert found == {"10.0.0.1", "hub.example.org", "box", "localhost", "127.0.0.1", "::1"}
    assert "0.0.0.0" not in read_addresses("0.0.0.0:4222", None, "box").names("box")
    assert read_addresses("10.0.0.1:1", None, "").names("no name!") == {"10.0.0.1", "localhost", "127.0.0.1", "::1"}
    assert (normal("FD00:0::2"), normal("fe80::1%eth0")) == ("fd00::2", "fe80::1")


def test_a_name_is_not_taken_for_loopback() -> None:
    assert not is_loopback("localhost.example.org") and not is_loopback("hub")


def test_an_address_keeps_its_scheme() -> None:
    for text in ("tls://h:1", "nats://h:1", "tls://[::1]:4222"):
        assert read_address(text).url == text
    assert read_address("tls://h") == Address("h", 4222, tls=True)
    assert Addresses(read_address("tls://0.0.0.0:1"), read_address("tls://h:1")).local == Address("127.0.0.1", 1, True)
