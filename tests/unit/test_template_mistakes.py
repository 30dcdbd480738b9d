"""What is wrong with templates is one sentence with file and line, before anything runs."""

from __future__ import annotations

import functools

import pytest

from hyperfarm.distributions import uniform
from hyperfarm.errors import HyperfarmError, UsageError
from tests.unit.test_template_search import create_model, load, run


@pytest.mark.parametrize(
    ("body", "line", "sentence"),
    [
        ("x = {{uniform(0, 1)}}", 4, "model returns nothing"),
        ("x = {{uniform(0, 1)}}\n    return", 4, "model returns nothing"),
        ("x = {{uniform(0, 1)}}\n    def f():\n        return 1", 4, "model returns nothing"),
        ("yield {{uniform(0, 1)}}", 4, "model is a generator"),
        ("return 1", 4, "model holds no template"),
        ("return {{unifrm(0, 1)}}", 5, "did you mean uniform?"),
        ("return {{uniform(1)}}", 5, "uniform(1) is not usable: missing 1 required positional argument"),
        ("return {{uniform(5, 1)}}", 5, "uniform(5, 1) is not usable: low should be less than high"),
        ("n = 3\n    return {{uniform(0, n)}}", 6, "n uses n, which the script does not define"),
        ("return {{choice([])}}", 5, "choice([]) has no options"),
        ("return {{choice(5)}}", 5, "choice(5) is not usable"),
        ("return helper() + {{uniform(0, 1)}}", 8, "{{3}} is no template"),
    ],
)
def test_mistakes_are_one_sentence_with_file_and_line(body, line, sentence, tmp_path):
    module = load(
        tmp_path,
        f"def data():\n    return 1\n\ndef model(d):\n    {body}\n\ndef helper():\n    return {{{{3}}}}\n",
    )
    with pytest.raises(UsageError) as caught:
        run(module.model, module.data, evals=1)
    assert str(caught.value).startswith(f"{tmp_path}/task.py, line {line}: "), caught.value
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_templates_that_the_model_does_not_come_to_are_refused(tmp_path):
    one = "    return {{uniform(0, 1)}}\n"
    module = load(tmp_path, f"def data():\n    return 1\n\ndef model(d):\n{one}\ndef lone():\n{one}")
    sentence = r"task.py, line 8: lone holds a template, but model does not call it by this name"
    with pytest.raises(UsageError, match=sentence):
        run(module.model, module.data, evals=1, functions=[module.lone])


def test_templates_in_data_are_refused(tmp_path):
    module = load(
        tmp_path, "def data():\n    return {{uniform(0, 1)}}\n\ndef model(d):\n    return {{uniform(0, 1)}}"
    )
    with pytest.raises(UsageError, match=r"task.py, line 2: data holds a template"):
        run(module.model, module.data, evals=1)


def test_what_is_no_function_with_a_source_is_refused():
    for model, sentence in [
        (lambda x: {{uniform(0, 1)}}, "a lambda cannot be rewritten"),
        (5, "model must be a function"),
        (functools.partial(create_model, 1), "not a function that is written with def"),
        (eval("compile")("def f(): return 1", "<made>", "exec"), "model must be a function"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            run(model, evals=1)
    space: dict = {}
    exec("def hidden(x):\n    return 1\n", space)
    with pytest.raises(UsageError, match="the source of hidden cannot be found"):
        run(space["hidden"], evals=1)
    with pytest.raises(UsageError, match="data must be a function"):
        run(data=5, evals=1)


def test_a_file_that_was_changed_since_it_was_loaded_is_not_guessed_at(tmp_path):
    source = "def data():\n    return 1\n\ndef model(d):\n    return {{uniform(0, 1)}}\n"
    module = load(tmp_path, source)
    (tmp_path / "task.py").write_text(f"# One line more.\n{source}")
    with pytest.raises(
        UsageError, match=r"the source of model cannot be found .*task.py, line 4.*start again"
    ):
        run(module.model, module.data, evals=1)


def test_a_model_that_returns_nothing_after_all_is_one_sentence(tmp_path):
    module = load(
        tmp_path,
        "def data():\n    return 1\n\ndef model(d):\n    if {{uniform(0, 1)}} > 2:\n        return 1\n",
    )
    with pytest.raises(HyperfarmError, match=r"task.py, line 4: model returned nothing"):
        run(module.model, module.data, evals=1)


def test_what_data_does_not_give_is_one_sentence(tmp_path):
    module = load(
        tmp_path,
        "def data():\n    return 1, 2\n\ndef model(a, b, c):\n    return {{uniform(0, 1)}}\n",
    )
    with pytest.raises(
        UsageError, match=r"task.py, line 4: model takes a, b, c, but data\(\) returns 2 values"
    ):
        run(module.model, module.data, evals=1)
