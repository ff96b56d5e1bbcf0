"""Secrets of URLs are in no answer, error or log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from worker.contract.errors import SettingsError
from worker.contract.settings import Settings
from worker.metrics import redaction
from worker.metrics.logs import JsonFormatter
from worker.metrics.redaction import conceal, protect, redact
from worker.store.openai_batch import FileFault, OpenAIBatch, fields_of, parse
from worker.store.storage import Storage, StorageUnavailable

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@host:6379/0", "redis://***@host:6379/0"),
        (
            f"rediss://me:{SECRET}@host/0?ssl_cert_reqs=none",
            "rediss://***@host/0?ssl_cert_reqs=none",
        ),
        (f"redis://:a/{SECRET}?b#c@d@host/0", "redis://***@host/0"),
        (f"redis://host/0?password={SECRET}&db=1", "redis://host/0?password=***&db=1"),
        (f"redis://host/0?p%61ssword={SECRET}", "redis://host/0?p%61ssword=***"),
        (
            f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:2/0",
            "sentinel://***@a:1;sentinel://***@b:2/0",
        ),
        (f"sentinel://:{SECRET}@a:1;b:2/0", "sentinel://***@a:1;b:2/0"),
        (
            f"redis+socket://:{SECRET}@/tmp/s?virtual_host=1",
            "redis+socket://***@/tmp/s?virtual_host=1",
        ),
        (f"s3://id:{SECRET}@bucket/x?Access_Token={SECRET}", "s3://***@bucket/x?Access_Token=***"),
        (f"id:{SECRET}@bucket", "***@bucket"),
        (f"az://x/y?sig={SECRET};z&key={SECRET}", "az://x/y?sig=***&key=***"),
    ],
)
def test_user_info_and_secret_parameters_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    ["redis://host:1/0", "redis+socket:///tmp/s?virtual_host=0", "s3://bucket/a", "/a/folder", ""],
)
def test_a_url_without_secrets_stays_as_it_is(url: str) -> None:
    assert redact(url) == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMBEDQ_FILES", f"id:{SECRET}@bucket/x"),
        ("EMBEDQ_FILES", f"bucket/x?token={SECRET}"),
        ("CELERY_BROKER_URL", f"redis://:a/{SECRET}@host:6379/0"),
        ("CELERY_BROKER_URL", f"redis://:#{SECRET}@host:6379/0"),
        ("CELERY_RESULT_BACKEND", f"sentinel://:[{SECRET}@host:6379/0"),
    ],
)
def test_a_wrong_setting_is_told_without_its_secret(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({name: value})
    assert name in raised.value.message
    assert SECRET not in raised.value.message
    assert raised.value.__suppress_context__


def test_settings_can_be_shown() -> None:
    url = f"redis://:{SECRET}@host"
    assert SECRET not in repr(
        Settings(broker_url=url, result_backend=url, files=f"s3://:{SECRET}@b")
    )


@pytest.mark.parametrize("scheme", ["nosuch", "http", "s3"])
def test_a_storage_that_cannot_be_used_tells_no_secret(scheme: str) -> None:
    storage = Storage(f"{scheme}://id:{SECRET}@127.0.0.1:1/x?token={SECRET}")
    with pytest.raises(StorageUnavailable) as raised, storage.writer("files/a"):
        pass
    assert SECRET not in raised.value.message
    assert f"{scheme}://***@127.0.0.1:1/x?token=***" in raised.value.message


def test_faults_that_an_earlier_version_stored_are_shown_without_secrets() -> None:
    message = f"EMBEDQ_FILES='s3://id:{SECRET}@bucket/x' does not hold the file"
    stored = fields_of(
        OpenAIBatch("batch_1", "file-1", errors=[FileFault("file_not_found", message)])
    )
    read = parse("batch_1", {n.encode(): str_of(v) for n, v in stored.items()})
    assert read.errors[0].message.endswith("***@bucket/x' does not hold the file")


def str_of(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The output of handlers of both kinds; the factory of records is restored."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend((logging.Formatter().format(record), JsonFormatter().format(record)))

    handler, factory = Lines(), logging.getLogRecordFactory()
    logging.getLogger("anyones").addHandler(handler)
    yield lines
    logging.getLogger("anyones").removeHandler(handler)
    logging.setLogRecordFactory(factory)
    redaction._Records.installed = False


def test_no_record_of_the_process_quotes_a_protected_url(log: list[str]) -> None:
    url = f"redis://me:{SECRET}%2F1@host/0?sig=signature%21"
    protect(url)
    logger = logging.getLogger("anyones")
    logger.error("cannot reach %s", url)
    logger.error("bucket 'me:%s%%2F1@host'", SECRET)
    logger.error("the password is %(it)s", {"it": f"{SECRET}/1"})
    logger.error("signature! or signature%21 of nothing")
    try:
        try:
            raise OSError(f"Invalid endpoint: {url}")
        except OSError as error:
            raise ValueError(f"{SECRET}/1") from error
    except ValueError:
        logger.exception("failed")
    logger.error("%s is an ordinary line", "this", stack_info=True)
    assert len(log) == 12
    assert not [line for line in log if SECRET in line or "signature!" in line]
    assert any("Invalid endpoint: redis://***@host/0?sig=***" in line for line in log)
    assert conceal("this is an ordinary line") == "this is an ordinary line"


def test_records_that_cannot_be_formatted_are_left_to_their_handler(log: list[str]) -> None:
    protect(f"redis://:{SECRET}@host")
    with pytest.raises(TypeError):
        logging.getLogger("anyones").error("%d", "no number")
