"""Errors, each with the `code` that users see.

One root, one subclass per decision a caller can take. `api.errors` maps them to HTTP
in one table; Celery stores a `JobFailed` as the exception of a failed job.
"""

from __future__ import annotations


class EmbedqError(Exception):
    """Root of everything embedq raises on purpose.

    `code` is stable and meant for programs. `message` is for people and never contains a text of
    a job.
    """

    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(EmbedqError):
    """A setting has a value that is not allowed; the message names variable, value and range."""

    code = "invalid_setting"


class ModelUnavailable(EmbedqError):
    """The model cannot be loaded: not there, not readable, not a text embedding model."""

    code = "model_unavailable"


class DeviceUnavailable(EmbedqError):
    """The device asked for is not on this machine."""

    code = "device_unavailable"


class DeviceMemoryError(EmbedqError):
    """The model does not fit into the memory of its device."""

    code = "out_of_memory"


class InvalidJob(EmbedqError):
    """The job as a whole is not valid, so its texts are not embedded.

    `field` names the part of the request, in the form of a JSON path without the root
    (`input`, `input[3]`, `dimensions`), or None for the body itself.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        if code is not None:
            self.code = code


class InvalidText(EmbedqError):
    """One text of a job cannot be embedded; the others can."""

    code = "invalid_text"


class JobFailed(Exception):
    """A job ended without vectors. Stored by Celery, raised again by `.get()`.

    `args` is `(code, message)`, so that it survives JSON and reads the same without embedq
    installed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
