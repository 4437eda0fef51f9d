"""Functions as stages, as cmflib's `contrib.auto_logging_v01` has them: what goes in and comes out is logged by its type.

    @step(pipeline_name="iris", pipeline_stage="train")
    def train(ctx: Context, params: Parameters, train_dataset: Dataset) -> dict[str, Artifact]:
        ...
        return {"model": MLModel("model.pkl"), "metrics": ExecutionMetrics("metrics.json", "train", {"auc": 0.9})}

    if __name__ == "__main__":
        cli_run(train)    # python train.py --params lr=0.07,batch_size=128 train_dataset=data/train.csv

Rules
- Every argument is a `Context`, a `Parameters`, or an artifact (`Dataset`, `MLModel`). While the function runs, `ctx["cmf"]`
  is the `Cmf` that logs it.
- The environment names what the decorator doesn't: `CMF_PIPELINE`, `CMF_STAGE`, `CMF_URI` (the metadata file, of which the folder
  counts). `CMF_GRAPH` has no effect.
- An exception is recorded as the end of the execution, and goes on.
- `cmf.stage` does the same for functions with plain arguments.
"""

import argparse
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cmf_agent.cmflib.metawriter import Cmf
from cmf_protocol.errors import CallerError

Function = TypeVar("Function", bound=Callable[..., Any])

_MODEL_ARGUMENTS = ("model_framework", "model_type", "model_name")
#: Under this key of the context stands the `Cmf`.
_WRITER_KEY = "cmf"


class Artifact:
    """A file or folder at `uri`, with what is said of it."""

    def __init__(self, uri: str | os.PathLike[str], params: Mapping[str, Any] | None = None) -> None:
        self.uri = uri if isinstance(uri, str) else Path(uri).as_posix()
        self.params: dict[str, Any] = deepcopy(dict(params or {}))


class Dataset(Artifact):
    """A dataset; `params` are its custom properties."""


class MLModel(Artifact):
    """A model; `params` are `model_framework`, `model_type`, `model_name`, and custom properties."""


