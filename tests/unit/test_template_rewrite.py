"""Templates on the syntax tree: what is one, how it is named, what stands in its place, what is no template."""

from __future__ import annotations

import ast
import textwrap

import pytest

from hyperfarm.errors import UsageError
from hyperfarm.template_find import find_templates
from hyperfarm.template_names import assign_names
from hyperfarm.template_rewrite import as_hyperopt, rewrite

# A model with each way of writing a template that hyperas's README shows, and the names that hyperas 0.4.1 gives.
WHOLE_MODEL = """
def net(x, y):
    stack = Sequential([Input((64,))])
    stack.add(Dense({{choice([16, 32])}}))
    stack.add(Activation({{choice(['relu', 'tanh'])}}))
    stack.add(Dropout({{uniform(0, 0.5)}}))
    if {{choice(['shallow', 'deep'])}} == 'deep':
        stack.add({{choice([Dense(8), Activation('linear')])}})
        stack.add(Dropout({{uniform(0, 0.2)}}))
    stack.compile(loss='mse', optimizer={{choice(['adam', 'sgd'])}})
    stack.fit(x, y, epochs=1,
              batch_size={{choice([8, 16])}})
"""
WHOLE_NAMES = [
    "Dense", "Activation", "Dropout", "Dropout_1", "add", "Dropout_2", "optimizer", "batch_size",
]  # fmt: skip
# Statements of a model, and the names that hyperas 0.4.1 gives where they are named after what they are given to.
AS_HYPERAS = {
    "l1_size = {{quniform(12, 256, 4)}}; l1_dropout = {{uniform(0.001, 0.7)}}": ["l1_size", "l1_dropout"],
    "model.add(Conv1D({{choice([64, 128])}}, {{choice([6, 8])}}))": ["Conv1D", "Conv1D_1"],
    "x = Dense({{choice([20, 30])}}, activation='relu')(inputs)": ["Dense"],
    "model.add(keras.layers.Dropout(rate = {{uniform(0, 1)}}))": ["rate"],
    "Dropout( {{ uniform(0, 1) }} )": ["Dropout"],
    "Dense(int({{quniform(1, 9, 1)}}))": ["int"],
    "if conditional({{choice(['three', 'four'])}}) == 'four': pass": ["conditional"],
    "self.units = {{choice([1, 2])}}": ["units"],
    "def block(rate={{uniform(0, 1)}}): return Dropout(rate)": ["rate"],
    "Dense({{choice([\n  1,\n  2])}}); Dense({{choice([3, 4])}})": ["Dense", "Dense_1"],
    "Activation({{choice(['a', 'b'])}}); Activation({{choice(['a', 'b'])}})": ["Activation", "Activation_1"],
}
# Where hyperas's names tell nothing of the parameter, or it fails.
OTHER_NAMES = {
    "dropout1 = {{uniform(0, 1)}}; dropout2 = {{uniform(0, 1)}}": ["dropout1", "dropout2"],
    "lr = 10 ** {{uniform(-5, -1)}}": ["lr"],
    "a, b = {{uniform(0, 1)}}, {{uniform(0, 2)}}": ["a", "b"],
    "rate: float = {{uniform(0, 1)}}": ["rate"],
    "params = {'units': {{choice([1, 2])}}, 'rate': {{uniform(0, 1)}}}": ["units", "rate"],
    "params['units'] = {{choice([1, 2])}}": ["units"],
    "x = Dropout({{uniform(0, 1)}}); Dropout_1 = {{uniform(0, 2)}}; Dropout({{uniform(0, 3)}})": [
        "Dropout",
        "Dropout_1",
        "Dropout_2",
    ],
    "if {{choice(['a', 'b'])}} == 'a': pass": ["conditional"],
    "def block(): return {{uniform(0, 1)}}": ["block"],
    "(size := {{uniform(0, 1)}})": ["size"],
    "f(sizes=[{{uniform(0, 1)}}, {{uniform(0, 1)}}])": ["sizes", "sizes_1"],
    "model.add({{choice([Dropout({{uniform(0, 1)}}), Dense({{choice([1, {{randint(9)}}])}})])}})": [
        "add",
        "Dropout",
        "Dense",
        "Dense_1",
    ],
    "Dense({{choice([{'a': 1}, {'b': 2}])}})": ["Dense"],
}


def definition(body: str) -> ast.FunctionDef:
    return ast.parse("def model(x):\n" + textwrap.indent(body, "    ")).body[0]


def names_of(node: ast.FunctionDef) -> list[str]:
    return list(assign_names([find_templates(node, "task.py")]).values())


def rewritten(body: str) -> str:
    node = definition(body)
    made = rewrite(node, assign_names([find_templates(node, "task.py")]))
    return "\n".join(ast.unparse(one) for one in made.body)


def test_a_whole_model_has_hyperas_names():
    assert names_of(ast.parse(WHOLE_MODEL).body[0]) == WHOLE_NAMES


@pytest.mark.parametrize("body", AS_HYPERAS)
def test_names_are_those_of_hyperas(body):
    assert names_of(definition(body)) == AS_HYPERAS[body]


@pytest.mark.parametrize("body", OTHER_NAMES)
def test_names_where_hyperas_has_none_that_fits(body):
    assert names_of(definition(body)) == OTHER_NAMES[body]


