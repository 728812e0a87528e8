"""The model card: front matter that parses, and only what was measured."""

import re

import pytest
import yaml

from bitwright.record import record_of
from bitwright.report import render_model_card
from bitwright.report.card import license_of

SOURCE = "---\nlicense: mit\ntags: [original]\n---\n# Original\nSecret sauce.\n"


def front_matter(card):
    _, fields, body = card.split("---\n", 2)
    return yaml.safe_load(fields), body


def test_front_matter(record):
    fields, _ = front_matter(render_model_card(record_of(record), SOURCE))
    assert fields["license"] == "mit"
    assert fields["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert fields["base_model_relation"] == "quantized"
    assert fields["library_name"] == "sentence-transformers"
    assert {"bitwright", "int8"} <= set(fields["tags"])
    assert "original" not in fields["tags"]


def test_only_the_license_comes_from_the_source(record):
    assert "Secret sauce" not in render_model_card(record_of(record), SOURCE)


@pytest.mark.parametrize("readme", [None, "# no front matter", "---\n[broken: yaml\n---\n", "---\njust text\n---\n"])
def test_record_knows_the_license_where_the_card_does_not(record, readme):
    fields, _ = front_matter(render_model_card(record_of(record), readme))
    assert fields["license"] == "apache-2.0"


def test_license_fields_of_a_named_license():
    text = "---\r\nlicense: other\r\nlicense_name: x\r\nlicense_link: LICENSE\r\n---\r\n"
    assert license_of(text) == {"license": "other", "license_name": "x", "license_link": "LICENSE"}


def test_local_paths_are_no_base_model(record):
    record["model"]["name"] = "/home/someone/models/minilm"
    card = render_model_card(record_of(record), None)
    fields, _ = front_matter(card)
    assert "base_model" not in fields
    assert "/home/someone" not in card.split("## How it was made")[0]


def test_body_holds_the_results_and_the_limits(record, not_met):
    body = front_matter(render_model_card(record_of(not_met), None))[1].replace("\u00a0", " ")
    for said in ("3.9 times smaller", "bitwright.load(MODEL)", "SentenceTransformer(MODEL)", record["command"],
                 "budget that was asked for is not met", "3 of 128 texts"):  # fmt: skip
        assert said in body


def test_a_failed_check_is_the_first_limit(record):
    record["verify"][0]["ok"] = False
    body = front_matter(render_model_card(record_of(record), None))[1]
    assert "must not be used" in body
    assert "inside the" not in body
    assert body.split("## Limits\n\n")[1].startswith(f"- **Do not use it**: in {record['verify'][0]['target']} ")


def test_a_loss_on_single_texts_is_a_limit_of_a_model_that_reads_pairs(record):
    record["evaluation"] |= {"verdict": "not judged on pairs"}
    assert "it is not judged as it is used" in render_model_card(record_of(record), None)


def test_minimal_record(minimal):
    _, body = front_matter(render_model_card(record_of(minimal), None))
    assert "not evaluated" in body
    assert "## Measured" not in body


def test_classifiers_load_as_classifiers(record):
    record["model"]["task"] = "sequence-classification"
    record["verify"] = []
    fields, body = front_matter(render_model_card(record_of(record), None))
    assert fields["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained(MODEL)" in body


def test_language_models_generate_and_name_their_protocol(language):
    fields, body = front_matter(render_model_card(record_of(language), None))
    assert fields["pipeline_tag"] == "text-generation"
    assert "int4" in fields["tags"]
    for said in ("AutoModelForCausalLM.from_pretrained(MODEL)", "model.hf.generate", "perplexity, lower is better",
                 "20 held-out windows (wiki.test.raw, first 40", "by gptq"):  # fmt: skip
        assert said in body


def test_starved_experts_are_a_limit(experts, language):
    limits = [
        front_matter(render_model_card(record_of(record), None))[1].split("## Limits")[1]
        for record in (experts, language)
    ]
    assert "8 of 16 experts" in limits[0]
    assert "experts" not in limits[1]


def test_no_other_runtime_is_promised_than_was_asked_for(language):
    language["recipe"]["targets"], language["verify"] = ["bitwright"], language["verify"][:1]
    fields, body = front_matter(render_model_card(record_of(language), None))
    assert fields["library_name"] == "bitwright"
    assert "from_pretrained" not in body


def test_hostile_names_stay_text(record):
    record["model"]["name"] = "x`y\n---\nlicense: none\n# <script>alert(1)<script> |"
    record["warnings"] = ["<img src=x> | [a](b)"]
    card = render_model_card(record_of(record), None)
    fields, body = front_matter(card)
    assert fields["license"] == "apache-2.0"
    assert "<img" not in body
    assert "[a](b)" not in body.replace("\\[", "")
    title = re.search(r"^# (.*)$", body, re.MULTILINE)
    name = re.search(r"^A quantized copy of (`` .* ``)\.$", body, re.MULTILINE)
    assert "alert" in title[1]
    assert "<" not in title[1]
    assert "<script>" not in body.replace(name[1], "")
