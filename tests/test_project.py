"""The project's rules: imports between packages, files of the containers, targets of make."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from importlib.util import find_spec

import pytest
import yaml

from tests.images.compose import COMPOSE, DOCKER, GPU, services
from tests.newest import requirements, without_upper_bound
from tests.processes import ROOT, run_python


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = run_python("-c", code)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "package",
    [
        str(file.parent.relative_to(ROOT))
        for package in ("api", "worker")
        for file in sorted((ROOT / package).rglob("__init__.py"))
        if file.parent.name != "cli"
    ],
)
def test_the_map_of_a_package_lists_its_modules_each_once(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    listed = [
        name
        for names in re.findall(r"^- ((?:`\w+`(?:, )?)+): ", docstring or "", re.MULTILINE)
        for name in re.findall(r"\w+", names)
    ]
    modules = [
        *(file.stem for file in (ROOT / package).glob("[!_]*.py")),
        *(file.parent.name for file in (ROOT / package).glob("[!_]*/__init__.py")),
    ]
    assert sorted(listed) == sorted(modules)


def test_public_class_names_are_unique() -> None:
    names = [
        node.name
        for package in ("api", "worker")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]

    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "statement", ["import api", "import worker.tasks", "import worker.contract"]
)
def test_producers_load_no_torch(statement: str) -> None:
    loaded = loaded_by(statement)
    assert not loaded & {"torch", "transformers", "sentence_transformers"}


def test_tasks_load_no_flask() -> None:
    assert not loaded_by("import worker.tasks") & {"flask", "gevent", "gunicorn"}


def test_only_two_import_packages_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.partition(".")[0] for pattern in include} == {"worker", "api"}


def test_each_pattern_of_package_data_matches_and_no_data_file_is_left_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    tops = [ROOT / "api", ROOT / "worker"]
    packages = [file.parent for top in tops for file in top.rglob("__init__.py")]
    matched = [
        {file for package in packages for file in package.glob(pattern) if file.is_file()}
        for pattern in patterns
    ]
    assert all(matched)
    files = {file for top in tops for file in top.rglob("*.*") if file.is_file()}
    assert set().union(*matched) == {file for file in files if file.suffix not in (".py", ".pyc")}


def test_every_dependency_has_its_version_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    pins = (ROOT / ".ci" / "constraints.txt").read_text()
    pinned = {normal(line.partition("==")[0]) for line in pins.splitlines() if "==" in line}
    assert {normal(re.split(r"[^\w.-]", one)[0]) for one in wanted} <= pinned


@pytest.mark.parametrize(
    ("stated", "newest"),
    [
        ("celery~=5.7.0", "celery>=5.7.0"),
        ("redis>=6.4,<9", "redis>=6.4"),
        ("weights==0.1.0", "weights>=0.1.0"),
        ("types-psutil", "types-psutil"),
    ],
)
def test_the_newest_releases_are_asked_for_without_our_upper_bounds(
    stated: str, newest: str
) -> None:
    assert without_upper_bound(stated) == newest
    assert not re.search("[<~]|==", " ".join(requirements()))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_redis_in_compose_persists_and_evicts_nothing() -> None:
    redis = services({})["redis"]
    options = dict(zip(redis.command[1::2], redis.command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert redis.volumes


def test_compose_has_a_health_check_for_each_part_or_its_image_does() -> None:
    found = services({})
    assert set(found) == {"redis", "api", "worker"}
    for service in found.values():
        if service.dockerfile is None:
            assert service.health is not None
        else:
            assert "\nHEALTHCHECK " in service.dockerfile.read_text()


def test_compose_names_only_settings_that_exist() -> None:
    known = (ROOT / "worker" / "contract" / "settings.py").read_text()
    for name, service in services({}, COMPOSE, GPU).items():
        for variable in service.environment:
            assert f'"{variable}"' in known, f"{name}: {variable}"


@pytest.mark.parametrize("image", ["api", "worker"])
def test_images_run_as_a_user_and_start_what_exists(image: str) -> None:
    text = (DOCKER / f"{image}.Dockerfile").read_text().replace("\\\n", "")
    user, command = text.index("\nUSER embedq"), text.index("\nCMD ")
    assert user < command
    program = yaml.safe_load(text[command:].strip().removeprefix("CMD "))
    assert find_spec(program[0]), program
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / path).exists() for path in shlex.split(source)), source


def test_the_api_image_has_no_torch() -> None:
    install = (DOCKER / "api.Dockerfile").read_text()
    assert re.findall(r"\.whl\)\[(\w+)\]", install) == ["api"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = " ".join([*extras["dependencies"], *extras["optional-dependencies"]["api"]])
    assert not re.search(r"torch|transformers|minilm", wanted)


def test_make_lists_its_targets() -> None:
    run = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in (
        *("run", "test", "test-fast", "test-newest", "lint", "bench", "soak", "images", "clean"),
    ):
        assert f"make {target} " in run.stdout


def test_ci_lints_and_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make (\w+)", script, re.MULTILINE) == ["lint", "test"]
