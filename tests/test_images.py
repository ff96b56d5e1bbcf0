"""How `make images` reads the compose files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import __main__ as program
from tests.images import builder
from tests.images.compose import COMPOSE, GPU, interpolated, seconds, services

VARIABLES = {"NAME": "given", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${NAME}", "given"),
        ("${NAME:-default}", "given"),
        ("${EMPTY:-default}", "default"),
        ("${MISSING:-default}", "default"),
        ("${MISSING}", ""),
        ("${MISSING:-}", ""),
        ("${MISSING:-[::1],api}", "[::1],api"),
        ("at ${NAME}:80, $${NAME}", "at given:80, ${NAME}"),
    ],
)
def test_variables_are_replaced(text: str, value: str) -> None:
    assert interpolated(text, VARIABLES) == value


@pytest.mark.parametrize("text", ["$NAME", "${NAME:?needed}", "${NAME", "$"])
def test_a_variable_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a variable"):
        interpolated(text, VARIABLES)


@pytest.mark.parametrize(("text", "value"), [("5s", 5), ("1m30s", 90), ("2m", 120)])
def test_durations_are_in_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "1h"])
def test_another_duration_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        seconds(text)


def test_services_start_after_those_that_they_depend_on() -> None:
    found = services({})
    assert next(iter(found)) == "redis"
    assert found["worker"].after == found["api"].after == ["redis"]


def test_a_service_has_what_the_file_gives_it() -> None:
    found = services({"EMBEDQ_QUEUE": "other", "EMBEDQ_PORT": "9000"})
    api, redis = found["api"], found["redis"]
    assert api.environment["EMBEDQ_QUEUE"] == "other"
    assert api.environment["EMBEDQ_MAX_JOB_BYTES"] == "8388608"
    assert api.ports == {("127.0.0.1", 9000): 8000}
    assert api.volumes == {"/home/embedq/files": "files"}
    assert redis.command[-2:] == ["--maxmemory-policy", "noeviction"]
    assert redis.health is not None
    assert redis.health.command == ["valkey-cli", "ping"]


def test_a_later_file_adds_to_an_earlier_one() -> None:
    plain, on_gpu = services({}), services({}, COMPOSE, GPU)
    assert on_gpu["worker"].environment["EMBEDQ_DEVICE"] == "cuda"
    rest = {"EMBEDQ_DEVICE": "cpu"}
    assert on_gpu["worker"].environment | rest == plain["worker"].environment
    assert on_gpu["worker"].dockerfile == plain["worker"].dockerfile
    assert on_gpu["api"] == plain["api"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("privileged: true", "cannot evaluate privileged"),
        ("volumes: [elsewhere:/data]", "the volume 'elsewhere' is not declared"),
        ("healthcheck: {test: [CMD-SHELL, 'true']}", "health check by CMD-SHELL"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "compose.yml"
    file.write_text(f"services:\n  redis:\n    image: one\n    {line}\n")
    with pytest.raises(ValueError, match=message):
        services({}, file)


def test_each_base_image_has_a_recipe() -> None:
    for service in services({}).values():
        if service.dockerfile is None:
            assert service.image is not None
            assert builder.full_name(service.image) in builder.BASES
        else:
            assert builder.bases(service.dockerfile) <= set(builder.BASES)
    with pytest.raises(ValueError, match="no recipe for the base image 'python:2'"):
        builder.full_name("python:2")


def test_without_the_tools_it_says_which_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["images"])
    monkeypatch.setattr(builder, "TOOLS", ("no-such-tool", "sh"))
    program.main()
    assert "Skipped: this machine has no no-such-tool" in capsys.readouterr().out
