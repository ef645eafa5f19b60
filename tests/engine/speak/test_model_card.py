"""Cards and what else is given to others say where a model comes from, and name no place on the training machine."""

import pytest
import yaml

from engine.base.hub_origin import hub_origin
from engine.base.recipe import Lora
from engine.merge.folder import merge_checkpoint
from engine.speak.model_card import describe_training, model_card
from launch.demo.small_model import build_model
from preprocess.corpus.base_model import BASE_ID, BASE_REVISION
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.state import STATE

TRAINING = {**STATE, "step": 7}


def head(card):
    _, yaml_head, _ = card.split("---\n", 2)
    return yaml.safe_load(yaml_head)


@pytest.mark.parametrize(
    ("kind", "relation", "library"),
    [("adapter", "adapter", "peft"), ("boson", "finetune", None), ("transformers", "finetune", "transformers")],
)
def test_the_head_is_what_the_hub_reads(kind, relation, library):
    origin = {"id": BASE_ID, "revision": BASE_REVISION}
    card = model_card(kind, {**TRAINING, "base": origin}, {"lora": {"rank": 4}}, "Speak | clearly.\nNow.")
    found = head(card)
    assert (found["base_model"], found["base_model_relation"]) == (BASE_ID, relation)
    assert found.get("library_name") == library
    assert found["pipeline_tag"] == "text-to-speech"
    for words in (BASE_REVISION, "| lora.rank | 4 |", "7 of 10", "loss_audio 4.2500", "conditioning_gain 0.1250"):
        assert words in card
    for words in ("1.5 hours", "3 train, 1 val", "2 x a processor", "Speak \\| clearly. Now.", "agreed to it"):
        assert words in card
    assert ("pad = 320" in card) == (kind == "transformers")


def test_what_is_not_known_is_left_out():
    card = model_card("boson", {"base": {"id": None, "revision": None}}, {}, "Speak.")
    assert "base_model" not in head(card)
    assert "## Recipe" not in card
    assert describe_training({}) == {"base": "unknown"}


@pytest.mark.parametrize("revision", [BASE_REVISION, "0" * 40])
def test_what_hf_download_leaves_names_the_revision(revision, tmp_path):
    metadata = tmp_path / ".cache" / "huggingface" / "download" / "config.json.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"{revision}\netag\n1700000000.0\n")
    known = BASE_ID if revision == BASE_REVISION else None
    assert hub_origin(tmp_path) == {"id": known, "revision": revision}
    assert hub_origin(tmp_path, "some/other") == {"id": "some/other", "revision": None if known else revision}
    assert hub_origin(tmp_path, "some/other@main") == {"id": "some/other", "revision": "main"}
    metadata.write_text("no revision\n")
    assert hub_origin(tmp_path) == {"id": None, "revision": None}


def test_a_folder_of_the_hubs_cache_names_both(tmp_path):
    folder = tmp_path / "models--some--base-3B" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    assert hub_origin(folder) == {"id": "some/base-3B", "revision": "a" * 40}
    assert hub_origin(tmp_path) == {"id": None, "revision": None}


@pytest.mark.parametrize("layout", ["boson", "transformers"])
def test_nothing_in_what_is_given_to_others_names_a_place_on_this_machine(layout, tmp_path):
    base = build_model(tmp_path / "base", num_layers=2, dual_ffn_layers=(0, 1), codebook_size=64)
    model = random_lora(base, Lora(rank=4))
    checkpoint = save_checkpoint(tmp_path / "run", base, model)
    merge_checkpoint(checkpoint, None, tmp_path / "merged", verify="none", layout=layout, base_id="some/base")
    files = [path for folder in (checkpoint, tmp_path / "merged") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    card = (tmp_path / "merged" / "README.md").read_text()
    assert head(card)["base_model"] == "some/base"
    assert "7 of 10" in card
