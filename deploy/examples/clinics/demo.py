"""The federated case, end to end, on this machine: three clinics train offline, a core merges, a hub answers for all of them.

What is used here is what users have: the command lines `cmf-agent` and `cmf-hub`, and `import cmf_agent` in the pipelines' own scripts
(project/). The data is scikit-learn's breast cancer set (569 patients, 30 measurements), dealt out to the sites.
"""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PROJECT = Path(__file__).parent / "project"
CLINICS = ("clinic-ana", "clinic-boris", "clinic-chen")
CORE = "core"
WAIT_S = 60.0
#: More than a hello writes, less than a segment.
GROWN_BYTES = 20_000
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("CMF_")} | {
    "GIT_AUTHOR_NAME": "demo", "GIT_AUTHOR_EMAIL": "demo@example.org",
    "GIT_COMMITTER_NAME": "demo", "GIT_COMMITTER_EMAIL": "demo@example.org", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip


def say(title: str) -> None:
    print(f"\n\033[1m== {title}\033[0m" if sys.stdout.isatty() else f"\n== {title}", flush=True)


def call(folder: Path, *command: object) -> str:
    """Run a command of the demo in a folder and return what it printed; a failure ends the demo."""
    words = [str(BIN / str(command[0])) if str(command[0]).startswith(("cmf-", "python")) else str(command[0])]
    words += [str(word) for word in command[1:]]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def ask(folder: Path, *command: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(call(folder, *command, "--json"))
    return answer


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="cmf-demo-"))
    began = time.monotonic()
    sites = {name: root / name for name in (*CLINICS, CORE)}
    say("1. Four sites, each a git repository, no hub anywhere, no network used")
    deal_out(sites)
    for name in CLINICS:
        train_offline(name, sites[name])
    merge_offline(sites)
    hub = root / "hub"
    port = free_port()
    with contextlib.ExitStack() as stack:
        push_with_kills(sites, hub, port, stack)
        show_graph(sites, hub)
        show_nothing_lost(sites, hub)
    print(f"\ndone in {time.monotonic() - began:.0f} s")
    say("To look further")
    print(f"  export PATH={BIN}:$PATH CMF_HUB_DATA={hub}")
    print("  cmf-hub query executions --pipeline tumour-screening --stage tune --sort -metrics.accuracy --limit 5")
    print(f"  cmf-hub query show {sites[CORE] / 'merged.joblib'}")
    print(f"  cmf-hub query lineage {sites[CLINICS[0]] / 'data' / 'patients.csv'} --down --format mermaid")
    print("  cmf-hub query sites")
    print(f"  cd {sites[CLINICS[0]]} && cmf-agent log --limit 10 && cmf-agent query artifacts --kind model   # offline")
    print(f"  rm -r {root}   # when you are done")


# -- 1: offline --------------------------------------------------------------------------------------------------------


def deal_out(sites: dict[str, Path]) -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    header = [*(name.replace(" ", "_") for name in data.feature_names), "benign"]
    rows = [[*(f"{value:.6g}" for value in row), int(label)] for row, label in zip(data.data, data.target, strict=True)]
    for number, (name, folder) in enumerate(sites.items()):
        (folder / "data").mkdir(parents=True)
        file = folder / "data" / ("public.csv" if name == CORE else "patients.csv")
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([header, *rows[number :: len(sites)]])
        for script in PROJECT.glob("*.py"):
            shutil.copy(script, folder)
        (folder / ".gitignore").write_text("data/train.csv\ndata/test.csv\n*.joblib\nincoming/\n")
        call(folder, "git", "init", "--quiet", "--initial-branch", "main")
        call(folder, "git", "add", "--all")
        call(folder, "git", "commit", "--quiet", "--message", f"{name}: pipeline and data")
        call(folder, "cmf-agent", "init")


def train_offline(name: str, folder: Path) -> None:
    prepare = ["-i", "data/patients.csv", "-o", "data/train.csv", "-o", "data/test.csv"]
    call(
        folder,
        "cmf-agent",
        "run",
        "-p",
        "tumour-screening",
        "-s",
        "prepare",
        *prepare,
        "--",
        BIN / "python",
        "prepare.py",
    )
    said = call(folder, "python", "train.py").strip()
    print(f"  {name:13} {said}; {ask(folder, 'cmf-agent', 'status')['events']} events recorded")


def merge_offline(sites: dict[str, Path]) -> None:
    incoming = sites[CORE] / "incoming"
    incoming.mkdir()
    for name in CLINICS:  # by hand, on a stick: only the bytes travel, no metadata
        shutil.copy(sites[name] / "model.joblib", incoming / f"{name}.joblib")
    said = call(sites[CORE], "python", "merge.py", *(f"incoming/{name}.joblib" for name in CLINICS)).strip()
    print(f"  {CORE:13} {said}")


# -- 2: the hub, with kills --------------------------------------------------------------------------------------------


def push_with_kills(sites: dict[str, Path], hub: Path, port: int, stack: contextlib.ExitStack) -> None:
    say("2. Now a hub starts, the sites join and push; one push and the hub are killed with -9 in the middle")
    serving = start_hub(hub, port)
    stack.callback(lambda: stop_hub(serving))
    for name, folder in sites.items():
        call(folder, "cmf-hub", "site", "add", name, "-o", folder / "site.join", "--data", hub)
        call(folder, "cmf-agent", "join", "site.join")
    first, second, *others = sites
    kill_a_push(sites[first], hub)
    push(sites[first], first)
    serving = kill_the_hub(serving, sites[second], hub, port)
    push(sites[second], second)
    for name in others:
        push(sites[name], name)


