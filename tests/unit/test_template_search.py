"""Whole searches with templates in this process: space, data, functions, results. No Keras, no database."""

from __future__ import annotations

import functools
import inspect
import json
import linecache
import math
import re
import subprocess
import sys
import textwrap
import traceback
import types
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from hyperopt import STATUS_FAIL, STATUS_OK, Trials, rand, space_eval, tpe

from hyperfarm import bundle, distributions, template_objective, templates
from hyperfarm.distributions import choice, lognormal, quniform, randint, uniform
from hyperfarm.errors import HyperfarmError, UsageError
from hyperfarm.fingerprint import fingerprint, fingerprint_space
from hyperfarm.template_link import prepare
from hyperfarm.template_objective import Option

HERE = Path(__file__)
ACTIVATIONS = ["relu", "tanh"]
LIMIT = 5


class Layer:
    """Stands for a Keras layer: knows what it was made of, and how many there are."""

    made = 0

    def __init__(self, *what):
        type(self).made += 1
        self.what = what

    def __eq__(self, other):
        return isinstance(other, Layer) and self.what == other.what

    __hash__ = None


def data():
    scale = 10  # noqa: F841
    x_train, x_test = [1, 2], [3]
    return x_train, x_test


def block(rate=1):
    return Layer("block", {{uniform(2, 3)}} * rate)


def through(rate):
    return block(rate)


def create_model(x_test, x_train):
    units = {{quniform(1, 9, 2)}}
    kind = {{choice(ACTIVATIONS)}}
    layer = {{choice([Layer("plain"), Layer({{uniform(0, 1)}}), None, Layer(x_train), Layer(LIMIT)])}}
    if {{choice(["three", "four"])}} == "four":
        units += 100
    found = {"units": units, "kind": kind, "layer": layer, "scale": scale, "deep": through(1)}  # noqa: F821
    return {"loss": units + len(x_train), "status": STATUS_OK, "model": found, "test": x_test}


def run(model=create_model, data=data, evals=30, algo=rand.suggest, **options):
    trials = options.pop("trials", None) or Trials()
    options.setdefault("verbose", False)
    return trials, templates.minimize(model, data, algo, evals, trials, **options)


def load(tmp_path, source, name="task"):
    """Import a file; its functions are of a module that is no test."""
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def test_names_values_and_the_best_model():
    trials, (best_run, best_model) = run(functions=[block])
    assert set(best_run) <= {"units", "kind", "layer", "Layer", "layer_1", "Layer_1"}
    assert set(trials.trials[0]["misc"]["vals"]) == {"units", "kind", "layer", "Layer", "layer_1", "Layer_1"}
    best = min(trials.trials, key=lambda one: one["result"]["loss"])
    assert best_model is best["result"]["model"]
    assert best_run == trials.argmin
    assert best_run["layer_1"] == 0  # 'three': the index of the option.
    assert best["result"]["test"] == [3]
    assert best_model["scale"] == 10  # A variable of data() that is not returned.


def test_without_functions_what_the_model_calls_by_name_is_found():
    _, (best_run, best_model) = run()
    assert best_model["deep"].what == ("block", best_run["Layer_1"])


def test_options_become_indices_plain_values_and_fresh_layers():
    before = Layer.made
    trials, (_, _, space) = run(evals=60, return_space=True)
    # One `block` in each trial, and a layer where one was chosen; none for the space.
    chosen = [one["misc"]["vals"]["layer"][0] for one in trials.trials]
    assert Layer.made - before == 60 + sum(index != 2 for index in chosen)
    assert set(chosen) == set(range(5))
    layers = {}
    for one in trials.trials:
        vals, model = one["misc"]["vals"], one["result"]["model"]
        assert model["kind"] == ACTIVATIONS[vals["kind"][0]]
        assert bool(vals["Layer"]) == (vals["layer"][0] == 1)  # Conditional in the space.
        inner = vals["Layer"][0] if vals["Layer"] else None
        wanted = [Layer("plain"), Layer(inner), None, Layer([1, 2]), Layer(5)][vals["layer"][0]]
        assert model["layer"] == wanted
        layers[id(model["layer"])] = model["layer"]
        values = templates.eval_hyperopt_space(space, vals)
        assert values["kind"] == model["kind"]
        # An option that needs the data cannot be made here: its text stands for it.
        wanted = wanted if vals["layer"][0] != 3 else Option(3, "Layer(x_train)")
        assert values["layer"] == wanted
        assert space_eval(space, templates.unpack_hyperopt_vals(vals))["layer"] == wanted
    assert len(layers) == 1 + sum(index != 2 for index in chosen)  # None is one, and no layer comes twice.


