"""A job as callers state it, checked the same way for REST and for Celery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from celery import states
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract.errors import InvalidJob
from worker.contract.models import MOST_WINDOWS, ModelInfo

TASK_NAME = "embedq.embed"
MAX_TEXTS = 4096
#: Characters of a prompt, for each token that the model reads; of a model without a limit, for as
#: many tokens as others read at most.
_PROMPT_CHARACTERS_A_TOKEN = 16
_USUAL_LONGEST = 8192

EncodingFormat = Literal["float", "base64"]
Long = Literal["cut", "mean"]
#: Short enough to be repeated in a message.
Name = Annotated[str, Field(max_length=256)]
_SHOWN = 64


class Status(StrEnum):
    """The status of a job; the last three are its possible outcomes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in _ENDED

    @classmethod
    def of_celery(cls, state: str) -> Status:
        """The status that a Celery state stands for."""
        return _OF_CELERY.get(state, cls.RUNNING)


_ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
_OF_CELERY = {
    states.PENDING: Status.QUEUED,
    states.RECEIVED: Status.QUEUED,
    states.SUCCESS: Status.SUCCEEDED,
    states.FAILURE: Status.FAILED,
    states.REVOKED: Status.CANCELLED,
}


class JobOptions(BaseModel):
    """How the texts of a job are to be embedded; one set of options a job."""

    # Errors without their inputs: those may be texts.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    model: Name | None = Field(
        default=None, description="Served name of a model; the worker's by default."
    )
    prompt_name: Name | None = Field(default=None, description="One of the model's own prompts.")
    prompt: str | None = Field(default=None, description="A prompt to put before every text.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Length of a vector; smaller than native only for a Matryoshka model.",
    )
    normalize: bool = Field(default=True, description="Scale every vector to unit length.")
    truncate: bool = Field(
        default=True, description="Cut a text at the model's limit; where false, such a text fails."
    )
    long: Long = Field(
        default="cut",
        description="What becomes of a text past the model's limit: cut there, or `mean`: read in "
        f"windows, at most {MOST_WINDOWS}, and given the mean of their vectors.",
    )
    encoding_format: EncodingFormat = Field(
        default="float",
        description="Vectors as lists of numbers, or all of them as one base64 blob.",
    )
    token_counts: bool = Field(
        default=False, description="Also say how many tokens the model read of each text."
    )


class JobBody(JobOptions):
    """The body of `POST /jobs`."""

    model_config = ConfigDict(title="JobRequest")

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        description="One text, or a list of texts."
    )


DEFAULT_OPTIONS: Final = JobOptions()


def parse_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], JobOptions]:
    """The texts and options of a call of `embedq.embed`.

    Items that are not strings stay in the list: only they fail, with their index.
    Raises InvalidJob naming the argument.
    """
    if len(args) == 1 and not kwargs:
        return check_input(args[0]), DEFAULT_OPTIONS
    options = dict(kwargs)
    if len(args) > 1:
        raise InvalidJob("embed takes one positional argument, the input", field="input")
    if args and "input" in options:
        raise InvalidJob("input is given twice", field="input")
    if not args and "input" not in options:
        # The argument's name may be misspelled.
        check_names(JobBody, options)
        raise InvalidJob("input is missing", field="input")
    texts = check_input(args[0] if args else options.pop("input"))
    return texts, parse_options(options) if options else DEFAULT_OPTIONS


def parse_body(body: Any) -> tuple[list[str], JobOptions]:
    """The texts and options of a REST request; here every item must be a string.

    Raises InvalidJob naming the field.
    """
    if not isinstance(body, dict):
        raise InvalidJob("the body is not a JSON object")
    if "input" not in body:
        check_names(JobBody, body)
        raise InvalidJob("input is missing", field="input")
    texts = check_input(body["input"])
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidJob(
                f"input[{index}] is of type {type(text).__name__}, not a string",
                field=f"input[{index}]",
            )
    options = {name: value for name, value in body.items() if name != "input"}
    return texts, parse_options(options) if options else DEFAULT_OPTIONS


def check_input(value: Any) -> list[Any]:
    """One string or 1 to 4,096 items, as a list. Raises InvalidJob."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise InvalidJob(
            f"input is of type {type(value).__name__}, not a string or a list of strings",
            field="input",
        )
    if not 1 <= len(value) <= MAX_TEXTS:
        raise InvalidJob(
            f"input holds {len(value)} texts; 1 to {MAX_TEXTS:,} are allowed", field="input"
        )
    return list(value)


def parse_options(values: Mapping[str, Any]) -> JobOptions:
    """Raises InvalidJob naming the first option that is wrong."""
    check_names(JobOptions, values)
    try:
        return JobOptions.model_validate(values)
    except ValidationError as error:
        raise invalid_job(error) from error


def check_names(model: type[BaseModel], values: Iterable[str]) -> None:
    """Raise InvalidJob for a name that is not a field of `model`.

    Pydantic would do this, too, but a million names would make a million errors.
    """
    unknown = next((name for name in values if name not in model.model_fields), None)
    if unknown is not None:
        # A lone surrogate in the name could not be sent back.
        field = unknown[:_SHOWN].encode(errors="replace").decode()
        known = ", ".join(model.model_fields)
        raise InvalidJob(f"{field}: there is no such option; known are {known}", field=field)


def invalid_job(error: ValidationError) -> InvalidJob:
    """The first fault pydantic found, without the value, which may be a caller's text."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field, message = ".".join(str(part) for part in first["loc"])[:_SHOWN], first["msg"]
    return InvalidJob(f"{field}: {message}" if field else message, field=field or None)


def resolve(options: JobOptions, models: Mapping[str, ModelInfo]) -> ModelInfo:
    """The model a job asks for, its options checked against it.

    `models` are the served ones, the default first. Raises InvalidJob with `model_not_found`,
    `invalid_dimensions` or `invalid_prompt`.
    """
    if options.model is None:
        info = next(iter(models.values()))
    elif options.model in models:
        info = models[options.model]
    else:
        raise InvalidJob(
            f"model {options.model!r} is not served here; served: {', '.join(models)}",
            field="model",
            code="model_not_found",
        )
    _check_dimensions(options.dimensions, info)
    if options.prompt is not None and options.prompt_name is not None:
        raise InvalidJob(
            "prompt and prompt_name exclude each other", field="prompt", code="invalid_prompt"
        )
    most = _PROMPT_CHARACTERS_A_TOKEN * min(info.max_tokens, _USUAL_LONGEST)
    if options.prompt is not None and len(options.prompt) > most:
        raise InvalidJob(
            f"prompt has {len(options.prompt):,} characters; {info.name} takes at most {most:,}",
            field="prompt",
            code="invalid_prompt",
        )
    if options.prompt_name is not None and options.prompt_name not in info.prompts:
        known = ", ".join(info.prompts) or "none"
        raise InvalidJob(
            f"prompt_name {options.prompt_name!r} is unknown to {info.name}; it has: {known}",
            field="prompt_name",
            code="invalid_prompt",
        )
    return info


def _check_dimensions(dimensions: int | None, info: ModelInfo) -> None:
    if dimensions is None or dimensions == info.dimensions or dimensions in info.matryoshka:
        return
    allowed = ", ".join(str(size) for size in (info.dimensions, *info.matryoshka))
    raise InvalidJob(
        f"dimensions {dimensions} is not a size of {info.name}; it has: {allowed}",
        field="dimensions",
        code="invalid_dimensions",
    )
