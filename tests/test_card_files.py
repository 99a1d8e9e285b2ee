"""Facts on disk, the pictures, and the check that a card is what its facts say."""

import json
import logging
import struct
import sys
import zlib

import pytest

from rgtg_logits import RewardModel
from rgtg_logits.card import CardFacts, DataFacts, Guidance, GuidedPoint, PrefixEvaluation, ScoredExample
from rgtg_logits.card.files import card_differences, read_facts, render_folder, score_example, write_card
from rgtg_logits.card.plots import expected_digests, read_digest
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

FACTS = CardFacts(
    model_id="org/rm",
    objective="soft_value",
    kind="vocabulary",
    settings={"beta": 2.0},
    data=DataFacts(name="Ünïcode", rows=10, cut=0, left_out={"too long": 1}),
    evaluations=(
        PrefixEvaluation(
            name="a", pairs=9, prefix_accuracy={10: 0.5, 50: 0.75, 100: 0.875}, standard_error={10: 0.125}
        ),
        PrefixEvaluation(name="b", texts=9, correlation={10: 0.125, 100: 0.5}, standard_error={10: 0.25, 100: 0.125}),
    ),
    guidance=Guidance(
        points=(
            GuidedPoint(beta=1.0, reward=2.0, kl=0.5, reward_interval=(1.5, 2.25)),
            GuidedPoint(beta=0.0, reward=1.0, kl=0.0),
        ),
        reward="points",
        kl="nats per answer",
    ),
    example=ScoredExample(prompt="p", answers=("a", "b"), scores=(0.1, 1e-9)),
    hyperparameters={"learning_rate": 5e-6, "max_length": None, "target_modules": ["q", "v"], "optim": "sgd"},
    language=("en", "de"),
    pad_is_eos=True,
)


def chunks(content):
    """The parts of a PNG file, each with its checksum verified."""
    position, parts = 8, {}
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        data = content[position + 8 : position + 8 + length]
        assert struct.unpack(">I", content[position + 8 + length : position + 12 + length])[0] == zlib.crc32(
            kind + data
        )
        parts[kind] = parts.get(kind, b"") + data
        position += length + 12
    return parts