def test_eval_space_and_return_space():
    trials, (values, _, space) = run(eval_space=True, return_space=True)
    best = trials.argmin
    assert values["kind"] == ACTIVATIONS[best["kind"]]
    assert values["units"] == best["units"]
    assert values["layer_1"] == "three"
    assert set(space) == {"units", "kind", "layer", "layer_1", "Layer_1"}
    assert space_eval(space, best)["layer_1"] == "three"  # It is hyperopt's.


def test_rseed_and_algorithm_are_hyperopts():
    losses = [run(algo=tpe.suggest, evals=5, rseed=seed)[0].losses() for seed in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]
    assert run(evals=3)[0].losses() == run(evals=3, rseed=1337)[0].losses()


def test_max_evals_counts_the_trials_that_are_there():
    trials, _ = run(evals=3)
    assert len(run(evals=5, trials=trials)[0]) == 5


def test_best_models_and_the_ensemble(capsys):
    def model(x_train, x_test):
        rate = {{uniform(0, 1)}}
        return {"loss": rate, "status": STATUS_OK, "model": Classifier(rate)}

    trials = Trials()
    found = templates.best_models(3, model, data, rand.suggest, 10, trials)
    assert [one.rate for one in found] == sorted(trials.losses())[:3]
    assert "rate  uniform(0, 1)" in capsys.readouterr().out
    assert len(templates.best_models(5, model, data, rand.suggest, 2, Trials())) == 2
    voting = templates.best_ensemble(3, model, data, rand.suggest, 5, Trials(), voting="soft", nb_classes=2)
    assert voting.predict(np.zeros((4, 1))).tolist() == [1, 1, 1, 1]
    with pytest.raises(UsageError, match="nb_models is 0"):
        templates.best_models(0, model, data, rand.suggest, 2, Trials())


class Classifier:
    def __init__(self, rate):
        self.rate = rate

    def predict(self, x, batch_size, verbose):
        return np.tile([self.rate / 2, 1 - self.rate / 2], (len(x), 1))


def test_votes_hard_soft_and_weighted():
    from hyperfarm.template_ensemble import VotingModel

    models = [Classifier(0.1), Classifier(0.1), Classifier(2.0)]
    assert VotingModel(models).predict(np.zeros(1)).tolist() == [1]
    assert VotingModel(models, weights=[1, 1, 3]).predict(np.zeros(1)).tolist() == [0]
    assert VotingModel(models, "soft", weights=[0, 0, 1]).predict(np.zeros(1)).tolist() == [0]
    for wrong in ({"voting": "loud"}, {"weights": [1]}, {"model_list": []}):
        with pytest.raises(UsageError):
            VotingModel(**{"model_list": models, **wrong})


def test_failed_trials_have_no_part_in_the_best():
    def model(x_train, x_test):
        rate = {{uniform(0, 1)}}
        if rate > 0.3:
            return {"status": STATUS_FAIL, "loss": -5, "model": "wrong"}
        return {"loss": -rate, "status": STATUS_OK}

    _, (best_run, best_model) = run(model)
    assert best_run["rate"] < 0.3
    assert best_model is None
    assert set(templates.best_models(30, model, data, rand.suggest, 30, Trials())) == {None}

    def none_succeeds(x_train, x_test):
        return {"status": STATUS_FAIL, "rate": {{uniform(0, 1)}}}

    with pytest.raises(HyperfarmError, match="no trial of none_succeeds has succeeded"):
        run(none_succeeds, evals=2)


