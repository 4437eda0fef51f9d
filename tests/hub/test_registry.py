import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.strategies import SIGNERS

from cmf_hub.registry import Registry
from cmf_protocol.admit import Enrolled
from cmf_protocol.errors import AccessDenied, CallerError

KEY, OTHER, THIRD = (signer.public_key for signer in SIGNERS)
NOW_US = 1_750_000_000_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry.db")
    yield made
    made.close()


def joined(registry: Registry, name: str, key: bytes) -> str:
    token = registry.add(name, login=f"U{name}", key=None, now_us=NOW_US)
    assert token is not None
    registry.bind(name, key, token, NOW_US)
    return token


def test_a_token_binds_one_key_which_may_repeat_it(registry: Registry) -> None:
    token = joined(registry, "ana", KEY)
    registry.bind("ana", KEY, token, NOW_US)  # its first answer was lost
    with pytest.raises(AccessDenied, match="used already"):
        registry.bind("ana", OTHER, token, NOW_US)
    assert registry.site_of(KEY) == Enrolled("ana", False)
    assert registry.site_of(OTHER) is None
    assert registry.names_by_key() == {KEY: "ana"}


def test_a_wrong_token_or_anothers_binds_nothing(registry: Registry) -> None:
    token = registry.add("ana", login="Uana", key=None, now_us=NOW_US)
    registry.add("boris", login="Uboris", key=None, now_us=NOW_US)
    assert token is not None
    for site, said in (("ana", "0" * 64), ("ana", ""), ("boris", token), ("nobody", token)):
        with pytest.raises(AccessDenied):
            registry.bind(site, KEY, said, NOW_US)
    assert registry.site_of(KEY) is None


