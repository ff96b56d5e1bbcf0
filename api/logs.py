"""gunicorn's logger, which also writes the application's records."""

from __future__ import annotations

import logging
from typing import Any

from gunicorn import glogging

from api.request_ids import HEADER, add_request_id
from worker.contract.errors import SettingsError
from worker.contract.settings import Settings
from worker.metrics.logs import use_json

_TEXT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"


class Logger(glogging.Logger):
    """Writes the application's records to gunicorn's stream, from gunicorn's level on.

    gunicorn configures only its own loggers; other records would have no time and be dropped
    below WARNING. `EMBEDQ_LOG_FORMAT=json` makes all of them JSON.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        root = logging.getLogger()
        if not root.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(_TEXT))
            root.addHandler(handler)
            root.setLevel(self.loglevel)
        for one in root.handlers:
            one.addFilter(add_request_id)
        self._json = _wants_json()
        if self._json:
            use_json(self.error_log, self.access_log, root)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        """Log a request: as gunicorn's line, or as JSON."""
        if not self._json:
            super().access(resp, req, environ, request_time)
        elif self.access_log_enabled:
            self.access_log.info("Request answered", extra=_facts(resp, environ, request_time))


def _wants_json() -> bool:
    try:
        return Settings.from_env().log_format == "json"
    except SettingsError:
        # The application reports the error when it is created.
        return False


def _facts(resp: Any, environ: dict[str, Any], request_time: Any) -> dict[str, Any]:
    headers = {str(name).lower(): value for name, value in resp.headers}
    return {
        "request_id": headers.get(HEADER.lower()),
        "method": environ.get("REQUEST_METHOD"),
        "path": environ.get("PATH_INFO"),
        "status": int(str(resp.status).split()[0]),
        "bytes": getattr(resp, "sent", 0),
        "seconds": round(request_time.total_seconds(), 6),
        "remote": environ.get("REMOTE_ADDR"),
    }
