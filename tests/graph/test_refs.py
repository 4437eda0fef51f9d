"""What a REF means."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.graphs import Site, World, id_text, md5, sha256

from cmf_graph.refs import find, resolve_one
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError


@pytest.fixture
def berlin(world: World) -> Site:
    return world.site("berlin")


def meant(world: World, ref: str, hash_file: Callable[[Path], str] | None = None) -> str:
    match = resolve_one(world.graph(), ref, sites=world.sites, hash_file=hash_file)
    return f"{match.kind} {match.id}"


def refused(world: World, ref: str, hash_file: Callable[[Path], str] | None = None) -> CallerError:
    with pytest.raises(CallerError) as caught:
        resolve_one(world.graph(), ref, sites=world.sites, hash_file=hash_file)
    assert caught.value.hint
    return caught.value


def test_a_digest_with_and_without_algorithm_and_each_long_prefix_of_it_is_the_artifact(
    world: World, berlin: Site
) -> None:
    berlin.run(makes=[md5("model")])
    for ref in (
        md5("model"),
        md5("model")[4:],
        md5("model")[:10],
        md5("model")[4:10],
        md5("model").upper()[4:],
        f"artifact:{md5('model')}",
    ):
        assert meant(world, ref) == f"artifact {md5('model')}"


def test_five_digits_are_no_prefix(world: World, berlin: Site) -> None:
    berlin.run(makes=[md5("model")])
    refused(world, md5("model")[4:9])


def test_another_digest_of_one_md5_is_that_artifact(world: World, berlin: Site) -> None:
    run = world.new_execution()
    berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, md5("model"), digests=[sha256("model")]))
    for ref in (sha256("model"), sha256("model")[7:], sha256("model")[7:15], sha256("model")[:13]):
        assert meant(world, ref) == f"artifact {md5('model')}"


def test_another_digest_of_two_md5_lists_both(world: World, berlin: Site) -> None:
    run = world.new_execution()
    for text in ("a", "b"):
        berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, md5(text), name=f"{text}.csv", digests=[sha256("same")]))
    message = str(refused(world, sha256("same")))
    assert md5("a") in message and md5("b") in message and "a.csv" in message


def test_an_artifact_without_md5_that_one_md5_claims_is_that_artifact(world: World, berlin: Site) -> None:
    run = world.new_execution()
    berlin.record(t.usage(t.ARTIFACT_USED, run, sha256("model"), name="imported.bin"))
    assert meant(world, sha256("model")) == f"artifact {sha256('model')}"
    berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, md5("model"), digests=[sha256("model")]))
    for ref in (sha256("model"), md5("model"), "imported.bin"):
        assert meant(world, ref) == f"artifact {md5('model')}"


def test_a_folders_digest_is_not_taken_for_the_file_with_the_same_digits(world: World, berlin: Site) -> None:
    folder = md5("data") + ".dir"
    berlin.run(uses=[md5("data"), folder])
    assert meant(world, md5("data")) == f"artifact {md5('data')}"
    assert meant(world, folder) == f"artifact {folder}"
    assert meant(world, folder[4:]) == f"artifact {folder}"
    refused(world, md5("data")[:20])


def test_an_execution_is_found_by_its_uuid_in_any_spelling_and_by_its_first_digits(world: World, berlin: Site) -> None:
    run = berlin.run()
    text = id_text(run)
    for ref in (text, text.replace("-", ""), text.upper(), text[:13], run.hex()[:7], f"execution:{text[:8]}"):
        assert meant(world, ref) == f"execution {text}"


def test_an_event_is_found_by_its_id_and_by_its_first_digits(world: World, berlin: Site) -> None:
    (event,) = berlin.record(t.note_added(("pipeline", "mnist"), "hello"))
    for length in (6, 9, 14, 15, 40, 64):
        assert meant(world, event.event_id.hex()[:length]) == f"event {event.event_id.hex()}"


def test_a_prefix_of_several_things_lists_all_with_what_tells_them_apart(world: World, berlin: Site) -> None:
    first, second = bytes.fromhex("abcdef" + "00" * 13), bytes.fromhex("abcdef" + "11" * 13)
    berlin.run("mnist", "train", execution=first)
    berlin.run("mnist", "test", execution=second)
    message = str(refused(world, "abcdef"))
    assert id_text(first) in message and id_text(second) in message
    assert "mnist/train" in message and "berlin" in message


def test_many_candidates_are_cut_after_ten_and_counted(world: World, berlin: Site) -> None:
    for at in range(13):
        berlin.run(execution=bytes.fromhex("abcdef" + f"{at:02x}" * 13))
    message = str(refused(world, "abcdef"))
    assert "13 things" in message and "and 3 more" in message
    assert len(re.findall("execution abcdef", message)) == 10


def test_pipelines_and_stages_are_found_by_name_even_with_slashes_in_it(world: World, berlin: Site) -> None:
    berlin.run("vision/mnist", "train/fine")
    assert meant(world, "vision/mnist") == "pipeline vision/mnist"
    assert meant(world, "vision/mnist/train/fine") == "stage vision/mnist/train/fine"
    assert meant(world, "train/fine") == "stage vision/mnist/train/fine"


def test_names_are_compared_in_nfc(world: World, berlin: Site) -> None:
    berlin.run("caf\u00e9", "train")
    assert meant(world, "cafe\u0301") == "pipeline caf\u00e9"


def test_an_artifact_is_found_by_its_name_and_else_by_the_last_component(world: World, berlin: Site) -> None:
    berlin.run(makes={"models/model.pkl": md5("model"), "pkl": md5("other")})
    assert meant(world, "models/model.pkl") == f"artifact {md5('model')}"
    assert meant(world, "model.pkl") == f"artifact {md5('model')}"
    assert meant(world, "pkl") == f"artifact {md5('other')}"
    refused(world, "odel.pkl")


def test_one_text_that_names_things_of_two_kinds_lists_both_and_the_kind_decides(world: World, berlin: Site) -> None:
    berlin.run("mnist", "train", makes={"mnist": md5("model")})
    error = refused(world, "mnist")
    assert "pipeline mnist" in str(error) and md5("model") in str(error)
    assert "pipeline:" in error.hint or "artifact:" in error.hint
    assert meant(world, "pipeline:mnist") == "pipeline mnist"
    assert meant(world, "artifact:mnist") == f"artifact {md5('model')}"


def test_an_execution_is_found_by_the_name_that_it_has_now(world: World, berlin: Site) -> None:
    run = berlin.run(facts={"name": "first try"})
    assert meant(world, "first try") == f"execution {id_text(run)}"
    berlin.record(t.execution_updated(run, facts={"name": "best"}))
    assert meant(world, "best") == f"execution {id_text(run)}"
    refused(world, "first try")


def test_a_tag_names_what_has_it_until_it_is_removed(world: World, berlin: Site) -> None:
    berlin.run(makes=[md5("model")])
    (add,) = berlin.record(t.tag_added(("artifact", md5("model")), "production"))
    assert meant(world, "production") == f"artifact {md5('model')}"
    berlin.record(t.tag_removed(("artifact", md5("model")), "production", [add.event_id]))
    refused(world, "production")


@pytest.mark.parametrize(
    "ref", ["", "  ", "\0", "a\0b", "\ud800", "%", "_" * 40, "x" * 10_000, "md5:", ":", "/", "-", "'; DROP TABLE nodes"]
)
def test_nonsense_is_refused_with_a_hint(world: World, berlin: Site, ref: str) -> None:
    berlin.run(makes={"model.pkl": md5("model")})
    with pytest.raises(CallerError):
        resolve_one(world.graph(), ref, sites=world.sites)


def test_hostile_names_do_not_reach_the_terminal_through_an_error(world: World, berlin: Site) -> None:
    berlin.run(execution=bytes.fromhex("abcdef" + "00" * 13), facts={"name": "\x1b[31mred\u202e"})
    berlin.run(execution=bytes.fromhex("abcdef" + "11" * 13))
    message = str(refused(world, "abcdef"))
    assert "red" in message and "\x1b" not in message and "\u202e" not in message


# -- files -------------------------------------------------------------------------------------------------------------


def content_of(path: Path) -> str:
    return md5(path.read_text())


def test_a_path_is_hashed_and_its_content_looked_up(world: World, berlin: Site, tmp_path: Path) -> None:
    berlin.run(makes={"elsewhere.bin": md5("model")})
    (tmp_path / "copy.bin").write_text("model")
    assert meant(world, str(tmp_path / "copy.bin"), content_of) == f"artifact {md5('model')}"


def test_the_error_for_an_unknown_file_names_its_digest(world: World, berlin: Site, tmp_path: Path) -> None:
    (tmp_path / "new.bin").write_text("new")
    assert md5("new") in str(refused(world, str(tmp_path / "new.bin"), content_of))
    assert "no file" in str(refused(world, str(tmp_path / "none.bin"), content_of))


def test_a_file_says_which_of_several_artifacts_of_its_name_is_meant(
    world: World, berlin: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    berlin.run(makes={"model.pkl": md5("old")})
    berlin.run(makes={"model.pkl": md5("new")})
    refused(world, "model.pkl")
    Path("model.pkl").write_text("old")
    assert meant(world, "model.pkl", content_of) == f"artifact {md5('old')}"
    Path("model.pkl").write_text("changed since")
    error = refused(world, "model.pkl", content_of)
    assert md5("changed since") in str(error) and md5("old") in error.hint


def test_a_folder_called_like_a_pipeline_is_not_hashed(
    world: World, berlin: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    berlin.run("mnist", "train")
    hashed: list[Path] = []

    def note(path: Path) -> str:
        hashed.append(path)
        return md5("folder")

    assert meant(world, "mnist", note) == "pipeline mnist"
    assert not hashed
    assert md5("mnist") in str(refused(world, "./mnist", lambda path: md5(path.name)))


def test_where_files_can_not_be_looked_up_a_path_says_so(world: World, berlin: Site) -> None:
    assert "digest" in refused(world, "./model.pkl").hint


def test_find_returns_all_candidates(world: World, berlin: Site) -> None:
    berlin.run(makes={"a/x.csv": md5("a")})
    berlin.run(makes={"b/x.csv": md5("b")})
    found = find(world.graph(), "x.csv", sites=world.sites)
    assert {m.id for m in found} == {md5("a"), md5("b")}
    assert {m.label for m in found} == {"a/x.csv", "b/x.csv"}