def test_a_key_belongs_to_one_site_for_ever(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    with pytest.raises(CallerError, match="bound to the site ana"):
        joined(registry, "boris", KEY)
    with pytest.raises(CallerError, match="bound to the site ana"):
        registry.add("chen", login=None, key=KEY, now_us=NOW_US)
    assert [site.name for site in registry.sites()] == ["ana", "boris"]
    assert registry.sites()[1].keys == ()


def test_a_name_is_enrolled_once(registry: Registry) -> None:
    registry.add("ana", login="U", key=None, now_us=NOW_US)
    with pytest.raises(CallerError, match="enrolled already"):
        registry.add("ana", login="U", key=None, now_us=NOW_US)


@pytest.mark.parametrize("name", ["", "-a", "A", "a.b", "a/b", "a" * 64, "a\n", "ä", "*", ">"])
def test_a_name_that_is_no_subject_token_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(CallerError, match="can't be a site's name"):
        registry.add(name, login="U", key=None, now_us=NOW_US)
    assert registry.sites() == []


def test_a_revoked_site_has_no_login_and_no_token_and_keeps_its_key(registry: Registry) -> None:
    token = registry.add("ana", login="Uana", key=None, now_us=NOW_US)
    joined(registry, "boris", OTHER)
    assert registry.logins() == {"ana": "Uana", "boris": "Uboris"}
    registry.revoke("ana", NOW_US + 1)
    registry.revoke("boris", NOW_US + 1)
    registry.revoke("boris", NOW_US + 2)  # harmless
    assert registry.logins() == {}
    assert registry.site_of(OTHER) == Enrolled("boris", True)
    assert [site.revoked_us for site in registry.sites()] == [NOW_US + 1, NOW_US + 1]
    with pytest.raises(AccessDenied):
        registry.bind("ana", KEY, token or "", NOW_US)
    with pytest.raises(CallerError, match="no site nobody"):
        registry.revoke("nobody", NOW_US)


def test_an_enrolment_that_is_taken_back_leaves_nothing(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    registry.remove("ana")
    assert registry.sites() == []
    assert registry.site_of(KEY) is None
    joined(registry, "boris", KEY)


def test_another_process_sees_a_change_at_once(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "registry.db")
    joined(registry, "ana", KEY)
    assert other.site_of(KEY) == Enrolled("ana", False)
    other.revoke("ana", NOW_US)
    assert registry.site_of(KEY) == Enrolled("ana", True)
    other.close()


def test_everyone_carries_its_own_and_the_operator_all(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    assert registry.may_carry("ana", "ana")
    assert registry.may_carry(None, "ana")
    assert not registry.may_carry("boris", "ana")


def test_carrying_and_operating_are_rights_that_are_given_and_taken(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    joined(registry, "boris", OTHER)
    assert registry.site_of(KEY) == Enrolled("ana", False, may_operate=False)
    registry.allow("ana", operator=True)
    assert registry.site_of(KEY) == Enrolled("ana", False, may_operate=True)
    assert not registry.may_carry("ana", "boris")
    registry.allow("ana", carrier=True)
    assert registry.may_carry("ana", "boris")
    assert [(site.may_carry, site.may_operate) for site in registry.sites()] == [(True, True), (False, False)]
    registry.allow("ana", operator=False)
    assert [(site.may_carry, site.may_operate) for site in registry.sites()] == [(True, False), (False, False)]
    registry.revoke("ana", NOW_US)
    assert not registry.may_carry("ana", "boris")
    with pytest.raises(CallerError, match="no site nobody"):
        registry.allow("nobody", carrier=True)


def test_a_site_that_lost_its_disk_binds_a_further_key_with_another_token(registry: Registry) -> None:
    old = joined(registry, "ana", KEY)
    token = registry.rejoin("ana", "Unew")
    assert registry.logins() == {"ana": "Unew"}
    with pytest.raises(AccessDenied):
        registry.bind("ana", OTHER, old, NOW_US)
    registry.bind("ana", OTHER, token, NOW_US + 1)
    assert registry.sites()[0].keys == (KEY, OTHER)
    assert registry.names_by_key() == {KEY: "ana", OTHER: "ana"}
    with pytest.raises(AccessDenied) as raised:
        registry.bind("ana", THIRD, token, NOW_US)
    assert "site rejoin ana" in raised.value.hint
    registry.revoke("ana", NOW_US)
    for name, said in (("ana", "revoked"), ("nobody", "no site nobody")):
        with pytest.raises(CallerError, match=said):
            registry.rejoin(name, "U")


def test_a_new_login_for_a_key_that_is_bound_uses_its_token_up(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    token = registry.rejoin("ana", "Unew")
    registry.bind("ana", KEY, token, NOW_US)
    with pytest.raises(AccessDenied):
        registry.bind("ana", OTHER, token, NOW_US)
    assert registry.sites()[0].keys == (KEY,)


def test_a_rejoin_that_is_taken_back_leaves_the_site_as_it_was(registry: Registry) -> None:
    token = registry.add("ana", login="Uana", key=None, now_us=NOW_US)
    before = registry.credentials("ana")
    registry.rejoin("ana", "Unew")
    registry.restore_credentials("ana", before)
    assert registry.logins() == {"ana": "Uana"}
    registry.bind("ana", KEY, token or "", NOW_US)


def test_sites_of_another_hub_are_enrolled_by_their_keys(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    done = registry.import_sites({"m-ana": [OTHER], "m-boris": [THIRD]}, NOW_US)
    assert (done.added, done.extended, done.unchanged) == (["m-ana", "m-boris"], [], [])
    assert registry.site_of(OTHER) == Enrolled("m-ana", False)
    assert registry.logins() == {"ana": "Uana"}, "they have no login here"
    again = registry.import_sites({"m-ana": [OTHER, b"4" * 32], "m-boris": [THIRD]}, NOW_US)
    assert (again.added, again.extended, again.unchanged) == ([], ["m-ana"], ["m-boris"])
    assert registry.site_of(b"4" * 32) == Enrolled("m-ana", False)


def test_an_import_in_which_names_clash_names_them_all_and_enrols_nobody(registry: Registry) -> None:
    joined(registry, "ana", KEY)
    registry.add("boris", login="U", key=None, now_us=NOW_US)
    with pytest.raises(CallerError, match="ana, boris, carl") as raised:
        registry.import_sites({"ana": [OTHER], "boris": [THIRD], "carl": [KEY], "dora": [b"4" * 32]}, NOW_US)
    assert "--prefix" in raised.value.hint
    with pytest.raises(CallerError, match="can't be a site's name"):
        registry.import_sites({"dora": [b"4" * 32], "Not a name": [THIRD]}, NOW_US)
    assert [site.name for site in registry.sites()] == ["ana", "boris"]


def test_the_hub_keeps_its_identity(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="never started"):
        registry.identity()
    made = registry.identity("SUONE")
    assert registry.identity("SUTWO") == registry.identity() == made
    again = Registry(tmp_path / "registry.db")
    assert again.identity() == made
    again.close()


def test_no_file_with_the_hubs_login_in_it_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        registry = Registry(tmp_path / "registry.db")
        registry.identity("SUSECRET")
        files = list(tmp_path.iterdir())
        assert any(b"SUSECRET" in file.read_bytes() for file in files)
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        registry.close()
    finally:
        os.umask(before)
