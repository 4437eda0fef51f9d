"""Options and profiles of the whole test-suite.

Rules
- `--deep` runs the tests marked `deep` too, and every property with many more examples.
- The seed of every property is printed in the header; `--hypothesis-seed=N` repeats a run.
"""

import random

import pytest
from hypothesis import HealthCheck, Phase, settings

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
_PHASES = (Phase.explicit, Phase.generate, Phase.target, Phase.shrink)

settings.register_profile(
    "ci",
    max_examples=60,
    deadline=None,
    derandomize=False,
    print_blob=True,
    database=None,
    suppress_health_check=_SLOW_IS_FINE,
    phases=_PHASES,
)
settings.register_profile("deep", settings.get_profile("ci"), max_examples=2_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="run the tests marked deep, and many more examples")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("deep" if config.getoption("--deep") else "ci")
    if config.getoption("--hypothesis-seed", default=None) is None:
        config.option.hypothesis_seed = random.SystemRandom().randrange(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    profile = "deep" if config.getoption("--deep") else "ci"
    return f"hypothesis: profile {profile}, --hypothesis-seed={config.option.hypothesis_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--deep"):
        return
    deep = [item for item in items if item.get_closest_marker("deep") is not None]
    if deep:  # deselected, not skipped: a skip would read as something that could not run
        config.hook.pytest_deselected(items=deep)
        items[:] = [item for item in items if item.get_closest_marker("deep") is None]
