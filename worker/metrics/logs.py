"""Log records as lines of JSON, with the id of their job, for the API and the worker."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

logger = logging.getLogger(__name__)

#: Attributes of a record, by `extra`, that its line shows; all others are left out.
FACTS = ("job_id", "request_id", "method", "path", "status", "bytes", "seconds", "remote")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `process`, `message`, then the facts.

    An exception adds `error`, its type, and `traceback`. The job's id is taken from Celery's own
    records, too. Arguments of tasks appear only if the message has them.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        job_id = _celery_id(record)
        if job_id is not None:
            line["job_id"] = job_id
        line |= {name: getattr(record, name) for name in FACTS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return _dumps(line)


def use_json_in_worker() -> None:
    """Let Celery's worker log in JSON, with its own options for file and level.

    Call it once per process; it has an effect only in a worker.
    """
    # Imported here: gunicorn reads this module before gevent patches the modules Celery imports.
    from celery import signals

    signals.celeryd_init.connect(_begin)
    signals.after_setup_logger.connect(_reformat)
    signals.after_setup_task_logger.connect(_reformat)


def use_json(*loggers: logging.Logger) -> None:
    """Let these loggers' handlers write JSON, warnings and uncaught errors of any thread too."""
    logging.captureWarnings(capture=True)
    for one in loggers:
        for handler in one.handlers:
            handler.setFormatter(JsonFormatter())
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _begin(**_: Any) -> None:
    """Add a handler until Celery sets up its own: it may log warnings before that."""
    root = logging.getLogger()
    root.addHandler(logging.StreamHandler())
    use_json(root)


def _reformat(logger: logging.Logger, **_: Any) -> None:
    use_json(logger)


def _celery_id(record: logging.LogRecord) -> str | None:
    """The id of the task in a mapping that Celery logs, or None."""
    data = getattr(record, "data", None)
    found = data.get("id") if isinstance(data, Mapping) else None
    return found if isinstance(found, str) else None


def _dumps(line: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:
        # A lone surrogate, in a name that a caller made up.
        shown = {name: _encodable(value) for name, value in line.items()}
        return orjson.dumps(shown, default=ascii).decode()


def _encodable(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logger.critical("Uncaught %s", kind.__name__, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not isinstance(caught.exc_value, SystemExit):
        _log_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
