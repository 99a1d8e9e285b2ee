"""Reading lists of methods, and messages about mistakes in them."""

import json

import pytest
import yaml

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.evaluate import EvaluationSettings, Method, choose_methods, read_methods
from rgtg_logits.evaluate.methods import list_policies

LISTED = """
- name: base
- name: PARGS
  guide: org/partial-rm
  beta: [1, 2.5]
- {name: both, guide: [org/a, "module:function"], weights: [1, -0.5], beta: 4, top_k: 0, greedy: true}
- {name: best of 16, best_of: 16, ranked_by: org/rm, temperature: 0.5}
- {name: DPO 1, model: org/tuned, family: DPO}
"""


@pytest.fixture
def write(tmp_path):
    def to(text):
        path = tmp_path / "methods.yaml"
        path.write_text(text)
        return str(path)

    return to


def test_a_list_is_read_from_yaml_and_json(write):
    found = read_methods(write(LISTED))
    assert found == read_methods(write(json.dumps(yaml.safe_load(LISTED))))
    base, pargs, both, best, tuned = found
    assert base == Method(name="base")
    assert pargs == Method(name="PARGS", guide=("org/partial-rm",), beta=(1.0, 2.5))
    assert both.guide == ("org/a", "module:function") and both.weights == (1.0, -0.5) and both.beta == (4.0,)
    assert (best.best_of, best.ranked_by, best.temperature) == (16, "org/rm", 0.5)
    assert tuned.curve == "DPO" and base.curve == "base"
    assert [(p.method.name, p.beta, p.title) for p in list_policies(found)[:3]] == [
        ("base", 0.0, "base"), ("PARGS", 1.0, "PARGS, beta 1"), ("PARGS", 2.5, "PARGS, beta 2.5"),
    ]  # fmt: skip


def test_what_is_on_disk_tells_policies_apart_by_what_they_do(write):
    alone = list_policies([Method(name="a", guide=("rm",), beta=(1.0,))])[0]
    among = list_policies([Method(name="a", guide=("rm",), beta=(1.0, 2.0), family="curve")])
    assert alone.key == among[0].key != among[1].key
    others = [
        Method(name="a", guide=("other",), beta=(1.0,)), Method(name="A", guide=("rm",), beta=(1.0,)),
        Method(name="a", guide=("rm",), beta=(1.0,), greedy=True),
        Method(name="a", guide=("rm",), beta=(1.0,), top_k=5),
    ]  # fmt: skip
    keys = {list_policies([method])[0].key for method in others}
    assert len(keys) == 4 and alone.key not in keys
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for key in keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "to hold a list of methods, but got dict"),
        ("[]", "to hold a list of methods, but got list"),
        ("- [", "reading it failed"),
        ("- base", "method 1 to have a name and some of .*, but got str"),
        ("- {name: a}\n- {guide: rm}", "method 2 to have a name"),
        ("- {name: a, betas: 1}", "some of .*beta.*, but got name, betas"),
        ("- {name: a}\n- {name: a}", "'a' is there more than once"),
        ("- {name: ' '}", "Expected name of the method ' ' to be a text"),
        ("- {name: a, guide: rm}", "Expected beta of the method 'a' to be strengths of 0 or more if there is a guide"),
        ("- {name: a, beta: 1}", "Expected beta of the method 'a'"),
        ("- {name: a, guide: rm, beta: -1}", "Expected beta of the method 'a'"),
        ("- {name: a, guide: rm, beta: [1, 1]}", "Expected beta of the method 'a'"),
        ("- {name: a, guide: rm, beta: much}", "numbers as strengths, but could not convert"),
        ("- {name: a, guide: rm, beta: 1, weights: [1, 2]}", "one finite factor for each guide"),
        ("- {name: a, kind: vocabulary}", "Expected kind of the method 'a' to be one of causal"),
        ("- {name: a, temperature: 0}", "a finite number above 0"),
        ("- {name: a, best_of: 4}", "Expected ranked_by of the method 'a' to be the reward that ranks"),
        ("- {name: a, ranked_by: rm}", "Expected best_of of the method 'a' to be 2 or more"),
        ("- {name: a, best_of: 4, ranked_by: rm, greedy: true}", "false for the best of several samples"),
        ("- {name: a, top_k: -1}", "a number of tokens, where 0 is all"),
        ("- {name: a, top_p: 1.5}", "a probability above 0"),
        ("- {name: a, min_p: 0}", "a fraction above 0"),
    ],
)
def test_mistakes_in_a_list(write, text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        read_methods(write(text))


def test_one_guide_needs_no_list(write):
    base, guided = choose_methods(None, "org/rm", [1, 2])
    assert base == Method(name="base") and guided == Method(name="guided", guide=("org/rm",), beta=(1.0, 2.0))
    assert choose_methods(None, "org/rm", None)[1].beta == (1.0,)
    assert len(choose_methods(write(LISTED), None, None)) == 5
    for arguments in ((None, None, None), ("file", "rm", None), ("file", None, [1.0])):
        with pytest.raises(InvalidArgumentError, match="either a file with methods, or a guide"):
            choose_methods(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods to be one method or more"),
        ({"methods": (Method(name="a"), Method(name="a"))}, "'a' is there more than once"),
        ({"judges": {}}, "judges to be names"),
        ({"judges": {"a/b": "rm"}}, "judges to be names of letters"),
        ({"label_names": {"other": "x"}}, "labels of the judges judge"),
        ({"compare": (("a", "c"),)}, "pairs of a, b"),
        ({"seeds": 0}, "seeds to be 1 answer"),
        ({"max_new_tokens": 0}, "1 token or more"),
        ({"top_k": -1}, "where 0 is all"),
        ({"batch_size": 0}, "1 or more, such as 32"),
        ({"prompt_tokens": 0}, "1 token or more"),
        ({"limit": 0}, "1 prompt or more"),
        ({"resamples": 10}, "100 or more"),
        ({"dtype": "int8"}, "one of auto, float32"),
    ],
)
def test_mistakes_in_settings(changes, message):
    values = {
        "base": "base", "prompts": "prompts", "methods": (Method(name="a"), Method(name="b")),
        "judges": {"judge": "rm"}, "output": "out",
    }  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=message):
        EvaluationSettings(**{**values, **changes})
