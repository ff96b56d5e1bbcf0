"""kombu's own Redis transport in place of embedq's, for comparison."""

from __future__ import annotations

from typing import Any


def use_stock_transport(app: Any, *, visibility_timeout: int = 3600) -> None:
    """Configure an application without connections for kombu's transport, which can lose jobs.

    A message of a killed worker returns to its queue after `visibility_timeout` seconds.
    """
    app.amqp_cls = "celery.app.amqp:AMQP"
    app.conf.broker_transport_options = app.conf.broker_transport_options | {
        "visibility_timeout": visibility_timeout
    }
