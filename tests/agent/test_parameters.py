"""Files of parameters and of metrics, and patterns of files: what is read, and what is refused with its reason."""

import math
from pathlib import Path

import pytest

from cmf_agent.globs import is_pattern, matches
from cmf_agent.metric_files import read_metrics
from cmf_agent.parameters import read_params
from cmf_protocol.errors import CallerError

YAML = """
lr: 1e-3
answer: yes
day: 2024-01-02
train: {seeds: [1, 2], rate: .5, bound: .inf}
1: one
dotted.key: 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(path: Path, text: str | None = None) -> str:
    """Return why a file of parameters is refused."""
    if text is not None:
        path.write_text(text)
    with pytest.raises(CallerError) as refusal:
        read_params(str(path))
    assert refusal.value.hint
    assert str(path) in str(refusal.value)
    return str(refusal.value)


# -- parameters --------------------------------------------------------------------------------------------------------


def test_yaml_is_that_of_version_1_2_with_texts_for_keys_and_dates(folder: Path) -> None:
    (folder / "p.yaml").write_text(YAML)
    path, params = read_params("p.yaml")
    assert path == Path("p.yaml")
    assert params == {
        "lr": 0.001,
        "answer": "yes",
        "day": "2024-01-02",
        "train": {"seeds": [1, 2], "rate": 0.5, "bound": math.inf},
        "1": "one",
        "dotted.key": 7,
    }


def test_keys_select_nested_values_under_the_names_that_are_asked_for(folder: Path) -> None:
    (folder / "p.yml").write_text(YAML)
    assert read_params("p.yml:train.rate, train.seeds.1,dotted.key,train")[1] == {
        "train.rate": 0.5,
        "train.seeds.1": 2,
        "dotted.key": 7,
        "train": {"seeds": [1, 2], "rate": 0.5, "bound": math.inf},
    }
    for key in ("train.no", "train.seeds.2", "lr.x", "no"):
        with pytest.raises(CallerError, match="has no parameter") as refusal:
            read_params(f"p.yml:{key}")
        assert "lr, answer, day" in refusal.value.hint


def test_json_and_toml_are_read_and_a_file_with_a_colon_is_that_file(folder: Path) -> None:
    (folder / "p.json").write_text('\ufeff{"a": {"b": NaN}}', encoding="utf-8")
    (folder / "p.toml").write_text("[a]\nat = 2024-01-02T03:04:05Z\n")
    (folder / "x:a.json").write_text('{"c": 1}')
    assert math.isnan(read_params("p.json:a.b")[1]["a.b"])  # type: ignore[arg-type]
    assert read_params("p.toml")[1] == {"a": {"at": "2024-01-02T03:04:05+00:00"}}
    assert read_params("x:a.json") == (Path("x:a.json"), {"c": 1})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yaml", "a: [1\nb: 2", "line 2"),
        ("b.yaml", "a: 1\na: 2", "duplicate key"),
        ("c.yaml", "a: &x [*x]", "holds itself"),
        ("d.yaml", "a: !!python/object:os.system x", "not valid YAML"),
        ("e.yaml", "a: 1\n---\nb: 2", "another document"),
        ("f.yaml", "", "it is empty"),
        ("g.yaml", "- 1", "it is a list"),
        ("h.json", "{", "not valid JSON"),
        ("i.json", "[" * 100_000, "nested too deep"),
        ("j.toml", "a=", "not valid TOML"),
        ("k.txt", "a=1", "no file of parameters"),
        ("l.yaml", None, "does not exist"),
    ],
)
def test_what_is_no_file_of_parameters_is_told_with_its_place(
    folder: Path, name: str, text: str | None, reason: str
) -> None:
    assert reason in refused(folder / name, text)


def test_what_names_no_file_or_no_text_is_refused(folder: Path) -> None:
    (folder / "p.json").write_bytes(b'{"a": "\xff"}')
    assert "no text" in refused(folder / "p.json")
    for text in ("", ":a", "p.json:", "p.json:a,,b"):
        with pytest.raises(CallerError, match="is not FILE"):
            read_params(text)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_numbers_of_nested_maps_get_dotted_names(folder: Path) -> None:
    for name, text in (
        ("m.json", '{"a": {"b": 1, "c": {"d": 2.5}}, "s": "3", "t": true, "l": [1]}'),
        ("m.yaml", "a: {b: 1, c: {d: 25e-1}}\ns: '3'\nt: true"),
    ):
        (folder / name).write_text(text)
        assert read_metrics(Path(name)) == ({"a.b": 1, "a.c.d": 2.5}, [])


@pytest.mark.parametrize(
    ("name", "text", "points"),
    [
        ("a.csv", "epoch,loss,acc,who\n3,1,,x\n4,0.5,.9,y\n", [("loss", 1, 3), ("loss", 0.5, 4), ("acc", 0.9, 4)]),
        ("b.csv", ",loss\n7,1\n8,nan\n", [("loss", 1, 0), ("loss", None, 1)]),  # pandas writes an index without a name
        ("c.tsv", "Step\tepoch\tloss\n10\t1\t2\n", [("epoch", 1, 10), ("loss", 2, 10)]),
        ("d.csv", "loss,mixed,under\n1,2,1_0\n2,x,1\n", [("loss", 1, 0), ("loss", 2, 1)]),
        ("e.json", '[{"step": 5, "loss": 1, "ok": true}, {"step": 6.0}]', [("loss", 1, 5)]),
        ("f.csv", "iteration,loss\n1,2,surplus\n2\n", [("loss", 2, 1)]),
    ],
)
def test_numeric_columns_are_step_metrics(
    folder: Path, name: str, text: str, points: list[tuple[str, float | None, int]]
) -> None:
    (folder / name).write_text(text)
    found = read_metrics(Path(name))
    assert not found.values
    shown = [(metric, None if value != value else value, step) for metric, value, step in found.points]
    assert sorted(shown, key=repr) == sorted(points, key=repr)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "", "holds no number"),
        ("b.csv", "name\nx\n", "holds no number"),
        ("c.json", '{"a": "1"}', "holds no number"),
        ("d.csv", 'a,b\n1,"2\n', "not valid CSV"),
        ("e.csv", "step,a\n1.5,2\n", "in row 1 the step is 1.5"),
        ("f.txt", "1", "no file of metrics"),
    ],
)
def test_what_holds_no_metrics_is_told(folder: Path, name: str, text: str, reason: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(CallerError, match=reason):
        read_metrics(folder / name)


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(folder: Path) -> Path:
    for name in ("d/a.csv", "d/b.txt", "d/.hidden.csv", "d/s/c.csv", "d/s/.h/e.csv", "lit[1].csv", "l.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "d" / "loop").symlink_to(".")
    return folder


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d/*.csv", ["d/a.csv"]),
        ("d/[ab].???", ["d/a.csv", "d/b.txt"]),
        ("d/*", ["d/a.csv", "d/b.txt", "d/loop", "d/s"]),
        ("d/**/*.csv", ["d/a.csv", "d/s/c.csv"]),
        ("d/**", ["d/a.csv", "d/b.txt", "d/s/c.csv"]),
        ("d/.*.csv", ["d/.hidden.csv"]),
        ("**/.h/*", ["d/s/.h/e.csv"]),
        ("no/*", []),
    ],
)
def test_patterns_match_as_a_shell_has_it(tree: Path, pattern: str, found: list[str]) -> None:
    assert is_pattern(pattern)
    assert [str(path) for path in matches(pattern)] == found
    assert [str(path) for path in matches(f"{tree}/{pattern}")] == [f"{tree}/{name}" for name in found]


def test_a_file_of_that_very_name_is_no_pattern(tree: Path) -> None:
    assert not is_pattern("lit[1].csv")
    assert is_pattern("lit[2].csv")
    assert not is_pattern("plain")


def test_what_can_be_no_pattern_is_refused(tree: Path) -> None:
    with pytest.raises(CallerError, match="a\\*\\*b"):
        matches("a**b")
