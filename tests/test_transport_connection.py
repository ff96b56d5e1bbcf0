"""The transport of each URL; the tests open no connection."""

from __future__ import annotations

import ssl

import kombu
import pytest
from celery import Celery
from kombu import pools
from kombu.transport import redis as stock

from worker.contract.app import make_app
from worker.contract.settings import Settings
from worker.transport import AMQP, Connection, SentinelTransport, Transport

URLS = [
    ("redis://127.0.0.1:7000/1", Transport),
    ("rediss://127.0.0.1:7000/1?ssl_cert_reqs=required", Transport),
    ("redis+socket:///tmp/redis.sock?virtual_host=1", Transport),
    ("unix:///tmp/redis.sock?db=1", Transport),
    ("redis://127.0.0.1:7000;redis://127.0.0.1:7001", Transport),
    ("sentinel://127.0.0.1:7000;sentinel://127.0.0.1:7001", SentinelTransport),
]


@pytest.mark.parametrize(("url", "transport"), URLS)
def test_every_redis_url_leads_to_our_transport(url: str, transport: type) -> None:
    assert Connection(url).get_transport_cls() is transport
    assert Connection(url).clone().get_transport_cls() is transport


@pytest.mark.parametrize(("url", "transport"), URLS)
def test_celery_takes_our_transport_for_reading_and_writing(url: str, transport: type) -> None:
    app = Celery("test", broker=url, amqp="worker.transport:AMQP", set_as_current=False)
    assert isinstance(app.amqp, AMQP)
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert isinstance(connection.transport, transport)
        assert connection.transport.driver_type == "redis"


def test_other_applications_of_the_process_keep_kombus_transport() -> None:
    assert kombu.Connection("redis://").get_transport_cls() is stock.Transport
    assert Connection("memory://").get_transport_cls().driver_type == "memory"


def test_a_failover_to_the_next_url_keeps_our_transport() -> None:
    connection = Connection("redis://127.0.0.1:7000;redis://127.0.0.1:7001")
    connection.maybe_switch_next()
    assert connection.port == 7001
    assert connection.get_transport_cls() is Transport


def test_pools_are_not_shared_with_connections_of_kombus_own() -> None:
    url = "redis://127.0.0.1:7000/"
    ours, kombus = pools.connections[Connection(url)], pools.connections[kombu.Connection(url)]
    assert ours is not kombus
    assert ours is pools.connections[Connection(url)]


def test_a_unix_url_is_a_socket_and_a_database() -> None:
    connection = Connection("unix:///run/redis.sock?db=3")
    channel_parameters = connection.hostname, connection.transport_cls
    assert channel_parameters == ("socket:///run/redis.sock?virtual_host=3", "redis")


def test_tls_verifies_certificates_unless_told_otherwise() -> None:
    assert Connection("rediss://host/").ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    lax = Connection("rediss://host/?ssl_cert_reqs=optional")
    assert lax.ssl == {"ssl_cert_reqs": ssl.CERT_OPTIONAL}


@pytest.mark.parametrize(
    ("query", "required"),
    [
        ("", ssl.CERT_REQUIRED),
        ("?ssl_ca_certs=/ca.pem", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=CERT_NONE", ssl.CERT_NONE),
    ],
)
def test_results_come_through_tls_like_messages(query: str, required: ssl.VerifyMode) -> None:
    servers = {"CELERY_BROKER_URL": f"rediss://host/0{query}"}
    settings = Settings.from_env(servers | {"CELERY_RESULT_BACKEND": f"rediss://host/1{query}"})
    assert make_app(settings).backend.connparams["ssl_cert_reqs"] == required


def test_the_banner_names_the_url_without_its_password() -> None:
    shown = Connection("redis://user:secret@127.0.0.1:7000/2").as_uri()
    assert shown == "redis://user:**@127.0.0.1:7000/2"
