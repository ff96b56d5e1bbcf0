"""Models of other kinds than dense are refused by their files, and dense ones are not."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from tests import tiny_models
from tests.processes import Process
from worker.cli import main
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec
from worker.encoder import detection, kinds, library, load
from worker.encoder.reference import Reference
from worker.pool.pool import EX_CONFIG

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.models.Pooling"
DENSE = "sentence_transformers.models.Dense"


def modules(*types: str) -> list[dict[str, str]]:
    return [
        {"idx": str(n), "name": str(n), "path": f"{n}_x" if n else "", "type": name}
        for n, name in enumerate(types)
    ]


def detected(files: dict[str, Any]) -> detection.DetectedKind:
    return detection.detect(files.get)


def kind_in(files: dict[str, Any]) -> str | None:
    kind = detected(files).kind
    return kind and kind.name


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("SentenceTransformer", "dense"),
        ("SparseEncoder", "sparse"),
        ("MultiVectorEncoder", "multi_vector"),
        ("ColBERT", "multi_vector"),
        ("CrossEncoder", "rerank"),
        ("SomethingNew", None),
        (None, None),
    ],
)
def test_the_model_type_is_the_kind(model_type: str | None, kind: str | None) -> None:
    files = {
        "modules.json": modules(TRANSFORMER, POOLING),
        "config_sentence_transformers.json": {"model_type": model_type},
    }
    assert kind_in(files) == kind


@pytest.mark.parametrize("settings", [{}, {"config_sentence_transformers.json": {"prompts": {}}}])
@pytest.mark.parametrize(
    ("types", "kind"),
    [
        ((TRANSFORMER, POOLING), "dense"),
        (("sentence_transformers.models.Transformer", POOLING, DENSE), "dense"),
        ((TRANSFORMER, "sentence_transformers.models.WeightedLayerPooling", POOLING), "dense"),
        (("sentence_transformers.models.StaticEmbedding",), "dense"),
        (("sentence_transformers.models.WordEmbeddings", POOLING), "dense"),
        ((TRANSFORMER, "sentence_transformers.sparse_encoder.models.SpladePooling"), "sparse"),
        (("sentence_transformers.sparse_encoder.models.MLMTransformer", POOLING), "sparse"),
        (
            (TRANSFORMER, POOLING, "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"),
            "sparse",
        ),
        ((TRANSFORMER, "pylate.models.Dense.Dense"), "multi_vector"),
        ((TRANSFORMER, DENSE), "multi_vector"),
        ((TRANSFORMER,), "multi_vector"),
        ((TRANSFORMER, "sentence_transformers.cross_encoder.modules.LogitScore"), "rerank"),
    ],
)
def test_modules_tell_the_kind_where_no_model_type_does(
    types: tuple[str, ...], kind: str, settings: dict[str, Any]
) -> None:
    assert kind_in({"modules.json": modules(*types)} | settings) == kind


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"transformer_task": "sequence-classification"}, "rerank"),
        ({"transformer_task": "text-generation"}, "rerank"),
        ({"transformer_task": "fill-mask"}, "sparse"),
        ({"transformer_task": "retrieval"}, "multi_vector"),
        ({"transformer_task": "feature-extraction"}, "multi_vector"),
        ({"module_output_name": "sentence_embedding"}, "dense"),
    ],
)
@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_a_lone_transformer_has_the_kind_of_its_task(
    settings: dict[str, str], kind: str, path: str
) -> None:
    files = {
        "modules.json": [{"type": TRANSFORMER, "path": path}],
        f"{path}/sentence_bert_config.json".lstrip("/"): settings,
    }
    assert kind_in(files) == kind


@pytest.mark.parametrize(
    ("architectures", "kind"),
    [
        (["BertModel"], "dense"),
        (["Qwen3Model"], "dense"),
        (["T5EncoderModel"], "dense"),
        (["LongformerModel"], "dense"),
        (["Contriever"], "dense"),
        (["RobertaForCL"], "dense"),
        (None, "dense"),
        ([], "dense"),
        (["BertForSequenceClassification"], "rerank"),
        (["Qwen3ForSequenceClassification"], "rerank"),
        (["DistilBertForMaskedLM"], "sparse"),
        (["HF_ColBERT"], "multi_vector"),
        (["ColPaliForRetrieval"], "multi_vector"),
        (["ColQwen2"], "multi_vector"),
        (["Qwen3ForCausalLM"], None),
        (["GPT2LMHeadModel"], None),
        (["T5ForConditionalGeneration"], None),
        (["BertForTokenClassification"], None),
    ],
)
def test_the_head_of_a_checkpoint_without_modules_tells_the_kind(
    architectures: list[str] | None, kind: str | None
) -> None:
    found = detected({"config.json": {"architectures": architectures}})
    assert (found.kind and found.kind.name, found.bare) == (kind, True)
    stated = {"config.json": {"architectures": architectures}}
    assert kind_in(stated | {"modules.json": modules(TRANSFORMER, POOLING)}) == "dense"


def test_colberts_own_metadata_tell_the_kind() -> None:
    files = {"config.json": {"architectures": ["BertModel"]}, "artifact.metadata": {"dim": 128}}
    assert kind_in(files) == "multi_vector"


def test_a_copy_of_a_model_that_lacks_its_modules_is_not_taken_for_an_encoder() -> None:
    files: dict[str, Any] = {"config.json": {"architectures": ["BertModel"]}}
    assert kind_in(files | {"1_Pooling/config.json": {"pooling_mode": "cls"}}) is None
    stated = {"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}
    assert kind_in(files | stated) == "sparse"
    dense = {"config_sentence_transformers.json": {"prompts": {}}}
    assert kind_in(files | dense) == "dense"


def test_one_file_adds_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(
        "from worker.encoder.kinds import Kind\n"
        'KIND = Kind(name="toy", model_types=("Toy",), modules=r"toys\\..*", description="a toy")\n'
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    found = detected({"modules.json": modules(TRANSFORMER, "toys.Toy")})
    assert found.kind is not None
    assert found.kind.name == "toy"
    reason = detection.objection(found)
    assert reason is not None
    assert reason.startswith("is a toy: modules.json has the module toys.Toy; embedq runs dense")
    assert detection.objection(found._replace(kind=kinds.kinds()["dense"])) is None


def bare(folder: Path, model: type[Any]) -> Path:
    """A checkpoint of transformers alone."""
    return tiny_models.checkpoint(folder / "bare", model)


def rerank(folder: Path) -> Path:
    path = folder / "rerank"
    CrossEncoder(str(bare(folder, BertForSequenceClassification)), device="cpu").save(str(path))
    return path


def splade(folder: Path) -> Path:
    path = folder / "splade"
    SparseEncoder(str(bare(folder, BertForMaskedLM)), device="cpu").save(str(path))
    return path


def csr(folder: Path) -> Path:
    path = folder / "csr"
    SparseEncoder(str(bare(folder, BertModel)), device="cpu").save(str(path))
    return path


def colbert(folder: Path) -> Path:
    path = folder / "colbert"
    MultiVectorEncoder(str(bare(folder, BertModel)), device="cpu").save(str(path))
    return path


def pylate(folder: Path) -> Path:
    """The files that PyLate saves: a Transformer, its own Dense, and its settings."""
    path = colbert(folder)
    (path / "modules.json").write_text(
        json.dumps(modules(TRANSFORMER, "pylate.models.Dense.Dense"))
    )
    (path / "config_sentence_transformers.json").write_text(
        json.dumps({"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32})
    )
    return path


OTHER_KINDS: dict[Callable[[Path], Path], str] = {
    rerank: "rerank",
    splade: "sparse",
    csr: "sparse",
    colbert: "multi_vector",
    pylate: "multi_vector",
    lambda folder: bare(folder, BertForSequenceClassification): "rerank",
    lambda folder: bare(folder, BertForMaskedLM): "sparse",
}


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("save", "kind"),
    OTHER_KINDS.items(),
    ids=[*(save.__name__ for save in list(OTHER_KINDS)[:5]), "bare classifier", "bare masked lm"],
)
def test_a_model_of_another_kind_is_refused_with_its_kind(
    save: Callable[[Path], Path], kind: str, backend: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(ModelSpec("mine", str(save(tmp_path))), device="cpu", backend=backend)
    message = caught.value.message
    assert message.startswith("model 'mine' is a")
    assert f"(kind {kind})" in message
    assert "embedq runs dense models" in message
    assert "\n" not in message


@pytest.mark.parametrize("command", ["verify", "tune"])
def test_the_command_line_names_the_kind(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [command, "--model", str(rerank(tmp_path))])
    assert result.exit_code != 0
    assert "(kind rerank)" in result.output


def test_a_worker_does_not_start_with_a_reranker(
    worker_process: Callable[..., Process], tmp_path: Path
) -> None:
    worker = worker_process(ready=None, env={"EMBEDQ_MODEL": str(rerank(tmp_path))})
    assert worker.wait(60) == EX_CONFIG
    assert "(kind rerank)" in worker.log()


def test_an_encoder_without_modules_gives_means_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec("mine", str(bare(tmp_path, BertModel)))
    with caplog.at_level(logging.WARNING, "worker.encoder"):
        encoder = load(spec, device="cpu")
    assert caplog.messages == [
        "model mine has no modules.json, which would state its pooling: "
        "its vectors are the means of its tokens"
    ]
    found = encoder.forward(encoder.tokenize(["the queue"]))
    expected = Reference(spec, device="cpu").encode(["the queue"])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_a_dense_model_may_keep_the_head_it_was_trained_with(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    assert load(ModelSpec("mine", str(path)), device="cpu").info.dimensions == tiny_models.HIDDEN


def in_hub_cache(model: Path, cache: Path) -> None:
    """Store the files of `model` like huggingface_hub stores those of some/one."""
    root, commit = cache / "models--some--one", "0" * 40
    shutil.copytree(model, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache of the Hub; the Hub itself is unreachable."""

    def away(*_: object, **__: object) -> None:
        raise OSError("the Hub is away")

    monkeypatch.setattr(library, "model_info", away)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_kind_of_a_model_in_the_cache_is_known_without_the_hub(
    tmp_path: Path, hub: Path
) -> None:
    in_hub_cache(rerank(tmp_path), hub)
    with pytest.raises(ModelUnavailable, match=r"\(kind rerank\)"):
        load(ModelSpec("mine", "some/one"), device="cpu")


