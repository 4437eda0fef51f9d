"""What is recorded of the host, and that secrets are not."""

import copy
import os
import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmf_agent.sources.host import host_facts, mask_command, mask_mapping
from cmf_agent.sources.masking import clean_url, looks_secret, mask_text

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"


def test_host_and_user_are_named() -> None:
    facts = host_facts()
    assert facts.keys() == {"host", "user"}
    assert facts["host"] == platform.node()


def test_a_user_without_an_entry_in_passwd_is_named_by_number() -> None:
    script = "import os; from cmf_agent.sources.host import host_facts; os.setuid(54321); print(host_facts()['user'])"
    assert os.getuid() == 0, "run this as root, as the build does"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "uid:54321\n"


SECRET_NAMES = """
password PASSWORD db_password DbPassword passwd --passwd secret client-secret SECRET_KEY token
HF_TOKEN authToken api_key apiKey APIKey apikey X-Api-Key OPENAI_API_KEY access_key
AWS_SECRET_ACCESS_KEY private_key ssh.key credential credentials auth basic_auth bearer passphrase
GITHUB_TOKEN_RO db.password DB_PASS mysql_pwd PGPASSWORD MYPASSWD rootpassword
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_a_secret_name_is_recognised(name: str) -> None:
    assert looks_secret(name)


ORDINARY_NAMES = """
author authors authority tokenizer tokenizer_path max_tokens num_tokens tokens keyboard monkey key
keys public_key sort_key primary_key keypoints pad_token eos_token pad_token_id token_type_ids
token_dim secretary passes n_pass forward_pass compass bypass lr
"""


@pytest.mark.parametrize("name", ORDINARY_NAMES.split())
def test_an_ordinary_name_is_left_alone(name: str) -> None:
    assert not looks_secret(name)
    assert mask_mapping({name: "value"}) == {name: "value"}
    assert mask_command([f"--{name}", "value", f"{name}=value"]) == [f"--{name}", "value", f"{name}=value"]


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (["--password", "x"], ["--password", "***"]),
        (["--password", "--verbose"], ["--password", "--verbose"]),
        (["--password=x y"], ["--password=***"]),
        (["-password", "x"], ["-password", "***"]),
        (["-p", "x"], ["-p", "x"]),
        (["env", "API_TOKEN=x y", "LR=1"], ["env", "API_TOKEN=***", "LR=1"]),
        (["model.token=x", "+db.password=y"], ["model.token=***", "+db.password=***"]),
        (["--password"], ["--password"]),
        (["-H", "Authorization: Bearer abc.def"], ["-H", "Authorization: Bearer ***"]),
        (["-H", "authorization: abc"], ["-H", "authorization: ***"]),
        (["--header=Authorization: Basic Zm9vOmJhcg=="], ["--header=Authorization: Basic ***"]),
        (["X-Api-Key: a b"], ["X-Api-Key: ***"]),
        (["https://me:pw@host/x"], ["https://me:***@host/x"]),
        (["--db=postgresql://me:p@ss@host/x"], ["--db=postgresql://me:***@host/x"]),
        (["https://h/x?token=abc&b=1"], ["https://h/x?token=***&b=1"]),
        (["AccountName=a;AccountKey=b==;c"], ["AccountName=a;AccountKey=***;c"]),
        (['{"password": "x\\"y", "lr": 1}'], ['{"password": "***", "lr": 1}']),
        (
            [
                "sh",
                "-c",
                "export DB_PASSWORD=hunter2 && run --api-key 'foo bar' -v; curl -H 'Authorization: Token t' u",
            ],
            ["sh", "-c", "export DB_PASSWORD=*** && run --api-key '***' -v; curl -H 'Authorization: Token ***' u"],
        ),
        (["python", "train.py", "--lr", "0.1"], ["python", "train.py", "--lr", "0.1"]),
        (["pip", "install", "sk-learn-some-long-package-name"], ["pip", "install", "sk-learn-some-long-package-name"]),
    ],
)
def test_a_command_keeps_its_words_and_loses_its_secrets(argv: list[str], masked: list[str]) -> None:
    before = list(argv)
    assert mask_command(argv) == masked
    assert argv == before


SHAPES = [
    "ghp_" + "a1B2" * 9,
    "gho_" + "a1B2" * 9,
    "github_pat_" + "11AB_cd" * 8,
    "sk-" + "a1B2" * 12,
    "sk-proj-" + "a1-_" * 12,
    "xoxb-1234567890-abcdefghij",
    "AKIAIOSFODNN7EXAMPLE",
    JWT,
    "hf_" + "a1B2" * 8,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("token", SHAPES)
def test_a_token_is_known_by_its_shape_wherever_it_stands(token: str) -> None:
    for text in (token, f"a {token} b", f"x:{token}", f"'{token}'", f"https://host/{token}/x", f"--note={token}"):
        assert token not in mask_text(text)
        assert token not in mask_command(["run", text])[1]
        assert mask_mapping({"note": [text]}) == {"note": [mask_text(text)]}
    assert mask_text(f"a {token} b") == "a *** b"


def test_a_mapping_is_masked_at_any_depth_and_not_changed() -> None:
    values: dict[str, object] = {
        "lr": 0.1,
        "password": "x",
        "max_tokens": 5,
        "db": {"user": "me", "password": 123, "urls": ["https://me:pw@host", ("a", {"api_key": [1]})]},
        "auth": {"user": "me"},
        "use_auth": True,
        "token": None,
        "names": {"hf_" + "a" * 30},
    }
    before = copy.deepcopy(values)
    assert mask_mapping(values) == {
        "lr": 0.1,
        "password": "***",
        "max_tokens": 5,
        "db": {"user": "me", "password": "***", "urls": ["https://me:***@host", ("a", {"api_key": "***"})]},
        "auth": "***",
        "use_auth": True,
        "token": None,
        "names": {"***"},
    }
    assert values == before


def test_a_value_that_holds_itself_comes_to_an_end() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert "***" in repr(mask_mapping({"x": endless}))


def test_a_long_text_is_masked_in_time_that_grows_with_its_length() -> None:
    # Were one expression quadratic, this would take hours.
    for piece in ("a", "-", "eyJ", "sk-", "a=", 'password="\\', "https://", "-----BEGIN PRIVATE KEY", "bearer ", " "):
        text = piece * (300_000 // len(piece))
        mask_command([text])
        clean_url(text)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:pw@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://ghp_aaaaaaaaaaaaaaaaaaaa@github.com/a", "https://github.com/a"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("ssh://git:pw@host:22/x", "ssh://git@host:22/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("https://host/x?private_token=a&b=c&sig=q", "https://host/x?private_token=***&b=c&sig=***"),
        ("https://host/a@b", "https://host/a@b"),
        ("/srv/repo.git", "/srv/repo.git"),
        ("../other", "../other"),
    ],
)
def test_the_address_of_a_remote_loses_its_credentials(url: str, clean: str) -> None:
    assert clean_url(url) == clean == clean_url(clean)


SECRETS = st.text("abcdefghijkXYZ0123456789", min_size=12, max_size=40)
FORMS = [
    "--password={}",
    "PASSWORD={}",
    "Authorization: Bearer {}",
    "https://me:{}@host/x",
    '{{"api_key": "{}"}}',
    "x --token {} y",
    "a; export MY_SECRET='{}' && b",
    '"{{\\"password\\": \\"{}\\"}}"',
    "secret: {}",
]


@given(secret=SECRETS, form=st.sampled_from(FORMS), other=st.lists(st.text(max_size=10), max_size=3))
def test_no_secret_gets_through(secret: str, form: str, other: list[str]) -> None:
    text = form.format(secret)
    assert secret not in "\n".join(mask_command([*other, text]))
    assert secret not in repr(mask_mapping({"command": {"words": [*other, text]}}))
    assert secret not in "\n".join(mask_command([*other, "--api-key", secret]))


@given(st.lists(st.text("pasword-=: \"'/@;&\\token_KEY*https", max_size=60), max_size=5))
def test_masking_what_is_masked_changes_nothing(argv: list[str]) -> None:
    once = mask_command(argv)
    assert len(once) == len(argv)
    assert mask_command(once) == once


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (["--pass", "x"], ["--pass", "***"]),
        (["--pass=x"], ["--pass=***"]),
        (["--pwd", "x"], ["--pwd", "***"]),
        (["-pw", "x"], ["-pw", "***"]),
        (["bash", "-c", "PGPASSWORD=hunter2 psql"], ["bash", "-c", "PGPASSWORD=***"]),
        (["bash", "-c", "cd /x && PGPASSWORD=hunter2 psql -w"], ["bash", "-c", "cd /x && PGPASSWORD=*** psql -w"]),
        (["PWD=/home/x", "pwd=/home/x"], ["PWD=/home/x", "pwd=/home/x"]),
    ],
)
def test_short_names_of_passwords_are_secret_as_flags(argv: list[str], masked: list[str]) -> None:
    assert mask_command(argv) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Server=a;Uid=sa;Pwd=hunter2;Database=b", "Server=a;Uid=sa;Pwd=***;Database=b"),
        ("Pwd=hunter2;Server=a", "Pwd=***;Server=a"),
        ("Server=a; PWD = hunter2", "Server=a; PWD = ***"),
        ("run --pass hunter2 now", "run --pass *** now"),
        ("the forward pass: 3, pwd=/home", "the forward pass: 3, pwd=/home"),
        ("https://x.blob/a?sv=1&sig=aB%2F&se=2", "https://x.blob/a?sv=1&sig=***&se=2"),
        (
            "get https://s3/a?X-Amz-Signature=ab12&X-Amz-Date=1 now",
            "get https://s3/a?X-Amz-Signature=***&X-Amz-Date=1 now",
        ),
    ],
)
def test_secrets_inside_texts_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


def test_lists_of_words_are_masked_as_commands() -> None:
    values = {"args": ["--password", "hunter2", "-n", 3], "deep": [("--token", 12345)], "pass": "text", "pw": "x"}
    assert mask_mapping(values) == {
        "args": ["--password", "***", "-n", 3], "deep": [("--token", "***")], "pass": "***", "pw": "***",
    }  # fmt: skip
    assert mask_mapping({"pass": 3, "pwd": "/home/x"}) == {"pass": 3, "pwd": "/home/x"}
