"""Options and profiles of the whole test-suite.

Rules
- `--deep` runs the tests marked `deep` too, and every property with many more examples.
- `--extended` runs the tests marked `extended` too, which need programs of the system or large libraries (.ci/run installs them).
- The seed of every property is printed in the header; `--hypothesis-seed=N` repeats a run. Workers (`-n`) take it from the process
  that starts them.
"""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
_PHASES = (Phase.explicit, Phase.generate, Phase.target, Phase.shrink)

settings.register_profile(
    "ci",
    max_examples=40,
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
    parser.addoption("--extended", action="store_true", help="run the tests marked extended (see Makefile)")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("deep" if config.getoption("--deep") else "ci")
    if config.getoption("--hypothesis-seed", default=None) is None:
        told = getattr(config, "workerinput", {})  # what the starting process tells a worker, and only a worker
        config.option.hypothesis_seed = told.get("hypothesis_seed", random.SystemRandom().randrange(2**32))


@pytest.hookimpl(optionalhook=True)  # xdist's: there is none under `-p no:xdist`
def pytest_configure_node(node: Any) -> None:
    node.workerinput["hypothesis_seed"] = node.config.option.hypothesis_seed


def pytest_report_header(config: pytest.Config) -> str:
    profile = "deep" if config.getoption("--deep") else "ci"
    return f"hypothesis: profile {profile}, --hypothesis-seed={config.option.hypothesis_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [name for name in ("deep", "extended") if not config.getoption(f"--{name}")]
    left_out = [item for item in items if any(item.get_closest_marker(name) is not None for name in unwanted)]
    if left_out:  # deselected, not skipped: a skip would read as something that could not run
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # What takes longest begins first, so that no worker is left alone with it at the end.
    items.sort(key=lambda item: "tests/system/" not in item.nodeid)