def test_a_dense_model_in_the_cache_needs_no_hub(tmp_path: Path, hub: Path) -> None:
    in_hub_cache(tiny_models.bert(tmp_path), hub)
    assert load(ModelSpec("mine", "some/one"), device="cpu").info.dimensions == tiny_models.HIDDEN


def test_an_encoder_in_the_cache_that_is_known_to_have_no_modules_needs_no_hub(
    tmp_path: Path, hub: Path
) -> None:
    in_hub_cache(bare(tmp_path, BertModel), hub)
    absent = hub / "models--some--one" / ".no_exist" / ("0" * 40) / "modules.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert load(ModelSpec("mine", "some/one"), device="cpu").info.dimensions == tiny_models.HIDDEN


def test_a_cached_model_whose_modules_were_never_fetched_is_not_taken_for_an_encoder(
    tmp_path: Path, hub: Path
) -> None:
    path = tiny_models.bert(tmp_path)
    (path / "modules.json").unlink()
    in_hub_cache(path, hub)
    with pytest.raises(ModelUnavailable, match="the Hub is away"):
        load(ModelSpec("mine", "some/one"), device="cpu")


def test_a_checkpoint_runs_once_its_pooling_is_saved_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = re.search(r"```python\n(.*?)```", Path("docs/models.md").read_text(), re.DOTALL)
    assert recipe is not None
    monkeypatch.chdir(tmp_path)
    tiny_models.checkpoint(Path("my-checkpoint"), BertForMaskedLM)
    exec(recipe[1], {})
    assert load(ModelSpec("mine", "my-model"), device="cpu").info.dimensions == tiny_models.HIDDEN