def test_numbers_go_on_from_one_function_to_the_next_and_no_name_comes_twice():
    first, second = definition("Dropout({{uniform(0, 1)}})"), definition("Dropout({{uniform(0, 1)}})")
    found = [find_templates(node, "task.py") for node in (first, second)]
    assert list(assign_names(found).values()) == ["Dropout", "Dropout_1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = {{uniform(0, 1)}}", "x = space['x']"),
        ("if {{choice(['a', 'b'])}} == 'a': pass", "if space['conditional'] == 'a':\n    pass"),
        ("x = {{choice([1, -2, (3, 'four'), None])}}", "x = space['x']"),
        ("f({{choice([g(1), None])}})", "f(chosen(space['f'], lambda: g(1), None))"),
        ("f({{choice(SIZES)}})", "f(chosen(space['f'], many=lambda: SIZES))"),
        ("f({{pchoice([(0.2, g()), (0.8, 1)])}})", "f(chosen(space['f'], lambda: g(), None))"),
        (
            "f({{pchoice(PAIRS)}})",
            "f(chosen(space['f'], many=lambda: [pair[1] for pair in PAIRS]))",
        ),
        (
            "f({{choice([g({{uniform(0, 1)}}), h])}})",
            "f(chosen(space['f'], lambda: g(space['g']), lambda: h))",
        ),
        ("s = '{{uniform(0, 1)}}'  # {{uniform(0, 1)}}", "s = '{{uniform(0, 1)}}'"),
        ("s = f'{{x}}'", "s = f'{{x}}'"),
    ],
)
def test_what_stands_in_the_place_of_a_template(before, after):
    assert rewritten(before) == after


def test_options_with_labels_of_their_own_are_parameters_of_these_names():
    body = "f({{choice([uniform('low', 0, 1), Dropout(u('high', 1, 2))])}})"
    known = {"uniform": "uniform", "u": "uniform"}
    node = definition(body)
    names = assign_names([find_templates(node, "task.py", known.get)])
    assert list(names.values()) == ["f", "low", "high"]
    made = ast.unparse(rewrite(node, names).body[0])
    assert made == "f(chosen(space['f'], lambda: space['low'], lambda: Dropout(space['high'])))"
    spelled = ast.unparse(as_hyperopt(next(iter(names)), names))
    assert spelled == "hp.choice('f', [hp.uniform('low', 0, 1), Dropout(hp.uniform('high', 1, 2))])"


def test_a_distribution_may_be_imported_under_another_name():
    known = {"u": "uniform", "dist.normal": "normal"}
    found = find_templates(definition("f({{u(0, 1)}}, {{dist.normal(0, 1)}})"), "task.py", known.get)
    assert [one.distribution for one in found] == ["uniform", "normal"]


def test_every_node_keeps_its_line_and_column():
    source = (
        "def model(x):\n    a = [\n        f(\n            {{choice([g(),\n  h()])}},\n  )]\n    return a\n"
    )
    node = ast.parse(source).body[0]
    made = rewrite(node, assign_names([find_templates(node, "task.py")]))
    places = {ast.unparse(one): one.lineno for one in ast.walk(made) if isinstance(one, ast.Call)}
    assert places["g()"] == 4
    assert places["h()"] == 5
    assert places["chosen(space['f'], lambda: g(), lambda: h())"] == 4
    assert made.body[1].lineno == 7
    replaced = next(one for one in ast.walk(made) if isinstance(one, ast.Call) and one.lineno == 4)
    assert (replaced.col_offset, replaced.end_lineno) == (12, 5)
    assert ast.dump(node) == ast.dump(ast.parse(source).body[0])  # The original stays as it is.


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("x = {{5}}", "{{5}} is no template"),
        ("x = {{y}}", "{{y}} is no template"),
        ("x = {{}}", "is no template"),
        ("x = {{'a': 1}}", "is no template"),
        ("x = {{uniform}}", "is no template"),
        ("x = {{uniform(0, 1), uniform(1, 2)}}", "is no template"),
        ("x = {{uniform(0, 1)}, {1}}", "is no template"),
        (
            "x = {{unifrom(0, 1)}}",
            "unifrom in {{unifrom(0, 1)}} is not a distribution; did you mean uniform?",
        ),
        ("x = {{np.random.uniform(0, 1)}}", "np.random.uniform in"),
        ("x = {{beta(0, 1)}}", "there are choice, pchoice"),
        ("x = {{uniform('x', 0, 1)}}", "has a label"),
        ("x = {{choice('x', [1, 2])}}", "has a label"),
        ("x = {{choice()}}", "has no options"),
        ("x = {{uniform(0, {{uniform(1, 2)}})}}", "stands in the arguments of uniform"),
        ("x = {{choice([{{uniform(1, 2)}}] * 2)}}", "stands in the arguments of choice"),
        ("x = {{choice([{{5}}])}}", "{{5}} is no template"),
    ],
)
def test_what_is_no_template_is_told_with_file_and_line(body, sentence):
    with pytest.raises(UsageError) as caught:
        find_templates(definition(f"pass\n{body}"), "task.py")
    assert str(caught.value).startswith("task.py, line 3: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_distribution_inside_a_template_needs_braces():
    with pytest.raises(UsageError, match=r"task.py, line 2: .*needs double braces of its own"):
        find_templates(definition("f({{choice([Dropout(u(0, 1))])}})"), "task.py", {"u": "uniform"}.get)
