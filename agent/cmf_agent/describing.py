"""What is said of a pipeline or a stage as such; checks of what callers give: texts, mappings, paths."""

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

from cmf_agent.finding import home_or_warning
from cmf_agent.recorder import Recorder
from cmf_agent.shape import TEXT_CHARS_MAX, shape, short_text
from cmf_agent.sources.host import mask_mapping
from cmf_agent.sources.masking import mask_text
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import pipeline_described, stage_described


def describe(pipeline: str, stage: str | None = None, /, **properties: object) -> None:
    """Record properties of a pipeline, or of one of its stages; like a run, it never raises for want of a log."""
    draft = description(pipeline, stage, properties)
    home = home_or_warning(None, strict=False)
    recorder = Recorder(home.log_path if home else None)
    recorder.record([draft])
    recorder.close()


def description(pipeline: str, stage: str | None, properties: Mapping[str, object]) -> Draft:
    """Draft properties of a pipeline, or of a stage if one is named."""
    shaped = shape(properties=mask_mapping(properties))
    values = shaped.space("properties")
    draft = pipeline_described(pipeline, values) if stage is None else stage_described(pipeline, stage, values)
    return shaped.into(draft)


def checked_text(text: str, what: str) -> str:
    """Return a note's or a reason's text, encodable; raise `CallerError` if it is empty or too long."""
    clean, is_cut = short_text(str(text))
    if is_cut or not clean.strip():
        raise CallerError(
            f"a {what} has 1 to {TEXT_CHARS_MAX:,} characters", "record a longer text as a file, as an artifact"
        )
    return clean


def short_texts(texts: Mapping[str, str], path: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return an error's texts without secrets, cut to fit, and what was cut."""
    short, lossy = {}, {}
    for key, text in texts.items():
        short[key], is_cut = short_text(mask_text(text))  # exceptions quote addresses and headers
        if is_cut:
            lossy[f"{path}.{key}"] = "truncated"
    return short, lossy


def checked_mapping(values: Mapping[str, object] | None, what: str) -> Mapping[str, object] | None:
    """Return what a caller gave as parameters or properties; raise `CallerError` if that is no mapping."""
    if values is None or isinstance(values, Mapping):
        return values
    hint = "give vars(args)" if hasattr(values, "__dict__") else "give a dictionary"
    raise CallerError(f"{what} is a {type(values).__name__}, not a mapping", hint)


def checked_path(named: str | PathLike[str]) -> Path:
    """Return the path that a caller named; raise `CallerError` for none."""
    if not isinstance(named, str | PathLike):
        raise CallerError(f"{named!r:.80} is not the path of a file or folder", "give a text or a pathlib.Path")
    if not fspath(named):
        raise CallerError("'' is not the path of a file or folder", "is a variable empty? '.' is the folder itself")
    return Path(named)
