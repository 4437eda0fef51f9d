"""Recognises secrets in names, texts and addresses, and puts `***` in their place.

Rules
- A name is secret by its parts (`DB_PASSWORD`, `apiKey`, `hf-token`), never by letters inside a word, so that
  `author`, `tokenizer`, `max_tokens`, `pad_token_id` and `keyboard` are not.
- In a text: what is assigned to a secret name, what follows a flag or header of such a name, the password in an
  address, and tokens whose shape gives them away.
- Masking what is masked changes nothing. Every expression is linear in the length of the text.
"""

import re

MASK = "***"

_SECRET_PART = re.compile(
    "password|passwd|passphrase|passcode|secrets?|credentials?|creds|auth|authorization|authentication|bearer|oauth|"
    "jwt|cookie|apikey|accesskey|secretkey|privatekey|authtoken|accesstoken|apitoken|sshpass|pgpass"
)
#: With `key`, what makes it a secret; a `public_key` or a `sort_key` is none.
_KEY_OWNER = re.compile(
    "api|access|secret|private|auth|account|storage|encryption|signing|ssh|service|client|master|shared|license|"
    "subscription|openai|anthropic|mistral|cohere|wandb|hf|huggingface|aws|azure|google|gcp|github"
)
#: With `pass` or `pwd`, what makes it a password; a forward pass and the working directory are none.
_PASS_OWNER = re.compile("db|database|user|root|admin|smtp|ftp|proxy|http|mysql|postgres|pg|redis|mongo|ssh|my")
#: As a flag always a password, elsewhere a forward pass or the working directory too.
_PASS_NAMES = frozenset({"pass", "pwd", "pw"})
#: A `token` is a secret unless a language model's vocabulary is meant: `pad_token`, `next_token`, `token_dim`.
_VOCABULARY_BEFORE = re.compile(
    "pad|eos|bos|unk|mask|sep|cls|special|image|audio|start|end|stop|prefix|suffix|next|per|num|max|min|last|first|"
    "decoder|forced|text|new"
)
_VOCABULARY_AFTER = re.compile(
    "ids?|dims?|types?|embeddings?|embed|counts?|len|length|sizes?|limits?|budget|level|dropout|drop|rate|weights?|"
    "mixing|merging|pruning|classification|mask|norm|shift|idx|index|num|max|min|per|accuracy|loss"
)
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*+://)([^/\s\"'?#]*)@")
#: A user name of this many characters or more in a web address is a token.
_USER_LENGTH_MAX = 20

#: Headers whose value names a scheme before the secret.
HEADERS_WITH_SCHEME = frozenset({"authorization", "proxy-authorization"})
_AUTHORIZATION = re.compile(
    r"(?i)(?<![\w-])((?:proxy-)?authorization[\"']?\s*+[:=]\s*+[\"']?)"
    r"((?:bearer|basic|token|digest|negotiate|apikey|aws4-hmac-sha256)\s++)?[^\"'\r\n]++"
)
_BEARER = re.compile(r"(?i)(?<![\w-])(bearer\s++)[\w.~+/=-]{8,}+")
#: A name and what leads to its value: `name=`, `name: `, `"name": "`, `--name `.
_NAMED = re.compile(r"(?<![\w.-])([\w.-]++)(\\?[\"']?\s*+[:=]\s*+|\s++)")
#: A quoted value (in a text within a text, the quotes may be escaped; the last one may be missing) or a bare one.
_VALUE = re.compile(
    r"\"(?:[^\"\\]|\\.)*+(?:\"|\\?\Z)|'[^']*+(?:'|\Z)|\\[\"'][^\"'\\]*+(?:\\[\"'])?|[^\s\"'\\&;,|)}\]]++",
    re.DOTALL,
)
_SHAPES = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{16,}+"
    r"|github_pat_\w{16,}+"
    r"|(?<![\w-])sk-(?=[A-Za-z_-]*+[0-9])[\w-]{16,}+"
    r"|xox[a-z]-[A-Za-z0-9-]{10,}+"
    r"|(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?"
    r"|(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}+"
    r"|(?<![\w-])glpat-[\w-]{16,}+"
    r"|(?<![\w-])AIza[\w-]{35}(?![\w-])"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