DATA_CASES = {
    "by name, in another order": ("a, b = 1, 2\n    return a, b", "b, a", [2, 1]),
    "one name": ("a = (1, 2)\n    return a", "a", [(1, 2)]),
    "by position": ("a, b = 1, 2\n    return a, b", "x, y", [1, 2]),
    "expressions by position": ("a = 1\n    return a + 1, 5", "b, a", [2, 5]),
    "a variable that is not returned": ("a, b = 1, 2\n    return a", "b, a", [2, 1]),
    "nested tuples by name": ("a, b = 1, 2\n    return (a, 0), (b, 0)", "a, b", [(1, 0), (2, 0)]),
    "more parameters than values": ("a, b = 1, 2\n    return (a, b), 3", "a, b, c=4", [(1, 2), 3, 4]),
    "variables, as the values do not fit": ("a, b = 1, 2\n    return (a, b)[:1] + (3, 4)", "a, b", [1, 2]),
    "all at once": ("return 1, 2", "both", [(1, 2)]),
    "any number": ("return 1, 2", "*both", [(1, 2)]),
    "a dict": ("return {'a': 1}", "d", [{"a": 1}]),
    "nothing": ("pass", "", []),
    "not asked for": ("a = 1\n    return a", "", []),
    "a default stays": ("a, epochs = 1, 3\n    return a", "a, epochs=7", [1, 7]),
    "a default is returned": ("a, epochs = 1, 3\n    return a, epochs", "a, epochs=7", [1, 3]),
    "keyword only": ("a, b = 1, 2\n    return a, b", "a, *, b", [1, 2]),
    "two returns alike": ("a = 1\n    if a:\n        return a\n    return a", "a", [1]),
}


@pytest.mark.parametrize("case", DATA_CASES)
def test_parameters_of_the_model_get_what_data_returns(case, tmp_path):
    body, parameters, wanted = DATA_CASES[case]
    names = ", ".join(re.findall(r"[a-z]\w*", re.sub(r"=\w+", "", parameters)))
    module = load(
        tmp_path,
        f"def data():\n    {body}\n\ndef model({parameters}):\n    rate = {{{{uniform(0, 1)}}}}\n"
        f"    return {{'loss': rate, 'status': 'ok', 'got': [{names}]}}\n",
    )
    trials, _ = run(module.model, module.data, evals=1)
    assert trials.results[0]["got"] == wanted


def test_data_is_run_once_for_each_search_and_its_values_are_not_kept():
    calls = []

    def load_data():
        calls.append(1)
        x = object()
        return x  # noqa: RET504

    def model(x):
        return {"loss": {{uniform(0, 1)}}, "status": STATUS_OK, "x": id(x)}

    trials, _ = run(model, load_data, evals=4)
    assert len(calls) == 1
    assert len({one["x"] for one in trials.results}) == 1
    assert template_objective._cache._held is None
    run(model, load_data, evals=4)
    assert len(calls) == 2


def test_data_may_be_any_callable():
    def model(a, b):
        return {"loss": {{uniform(0, 1)}}, "status": STATUS_OK, "got": (a, b)}

    for load_data in (lambda: (1, 2), functools.partial(divmod, 7, 3)):
        trials, _ = run(model, load_data, evals=1)
        assert trials.results[0]["got"] in [(1, 2), (2, 1)]