class ExecutionMetrics(Artifact):
    """The metrics `params` of an execution, called `name`; no file is read at `uri`."""

    def __init__(self, uri: str | os.PathLike[str], name: str, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(uri, params)
        self.name = name


class Context(dict[str, Any]):
    """What a step needs to run, such as its workspace."""


class Parameters(dict[str, Any]):
    """What a step's outcome depends on, such as a learning rate."""


def step(pipeline_name: str | None = None, pipeline_stage: str | None = None) -> Callable[[Function], Function]:
    """Return a decorator that logs every call of a function as an execution of `pipeline_stage`, by default the function's name."""

    def decorated(function: Function) -> Function:
        @functools.wraps(function)
        def logged(*args: Any, **kwargs: Any) -> Any:
            stage = pipeline_stage or os.environ.get("CMF_STAGE") or function.__name__
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            writer = Cmf(os.environ.get("CMF_URI", "mlmd"), _pipeline(pipeline_name))
            context, params, inputs = _sorted_out(function, given)
            writer.create_context(pipeline_stage=stage)
            writer.create_execution(execution_type=stage, custom_properties=params)
            try:
                _log(writer, "input", inputs)
                outputs = _called(function, args, kwargs, context, writer)
                if isinstance(outputs, Mapping):
                    _log(writer, "output", outputs)
            except BaseException as error:
                writer.fail(error)
                raise
            writer.finalize()
            return outputs

        return logged  # type: ignore[return-value]

    return decorated


def _pipeline(given: str | None) -> str:
    name = given or os.environ.get("CMF_PIPELINE")
    if not name:
        raise CallerError(
            "the pipeline has no name", 'give it one: @step(pipeline_name="iris"), or export CMF_PIPELINE=iris'
        )
    return name


def _sorted_out(
    function: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[Context | None, Parameters, dict[str, Artifact]]:
    """Return the context, the parameters and the artifacts among a call's arguments."""
    contexts = [value for value in given.values() if isinstance(value, Context)]
    params = [value for value in given.values() if isinstance(value, Parameters)]
    inputs = {name: value for name, value in given.items() if isinstance(value, Artifact)}
    others = [name for name, value in given.items() if not isinstance(value, Context | Parameters | Artifact)]
    if others or len(contexts) > 1 or len(params) > 1:
        wrong = f"the argument {others[0]!r} is neither of them" if others else "there are two of a kind"
        raise CallerError(
            f"{function.__name__} takes a Context, Parameters and artifacts: {wrong}",
            "or use cmf.stage, which takes anything",
        )
    return (contexts[0] if contexts else None), (params[0] if params else Parameters()), inputs


def _called(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], context: Context | None, writer: Cmf
) -> Any:
    if context is None:
        return function(*args, **kwargs)
    context[_WRITER_KEY] = writer
    try:
        return function(*args, **kwargs)
    finally:
        context.pop(_WRITER_KEY, None)


def _log(writer: Cmf, event: str, artifacts: Mapping[str, Any]) -> None:
    for name, artifact in artifacts.items():
        if isinstance(artifact, Dataset):
            writer.log_dataset(artifact.uri, event, custom_properties=artifact.params)
        elif isinstance(artifact, MLModel):
            model = {key: str(artifact.params[key]) for key in _MODEL_ARGUMENTS if key in artifact.params}
            custom = {key: value for key, value in artifact.params.items() if key not in _MODEL_ARGUMENTS}
            writer.log_model(artifact.uri, event, custom_properties=custom, **model)
        elif isinstance(artifact, ExecutionMetrics):
            writer.log_execution_metrics(artifact.name, artifact.params)
        else:
            raise CallerError(
                f"{name!r} is a {type(artifact).__name__}, which can't be logged",
                "use Dataset, MLModel or ExecutionMetrics",
            )


def cli_run(step_fn: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Call a step with what the command line says: `--params a=1,b=2`, `--ctx a=b`, and `name=path` for each artifact.

    Values are texts. Raises `CallerError` for what the function doesn't take, or what it lacks.
    """
    parser = argparse.ArgumentParser(description=step_fn.__doc__)
    parser.add_argument("--params", default="", help="parameters of the execution: lr=0.07,batch_size=128")
    parser.add_argument("--ctx", default="", help="what the step needs to run: workspace=/data/iris")
    parser.add_argument("artifacts", nargs="*", metavar="NAME=PATH", help="an input, by the name of the argument")
    parsed = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    artifacts = _pairs(parsed.artifacts)
    params, context = Parameters(_pairs(_parts(parsed.params))), Context(_pairs(_parts(parsed.ctx)))
    step_fn(**_arguments(step_fn, context, params, artifacts))


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part.strip()]


def _pairs(parts: Sequence[str]) -> dict[str, str]:
    found = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise CallerError(f"{part!r} is no NAME=VALUE", "write the name, =, and the value, without blanks")
        found[name.strip()] = value.strip()
    return found


def _arguments(
    step_fn: Callable[..., Any], context: Context, params: Parameters, artifacts: Mapping[str, str]
) -> dict[str, Any]:
    hints = get_type_hints(step_fn)
    found: dict[str, Any] = {}
    used = set()
    for name in inspect.signature(step_fn).parameters:
        hint = hints.get(name)
        kind = hint if isinstance(hint, type) else object
        if issubclass(kind, Context):
            found[name] = context
        elif issubclass(kind, Parameters):
            found[name] = params
        elif issubclass(kind, Dataset | MLModel):
            if name not in artifacts:
                raise CallerError(f"the input {name!r} is missing", f"add {name}=PATH")
            found[name] = kind(artifacts[name])
            used.add(name)
        else:
            raise CallerError(
                f"the argument {name!r} is no Context, Parameters, Dataset or MLModel", "annotate it with one of them"
            )
    _refuse_rest(step_fn.__name__, found, context, params, sorted(set(artifacts) - used))
    return found


def _refuse_rest(
    name: str, found: Mapping[str, Any], context: Context, params: Parameters, unused: Sequence[str]
) -> None:
    """Raise `CallerError` for what was given and is not taken."""
    for flag, given in (("--ctx", context), ("--params", params)):
        if given and not any(value is given for value in found.values()):
            raise CallerError(f"{name} takes no {flag}", "leave it out")
    if unused:
        raise CallerError(f"{name} takes no {', '.join(unused)}", "name inputs as the function's arguments are named")


def prepare_workspace(ctx: Context) -> Path:
    """Return the folder that the context names `workspace`, by default `workspace` in the working directory; make it."""
    workspace = Path(ctx.get("workspace") or Path.cwd() / "workspace")
    workspace.mkdir(parents=True, exist_ok=True)
    return workspace