def push(folder: Path, name: str) -> None:
    said = ask(folder, "cmf-agent", "push")
    print(f"  {name:13} push: {said['sent']} events sent in {said['bytes']:,} bytes, {said['pending']} pending")


def kill_a_push(folder: Path, hub: Path) -> None:
    pushing = subprocess.Popen([BIN / "cmf-agent", "push"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wait_until_grown(hub / "nats", "*.blk", pushing)
    pushing.kill()
    pushing.wait()
    held, events = held_events(hub), ask(folder, "cmf-agent", "status")["events"]
    print(f"  {folder.name:13} its push was killed before it knew of any answer: the hub has {held} of {events} events")


def kill_the_hub(serving: subprocess.Popen[bytes], folder: Path, hub: Path, port: int) -> subprocess.Popen[bytes]:
    before = held_events(hub)
    pushing = subprocess.Popen(
        [BIN / "cmf-agent", "push", "--timeout", "5"], cwd=folder, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until_grown(hub, "store.db*", pushing)
    serving.kill()
    serving.wait()
    held, events = held_events(hub) - before, ask(folder, "cmf-agent", "status")["events"]
    code = pushing.wait()
    print(
        f"  {folder.name:13} the hub was killed during its push, with {held} of {events} events; the push ended with exit code {code}"
    )
    return start_hub(hub, port)


def wait_until_grown(folder: Path, files: str, pushing: subprocess.Popen[bytes]) -> None:
    """Return as soon as these files hold a part of what is pushed, or the push is over."""
    before = size_of(folder, files)
    for _ in patiently("the push to reach the hub"):
        if size_of(folder, files) > before + GROWN_BYTES or pushing.poll() is not None:
            return


def size_of(folder: Path, files: str) -> int:
    total = 0
    for file in folder.rglob(files):
        with contextlib.suppress(FileNotFoundError):  # the server drops a file when all in it was taken
            total += file.stat().st_size
    return total


def held_events(hub: Path) -> int:
    return int(ask(hub, "cmf-hub", "status", "--data", hub)["events"])


def start_hub(hub: Path, port: int) -> subprocess.Popen[bytes]:
    ready = hub.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    log = hub.with_suffix(".log").open("ab")
    command: list[str | Path] = [
        BIN / "cmf-hub",
        "serve",
        "--data",
        hub,
        "--nats",
        f"127.0.0.1:{port}",
        "--ready-file",
        ready,
    ]
    serving = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    for _ in patiently("the hub to answer"):
        if ready.exists():
            break
        if serving.poll() is not None:
            sys.exit(f"the hub did not start: see {hub.with_suffix('.log')}")
    print(f"  hub           serves on 127.0.0.1:{port} (process {serving.pid})")
    return serving


def stop_hub(serving: subprocess.Popen[bytes]) -> None:
    serving.send_signal(signal.SIGTERM)
    serving.wait()


# -- 3: answers --------------------------------------------------------------------------------------------------------


def show_graph(sites: dict[str, Path], hub: Path) -> None:
    say(f"3. What made {CORE}/merged.joblib? Asked about the file itself: cmf-hub query lineage merged.joblib --up")
    print(call(sites[CORE], "cmf-hub", "query", "lineage", "./merged.joblib", "--up", "--data", hub))
    lineage = json.loads(
        call(sites[CORE], "cmf-hub", "query", "lineage", "./merged.joblib", "--up", "--format", "json", "--data", hub)
    )
    runs = [node for node in lineage["nodes"] if node["type"] == "execution"]
    origins = {node["label"] for node in lineage["nodes"]} & {"data/patients.csv"}
    print(
        f"  {len(runs)} executions at {len({run['site'] for run in runs})} sites, down to {origins.pop()} and the git commit of each clinic"
    )


def show_nothing_lost(sites: dict[str, Path], hub: Path) -> None:
    say("4. Is anything missing, doubled or altered?")
    total = 0
    for name, folder in sites.items():
        status = ask(folder, "cmf-agent", "status")
        total += status["events"]
        print(
            f"  {name:13} recorded {status['events']:5} events, {status['confirmed']:5} confirmed by the hub, {status['pending']} pending"
        )
    found = ask(hub, "cmf-hub", "digest", "--data", hub)
    print(
        f"  hub           holds    {found['events']:5} events: {'every one, once' if found['events'] == total else 'NOT the same'}"
    )
    print("  cmf-hub verify: " + call(hub, "cmf-hub", "verify", "--data", hub).strip())
    call(hub, "cmf-hub", "rebuild", "--data", hub)
    again = ask(hub, "cmf-hub", "digest", "--data", hub)
    print(f"  digest {found['digest']}\n  rebuilt from zero: {'the same' if again == found else 'NOT the same'}")
    if found["events"] != total or again != found:
        sys.exit("the demo did not show what it should")


# -- helpers -----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    # Above, the kernel could give it to an outgoing connection while the hub is down.
    for port in range(14_222, 32_768):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    sys.exit("no port between 14222 and 32767 is free")


def patiently(what: str) -> Iterator[None]:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.001)
    sys.exit(f"waited {WAIT_S:.0f} s for {what}")


if __name__ == "__main__":
    main()