def test_names_of_the_script_and_of_data(tmp_path):
    """What data() returns wins over the script; its other variables stand back."""
    module = load(
        tmp_path,
        """
        batch = 64
        x = 'of the script'

        def data():
            import math as m
            batch = 32
            x, hidden = 'of data', 'hidden'
            return x

        def listed():
            return x, batch, hidden, m.pi

        class Callback:
            def use(self):
                return hidden

        def model():
            rate = {{uniform(0, 1)}}
            return {'loss': rate, 'status': 'ok', 'got': (x, batch, hidden), 'more': listed(), 'c': Callback().use()}
        """,
    )
    trials, _ = run(module.model, module.data, evals=1, functions=[module.listed])
    assert trials.results[0]["got"] == ("of data", 64, "hidden")
    assert trials.results[0]["more"] == ("of data", 64, "hidden", math.pi)
    assert trials.results[0]["c"] == "hidden"


def test_functions_that_call_each_other_closures_classes_and_decorators(tmp_path):
    module = load(
        tmp_path,
        """
        import functools
        from hyperopt import STATUS_OK

        def loud(f):
            @functools.wraps(f)
            def call(*args):
                return ('loud', f(*args))
            return call

        @loud
        def even(n):
            return {{uniform(0, 1)}} if n == 0 else odd(n - 1)

        def odd(n):
            return even(n - 1)[1]

        class Net:
            def size(self):
                rate = {{uniform(5, 6)}}
                return rate, type(self) is Net

        def factory(k):
            def model(a):
                def inner(n={{quniform(1, 9, 1)}}):
                    return [n * k for _ in range(2)]
                sizes = [{{randint(3)}} for _ in range(2)]
                return {'loss': 1, 'status': STATUS_OK, 'got': (even(2), inner(), sizes, Net().size())}
            return model

        model = factory(10)

        def data():
            return 1
        """,
    )
    trials, (best, _) = run(module.model, module.data, evals=1)
    assert set(best) == {"n", "sizes", "even", "rate"}
    even, inner, sizes, net = trials.results[0]["got"]
    assert even == ("loud", best["even"])
    assert inner == [best["n"] * 10] * 2
    assert sizes == [best["sizes"]] * 2
    assert net == (best["rate"], True)


def test_options_in_every_shape(tmp_path):
    module = load(
        tmp_path,
        """
        import math
        SIZES = [8, 16]
        PAIRS = [(0.5, 'a'), (0.5, len)]
        def data():
            import numpy as np
            return 0
        def model(d):
            local = 5
            got = {
                'list': {{choice([['a'], ['b']])}},
                'tuple': {{choice(((1, 2), (3, 4)))}},
                'function': {{choice([math.sin, len])}},
                'sizes': {{choice(SIZES + [32])}},
                'star': {{choice([*SIZES, 'x'])}},
                'computed': {{choice([2 ** i for i in range(4)])}},
                'range': {{choice(range(3))}},
                'local': {{choice([local, local + 1])}},
                'weighted': {{pchoice([(0.9, 'often'), (0.1, len)])}},
                'pairs': {{pchoice(PAIRS)}},
                'keyword': {{choice(options=[1, 2])}},
                'log': {{loguniform(np.log(1e-5), low := -1)}},
                'nested': {{choice([[1, {{uniform(0, 1)}}], {{choice(['p', 'q'])}}])}},
            }
            got['list'].append('mine')
            return {'loss': 0, 'status': 'ok', 'got': got}
        """,
    )
    trials, _ = run(module.model, module.data, evals=40)
    seen = {name: [one["got"][name] for one in trials.results] for name in trials.results[0]["got"]}
    assert {str(one) for one in seen["list"]} == {
        "['a', 'mine']",
        "['b', 'mine']",
    }  # A list, and a fresh one.
    assert set(seen["tuple"]) == {(1, 2), (3, 4)}
    assert set(seen["function"]) == {math.sin, len}
    assert set(seen["sizes"]) == {8, 16, 32}
    assert set(seen["star"]) == {8, 16, "x"}
    assert set(seen["computed"]) == {1, 2, 4, 8}
    assert set(seen["range"]) == {0, 1, 2}
    assert set(seen["local"]) == {5, 6}
    assert set(seen["weighted"]) == {"often", len}
    assert set(seen["pairs"]) == {"a", len}
    assert set(seen["keyword"]) == {1, 2}
    assert {type(one) for one in seen["nested"]} == {list, str}
    assert {one for one in seen["nested"] if isinstance(one, str)} == {"p", "q"}
    assert all(1e-5 <= one <= 1 for one in seen["log"])