#: What every text has in which something is masked: most texts, and cells of tables, have none of it.
_SUSPECT = re.compile(r"[@:=\s]|gh[pousr]_|github_pat_|sk-|xox|AKIA|ASIA|eyJ|hf_|glpat-|AIza")
#: A password between the semicolons of a connection string; alone, `PWD=` is a working directory.
_CONNECTION = re.compile(
    r"(?i)(;\s*+(?:pwd|pass|pw)\s*+=\s*+)[^;\"'\s]++|(?<![\w.-])((?:pwd|pass|pw)\s*+=\s*+)[^;\"'\s]++(?=;)"
)
#: A parameter of an address.
_QUERY = re.compile(r"(?<=[?&])[\w.%-]++=[^&#\s\"'<>\\]++")
_QUERY_SECRETS = frozenset({"sig", "signature", "key", "code", "token", "sas"})


def looks_secret(name: str) -> bool:
    """Say whether what is called `name` (an option, a variable, a parameter, a header) is kept secret."""
    parts = [part.lower() for part in _PARTS.findall(name)]
    neighbours = zip(["", *parts], parts, [*parts[1:], ""], strict=False)
    return any(_is_secret_part(*around) for around in neighbours)


def _is_secret_part(before: str, part: str, after: str) -> bool:
    if part == "token":
        return not (_VOCABULARY_BEFORE.fullmatch(before) or _VOCABULARY_AFTER.fullmatch(after))
    if part in {"key", "keys"}:
        return _KEY_OWNER.fullmatch(before) is not None
    if part in {"pass", "pwd"}:
        return _PASS_OWNER.fullmatch(before) is not None
    return part.endswith(("password", "passwd")) or _SECRET_PART.fullmatch(part) is not None


def is_secret_flag(word: str) -> bool:
    """Say whether a secret follows the flag `word`, such as `--password`."""
    return looks_secret(word) or (word.startswith("-") and word.lstrip("-").lower() in _PASS_NAMES)


def is_password_text(name: str, value: object) -> bool:
    """Say whether what is called `pass` or `pw` is a password: a text is, a number counts passes."""
    return isinstance(value, str) and name.lower() in {"pass", "pw"}


def mask_text(text: str) -> str:
    """Return `text` without the secrets that can be recognised in it."""
    if not _SUSPECT.search(text):
        return text
    text = _URL.sub(_masked_url, text)
    text = _AUTHORIZATION.sub(lambda match: f"{match[1]}{match[2] or ''}{MASK}", text)
    text = _BEARER.sub(lambda match: match[1] + MASK, text)
    if "://" in text:
        text = _QUERY.sub(lambda match: _clean_query_word(match[0]), text)
    text = _CONNECTION.sub(lambda match: (match[1] or match[2]) + MASK, text)
    return _SHAPES.sub(MASK, _mask_named(text))


def _mask_named(text: str) -> str:
    """Mask the values that follow secret names."""
    pieces: list[str] = []
    position = 0
    while found := _NAMED.search(text, position):
        pieces.append(text[position : found.end()])
        position = found.end()
        value = _VALUE.match(text, position) if _announces_secret(found[1], found[2]) else None
        if value and not value[0].startswith("--"):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            pieces.append(quote + MASK + quote)
            position = value.end()
    return "".join([*pieces, text[position:]])


def _announces_secret(name: str, separator: str) -> bool:
    if separator.isspace() and not name.startswith("--"):
        return False
    return is_secret_flag(name) and name.lower().lstrip("-") not in HEADERS_WITH_SCHEME


def clean_url(url: str) -> str:
    """Return the address of a git remote without credentials; `git@host:path` and `ssh://git@host/` keep their user.

    Values in its query whose names look secret become `***`.
    """
    scheme, separator, rest = url.partition("://")
    if separator:
        authority, slash, path = rest.partition("/")
        user, at, host = authority.rpartition("@")
        if at:
            keep = "ssh" in scheme.lower()  # a login name; anywhere else a user name may be a token
            authority = f"{user.partition(':')[0]}@{host}" if keep else host
        url = f"{scheme}://{authority}{slash}{path}"
    address, mark, query = url.partition("?")
    if mark:
        query = "&".join(map(_clean_query_word, query.split("&")))
    return _SHAPES.sub(MASK, address + mark + query)


def _clean_query_word(word: str) -> str:
    name, equals, _ = word.partition("=")
    secret = looks_secret(name) or name.lower().rpartition("-")[2] in _QUERY_SECRETS
    return f"{name}={MASK}" if equals and secret else word


def _masked_url(match: re.Match[str]) -> str:
    scheme, userinfo = match[1], match[2]
    user, colon, _ = userinfo.partition(":")
    if len(user) >= _USER_LENGTH_MAX and scheme.lower() in {"http://", "https://"}:
        user = MASK
    return f"{scheme}{user}{colon and ':' + MASK}@"