@pytest.mark.parametrize("facts", [FACTS, CardFacts(model_id="m", objective="arm", steps=0, training_seconds=0.0)])
def test_facts_come_back_from_json(facts):
    values = json.loads(json.dumps(facts.to_dict()))
    assert type(facts).from_dict(values) == facts
    assert None not in [value for name, value in values.items() if name != "hyperparameters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectif": "arm"}, r"Expected the names of known facts, but got 'objectif'\. Correct or remove it\."),
        ({"data": {"row": 3}}, r"Expected the names of known facts, but got 'data\.row'\."),
        ({"evaluations": [{"pairs": 3}]}, r"Expected the fact 'evaluations\[0\]\.name', but it is missing\. Add it\."),
        ({"steps": "many"}, "Expected 'steps' to be a valid integer, but got 'many'. Correct it"),
        ({"steps": True}, "Expected 'steps' to be a valid integer, but got True"),
        ({"steps": 3.0}, "Expected 'steps' to be a valid integer, but got 3.0"),
        ({"pad_is_eos": "yes"}, "Expected 'pad_is_eos' to be a valid boolean, but got 'yes'"),
        ({"base_model": 3}, "Expected 'base_model' to be a valid string, but got 3"),
        ({"training_seconds": "3"}, "Expected 'training_seconds' to be a valid number, but got '3'"),
        ({"notes": "a note"}, "Expected 'notes' to be a valid array, but got 'a note'"),
        ({"settings": [1]}, r"Expected 'settings' to be an object, but got \[1\]"),
        ({"stepz": 1, "language": [2]}, r"valid string, but got 2\. .* known facts, but got 'stepz'"),
        ({"objective": "ranking"}, "^Expected objective to be one of 'partial_bt', .* but got 'ranking'"),
        (
            {"evaluations": [{"name": "e", "pairs": 1, "prefix_accuracy": {"ten": 0.5}}]},
            r"Expected 'evaluations\[0\]\.prefix_accuracy\.ten.*' to be a valid integer, .* but got 'ten'",
        ),
        (
            {"guidance": {"reward": "r", "kl": "k", "points": [{"beta": 1, "reward": 1, "kl": 1, "kl_interval": [1]}]}},
            r"Expected the fact 'guidance\.points\[0\]\.kl_interval\[1\]', but it is missing",
        ),
    ],
)
def test_values_that_are_no_facts(change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        CardFacts.from_dict({"model_id": "m", "objective": "arm", **change})


def test_whole_numbers_are_numbers():
    facts = CardFacts.from_dict({"model_id": "m", "objective": "arm", "settings": {"arm_beta": 1}})
    assert facts.settings == {"arm_beta": 1.0} and type(facts.settings["arm_beta"]) is float


def test_a_number_that_json_cannot_express():
    with pytest.raises(InvalidArgumentError, match="Expected finite numbers among the facts, but got NaN or infinity"):
        CardFacts(model_id="m", objective="arm", training_seconds=float("nan")).to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Expected the facts of a model card in .*facts.json, but there is no such file"),
        ("{", "Expected JSON in .*facts.json, but got: Expecting"),
        ("[]", "with 'card' as 'reward model', but got None"),
        ('{"card": "dog"}', "but got 'dog'"),
        (
            '{"card": "base model"}',
            "facts.json to be an object .* but got 'base model'. Name the folder of a reward",
        ),
        ('{"card": "reward model", "name": 1}', r"In .*facts.json: .* the names of known facts, but got 'name'"),
    ],
)
def test_files_that_hold_no_facts(tmp_path, text, message):
    if text is not None:
        (tmp_path / "facts.json").write_text(text)
    for command in (render_folder, card_differences):
        with pytest.raises(InvalidArgumentError, match=message):
            command(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_card_with_its_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    write_card(tmp_path / "rm", FACTS)

    names = {"prefix_accuracy.png", "prefix_correlation.png", "reward_against_kl.png"}
    assert {path.name for path in (tmp_path / "rm").iterdir()} == {*names, "facts.json", "README.md"}
    text = (tmp_path / "rm" / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"]({name})\n" in text
        parts = chunks((tmp_path / "rm" / name).read_bytes())
        width, height = struct.unpack(">II", parts[b"IHDR"][:8])
        assert width > 500 and height > 300
        # Not one colour: there are many different rows of pixels.
        pixels = zlib.decompress(parts[b"IDAT"])
        row = len(pixels) // height
        assert len({pixels[start : start + row] for start in range(0, len(pixels), row)}) > 50
    assert read_facts(tmp_path / "rm") == FACTS
    assert card_differences(tmp_path / "rm") == ""


def test_pictures_are_drawn_again_when_they_show_something_else(tmp_path):
    pytest.importorskip("matplotlib")
    write_card(tmp_path, FACTS)
    picture, digest = tmp_path / "prefix_accuracy.png", expected_digests(FACTS)["prefix_accuracy.png"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    render_folder(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before

    values = json.loads((tmp_path / "facts.json").read_text())
    values["evaluations"][0]["prefix_accuracy"]["100"] = 0.25
    (tmp_path / "facts.json").write_text(json.dumps(values))
    found = card_differences(tmp_path)
    assert "-| accuracy | 0.500 | 0.750 | 0.875 |" in found and "+| accuracy | 0.500 | 0.750 | 0.250 |" in found
    assert f"{picture} is missing or shows other facts." in found and "reward_against_kl.png is" not in found
    assert read_digest(picture) == digest  # checking wrote nothing
    render_folder(tmp_path)
    assert card_differences(tmp_path) == "" and read_digest(picture) not in (None, digest)

    picture.write_bytes(b"not a picture")
    assert f"{picture} is missing or shows other facts." in card_differences(tmp_path)
    picture.unlink()
    assert f"{picture} is missing or shows other facts." in card_differences(tmp_path)


def test_without_matplotlib_there_is_a_card_without_pictures(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        write_card(tmp_path, FACTS)
    assert "because matplotlib is missing. Run: pip install matplotlib" in caplog.text
    assert ".png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"facts.json", "README.md"}


def test_the_usage_example_is_scored_by_the_model_in_the_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    model = RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)
    model.save_pretrained(tmp_path)
    write_card(tmp_path, CardFacts(model_id="org/rm", objective="full_bt"))
    answers = ["good", "bad and dull"]
    score_example(tmp_path, "the film was ", answers)

    assert "+print([round(score, 2) for score in scores.tolist()])" in card_differences(tmp_path)
    render_folder(tmp_path)
    facts = read_facts(tmp_path)
    assert (facts.example.prompt, list(facts.example.answers)) == ("the film was ", answers)
    alone = [float(model.score(["the film was "], [answer])[0]) for answer in answers]
    assert facts.example.scores == pytest.approx(alone, abs=1e-5)
    with pytest.raises(InvalidArgumentError, match="answers to score for the card in .*, but got none"):
        score_example(tmp_path, "the film was ", [])


def test_few_facts_give_no_pictures(tmp_path):
    write_card(tmp_path, CardFacts(model_id="m", objective="arm"))
    assert {path.name for path in tmp_path.iterdir()} == {"facts.json", "README.md"}
    assert json.loads((tmp_path / "facts.json").read_text()) == {
        "card": "reward model",
        "model_id": "m",
        "objective": "arm",
        "kind": "causal",
    }
    (tmp_path / "README.md").write_text("something by hand\n")
    assert "-something by hand" in card_differences(tmp_path)
