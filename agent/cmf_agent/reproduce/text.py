"""A plan as people read it."""

from collections.abc import Iterator, Sequence

from cmf_agent.reproduce.layout import Found
from cmf_agent.reproduce.plan import File, Plan
from cmf_agent.reproduce.script import param_text
from cmf_graph.output import moment
from cmf_graph.text import clean, counted, shorter

_VALUE_CHARS = 80


def plan_text(plan: Plan, found: Found) -> str:
    """Return a plan in numbered parts, with what is at hand and what is missing."""
    run = plan.execution
    lines = [
        f"{clean(run['pipeline'])}/{clean(run['stage'])} {clean(run['id'])}"
        + (f" ({clean(run['name'])})" if run["name"] else ""),
        f"{clean(run['status'])}, started {moment(run['started_at'])} on {clean(run['host'])}",
        "",
        "1. code",
        *_code(plan, found),
        f"2. inputs ({len(plan.inputs)})",
        *(
            _input(file, source.where if source else None)
            for file, source in zip(plan.inputs, found.sources, strict=True)
        ),
        "3. environment",
        *_environment(plan),
        "4. command",
        f"   {_command(plan.command)}",
        f"   in {_folder(plan)}" + (", which records itself" if plan.is_self_recorded else ""),
        f"5. parameters ({len(plan.params)})",
        *(f"   {clean(key)} = {shorter(clean(param_text(value)), _VALUE_CHARS)}" for key, value in plan.params.items()),
        f"outputs to expect ({len(plan.outputs)})",
        *(_output(file) for file in plan.outputs),
        "",
        *missing_lines(found.missing),
    ]
    return "\n".join(lines)


def missing_lines(missing: Sequence[str]) -> list[str]:
    """Return what is missing as lines."""
    if not missing:
        return ["code, inputs and command are at hand"]
    return [f"missing ({len(missing)}):", *(f"   {clean(line)}" for line in missing)]


def _code(plan: Plan, found: Found) -> Iterator[str]:
    code = plan.code
    if code.commit is None:
        yield "   none recorded"
        return
    where = f"{found.repository} here" if found.repository else f"{clean(code.repo)}" if code.repo else "nowhere known"
    yield f"   git {code.commit}"
    yield f"   from {where}"
    if code.is_dirty:
        lines = counted(len(code.diff.splitlines()), "line") if code.diff is not None else None
        yield f"   with uncommitted changes ({f'{lines} of diff, recorded' if lines else 'not recorded'})"


def _input(file: File, where: str | None) -> str:
    return f"   {clean(file.name)}  {clean(file.content_id)}  {clean(where) if where else 'NOT at hand'}"


def _output(file: File) -> str:
    return f"   {clean(file.name)}  {clean(file.content_id)}"


def _environment(plan: Plan) -> Iterator[str]:
    if plan.environment is None:
        yield "   none recorded"
        return
    packages, variables = (plan.environment.get(key) or {} for key in ("packages", "variables"))
    yield f"   Python {clean(plan.environment.get('python'))} with {counted(len(packages), 'package')}"
    for name, value in variables.items():
        yield f"   {clean(name)}={shorter(clean(value), _VALUE_CHARS)}"


def _folder(plan: Plan) -> str:
    return clean(plan.working_dir) if plan.working_dir.parts else "the project's folder"


def _command(command: Sequence[str]) -> str:
    import shlex

    return clean(shlex.join(command)) if command else "none recorded"