def test_verbose_tells_the_space_and_silence_is_silent(capsys):
    run(evals=1)
    assert capsys.readouterr() == ("", "")
    run(evals=1, verbose=True)
    out = capsys.readouterr().out
    line = inspect.getsourcelines(create_model)[1] + 1
    assert "units    quniform(1, 9, 2)" in out
    assert f"{HERE}, line {line}\n" in out


def test_no_file_is_left_and_keep_temp_writes_the_rewritten_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(evals=2)
    assert list(tmp_path.iterdir()) == []
    run(evals=2, keep_temp=True)
    text = (tmp_path / "temp_model.py").read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["temp_model.py"]
    space: dict = {}
    exec(compile(text, "temp_model.py", "exec"), space)
    assert set(space) >= {"data", "block", "through", "create_model", "get_space", "tpe", "np"}
    assert "{{" not in text
    assert "units = space['units']" in text
    assert "'units': hp.quniform('units', 1, 9, 2)," in text


def test_the_objective_travels_alone_with_its_lines(tmp_path, monkeypatch):
    """Pickled by value, without its file: it runs, and its tracebacks show the true lines."""
    module = load(
        tmp_path,
        """
        def data():
            return 1


        def model(d):
            layer = {{choice([
                d + 1,
                d / 0,
                helper(d),
            ])}}
            return layer

        def helper(d):
            return d.missing
        """,
    )
    search = prepare(module.model, module.data)
    packed = bundle.pack(search.objective, search.space)
    assert packed.name == "task:model"
    (tmp_path / "task.py").rename(tmp_path / "gone.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    linecache.clearcache()
    loaded = bundle.load(bundle.unpack(packed.content, tmp_path / "unpacked"))
    assert "hyperas" not in sys.modules

    def call(index):
        return loaded.fn(space_eval(loaded.space, {"layer": index}))

    assert call(0) == 2
    with pytest.raises(ZeroDivisionError) as caught:
        call(1)
    linecache.checkcache()
    told = "".join(traceback.format_exception(caught.value))
    assert f'File "{tmp_path}/task.py", line 9, in <lambda>\n    d / 0,\n' in told
    assert f'File "{tmp_path}/task.py", line 7, in model\n    layer = {{{{choice([\n' in told
    with pytest.raises(AttributeError) as caught:
        call(2)
    told = "".join(traceback.format_exception(caught.value))
    assert f'File "{tmp_path}/task.py", line 15, in helper\n    return d.missing\n' in told


def identity(tmp_path, source):
    module = load(tmp_path, source)
    search = prepare(module.model, module.data)
    return fingerprint(search.objective), fingerprint_space(search.space)


def test_identity_is_that_of_the_code():
    """Equal from run to run, whatever is written around the code; different when the code is."""
    source = (
        "def data():\n    return 1\n\ndef block():\n    return {{uniform(0, 1)}}\n\n"
        "def model(d):\n    return block() + len({{choice([[3], [d]])}})\n"
    )

    def of(text):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return identity(Path(folder), text)

    same = of(source)
    assert of(source) == same
    assert of(f"# a comment\n\n{source}\nmore = 1\n") == same
    assert of(source.replace("{{uniform(0, 1)}}", "{{ uniform(0,1) }}  # why")) == same
    changed = [
        source.replace("(0, 1)", "(0, 2)"),
        source.replace("block() +", "block() -"),
        source.replace("[d]]", "[d, d]]"),
        source.replace("return 1", "return 2"),
        source.replace("return {{", "return 1 + {{"),
    ]
    assert all(of(text) != same for text in changed)


def test_a_worker_of_hyperopts_own_needs_no_hyperfarm_and_data_never_travel(tmp_path):
    """With the module of the objective pickled by value, as what hyperopt's workers need is made."""
    module = load(
        tmp_path,
        """
        import threading
        def data():
            a, hidden = threading.Lock(), 2  # Cannot be pickled.
            return a
        def model(a):
            return {'loss': {{choice([len([a]), 5])}} + hidden, 'status': 'ok'}
        """,
    )
    search = prepare(module.model, module.data)
    assert search.objective({"loss": 5})["loss"] == 7
    assert template_objective._cache._held[0] == search.objective.identity
    cloudpickle.register_pickle_by_value(template_objective)
    try:
        packed = cloudpickle.dumps((search.objective, search.space))
    finally:
        cloudpickle.unregister_pickle_by_value(template_objective)
        search.objective.forget()
    (tmp_path / "packed").write_bytes(packed)
    code = (
        "import pickle, sys; sys.modules['hyperfarm'] = None; from hyperopt import space_eval\n"
        f"fn, space = pickle.load(open({str(tmp_path / 'packed')!r}, 'rb'))\n"
        "print([fn(space_eval(space, {'loss': index}))['loss'] for index in (0, 1)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[3, 7]\n", done.stderr


def test_source_from_a_notebooks_file(tmp_path, monkeypatch):
    """A function whose cell nobody has kept, as under a magic: the file of the notebook is read."""
    cell = "%%time\ndef remembered(x_train):\n    rate = {{uniform(0, 1)}}\n    return rate\n"
    other = "def remembered(another):\n    return 5\n"
    cells = [{"cell_type": "code", "source": one.splitlines(keepends=True)} for one in (cell, other, "!ls\n")]
    (tmp_path / "my_notebook.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(compile(cell.split("\n", 1)[1], "<timed exec>", "exec"), space)
    _, (best_run, _) = run(space["remembered"], evals=2, notebook_name="my_notebook")
    assert list(best_run) == ["rate"]
    assert prepare(space["remembered"], data, notebook="my_notebook").source.node.lineno == 1
    with pytest.raises(UsageError, match=r"there is no notebook other.ipynb in"):
        run(space["remembered"], evals=2, notebook_name="other")
    assert len(run(evals=1, notebook_name="not_needed")[0]) == 1


def test_distributions_outside_of_templates():
    for call, shown in [
        (lambda: uniform(0, 1), "uniform(0, 1)"),
        (lambda: choice([1, 2]), "choice([1, 2])"),
        (lambda: quniform(0, 1, q=2), "quniform(0, 1, q=2)"),
    ]:
        with pytest.raises(UsageError) as caught:
            call()
        assert "{{" + shown + "}}" in str(caught.value)
        with pytest.raises(TypeError):  # As hyperopt's own.
            call()
    made = {"x": lognormal("x", 0, 1), "y": randint("y", 5)}
    assert set(space_eval(made, {"x": 2.0, "y": 3}).values()) == {2.0, 3}
    assert distributions.conditional("four") == "four"
    assert all(callable(getattr(distributions, name)) for name in distributions.__all__)


def test_unpacked_values():
    assert templates.unpack_hyperopt_vals({"a": [1], "b": 2, "c": []}) == {"a": 1, "b": 2}


def test_installed_under_the_names_of_hyperas(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "hyperas"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    try:
        templates.install()
        space: dict = {}
        exec(
            "from hyperas import optim\nimport hyperas.optim as again\nfrom hyperas.distributions import uniform\n"
            "from hyperas.utils import eval_hyperopt_space\nfrom hyperas.ensemble import VotingModel\n",
            space,
        )
        assert space["optim"] is space["again"] is templates
        assert space["eval_hyperopt_space"] is templates.eval_hyperopt_space
        templates.install()
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "hyperas":
                del sys.modules[name]
