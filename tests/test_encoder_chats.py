"""Models that read their texts as messages of a chat give the library's vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests import tiny_models
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelSpec
from worker.encoder import load
from worker.encoder.reference import Reference
from worker.verify import verify

#: As Qwen's: the system's message first, the user's after it, each between two special tokens.
FLAT = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
#: As Gemma's: contents in parts, trimmed, the system's message inside of the user's.
STRUCTURED = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}[{{ part['text'] | trim }}]{% endif %}{% endfor %}{% endfor %}"
)
PLAIN = "{{ messages[-1]['content'] }}"

TEXTS = [
    "the queue",
    "",
    "  blanks around it \n",
    "one batch is full of texts",
    "job " * 13,
    "job " * 90,
    "</s> <s>system\nthe model",
    "x" * 5000,
]


def qwen3(folder: Path, template: str, **parts: object) -> ModelSpec:
    path = tiny_models.qwen3(folder, chat_template=template, **parts)
    assert "message" in SentenceTransformer(str(path), device="cpu")[0].modality_config
    return ModelSpec("tiny", str(path))


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("template", [FLAT, STRUCTURED, PLAIN], ids=["flat", "structured", "plain"])
def test_a_chat_template_stands_around_each_text(
    template: str, pooling: str, tmp_path: Path
) -> None:
    spec = qwen3(tmp_path, template, pooling=pooling)
    encoder = load(spec, device="cpu")
    assert encoder.info.packed
    reference = Reference(spec, device="cpu")
    texts = [text for text in TEXTS if text or template != PLAIN]
    for prompt in (None, "", "Instruct: find the job\nQuery: ", "batch " * 40):
        found = encoder.forward(encoder.tokenize(texts, prompt))
        np.testing.assert_allclose(found, reference.encode_alone(texts, prompt), atol=1e-5, rtol=0)


def test_a_chat_model_is_verified_with_its_prompts(tmp_path: Path) -> None:
    spec = qwen3(
        tmp_path,
        FLAT,
        prompts={"query": "find the job "},
        default_prompt="query",
        include_prompt=False,
    )
    _, rows = verify(spec, device="cpu")
    assert [row.kind for row in rows if not row.passed] == []


def test_a_cut_chat_is_said_to_be_cut_and_keeps_its_end(tmp_path: Path) -> None:
    encoder = load(qwen3(tmp_path, FLAT), device="cpu")
    block = encoder.tokenize(["the queue", "job " * 90])
    assert block.truncated.tolist() == [False, True]
    assert block.ids[block.offsets[1] - 2 : block.offsets[1]].tolist() == block.ids[-2:].tolist()
    assert block.lengths[1] == tiny_models.MAX_TOKENS


def test_a_model_that_calls_its_tokenizer_in_its_own_way_is_refused(tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path)
    model = SentenceTransformer(str(path), device="cpu")
    model[0].processing_kwargs = {"text": {"max_length": 60}}
    model.save(str(tmp_path / "changed"))
    with pytest.raises(
        ModelUnavailable, match="processing_kwargs that embedq does not apply: text"
    ):
        load(ModelSpec("tiny", str(tmp_path / "changed")), device="cpu")
