"""The warm start: what is mined from scikit-learn, the corpus that is made of it, the training, and the report."""

import random
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from etpo_core.errors import UserError
from etpo_core.sandbox import Outcome, Status
from etpo_paper.environment.prompts import program, reflection_prompt, task_prompt
from etpo_paper.model import loading as language_model
from etpo_paper.model.loading import build_tiny, load_model
from etpo_paper.warm_start import bodies, corpus, report, sft
from etpo_paper.warm_start.bodies import body_of, broken, run_body, runs, trial_sets
from etpo_paper.warm_start.corpus import Body, Corpus, candidates
from etpo_paper.warm_start.mining import Construction, classifiers, mine, public_names
from etpo_paper.warm_start.sft import WarmStartSettings, loss_sum, micro_batches, pack, train

SOURCE = '''
"""Module.

>>> from sklearn.svm import SVC
>>> model = SVC(C=2.0, verbose=True).fit(x, y)
"""
from sklearn.naive_bayes import GaussianNB


def test_one(seed):
    GaussianNB(priors=[0.5, 0.5])
    tree = DecisionTreeClassifier(random_state=seed, max_depth=3)
    make_pipeline(StandardScaler(), LogisticRegression(C=-1, n_jobs=2))
    Pipeline([("scale", StandardScaler()), ("svm", SVC(class_weight={1: 10}, gamma=np.float64(0.1)))])
    RandomForestClassifier(size, max_depth=2)
    BaggingClassifier(estimator)
    GridSearchCV(SVC(), {})
    KNeighborsRegressor()
'''


def test_mining_keeps_what_stands_for_itself(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SOURCE)
    (tmp_path / "library.py").write_text(SOURCE)
    (tmp_path / "none.py").write_text("SVC(C=3)\n")
    assert [(c.classifier, c.expression) for c in mine(tmp_path)] == [
        ("DecisionTreeClassifier", "DecisionTreeClassifier(max_depth=3)"),
        ("GaussianNB", "GaussianNB(priors=[0.5, 0.5])"),
        ("LogisticRegression", "LogisticRegression(C=-1)"),
        ("LogisticRegression", "make_pipeline(StandardScaler(), LogisticRegression(C=-1))"),
        ("SVC", "Pipeline([('scale', StandardScaler()), ('svm', SVC(class_weight={1: 10}, gamma=np.float64(0.1)))])"),
        ("SVC", "SVC()"),
        ("SVC", "SVC(C=2.0)"),
        ("SVC", "SVC(class_weight={1: 10}, gamma=np.float64(0.1))"),
    ]


@pytest.mark.nightly  # it reads all of scikit-learn
def test_installed_scikit_learn_is_rich_enough():
    mined = mine()
    assert len(mined) > 400
    assert {"LogisticRegression", "RandomForestClassifier", "SVC", "GaussianNB", "KNeighborsClassifier"} <= {
        c.classifier for c in mined
    }
    assert public_names()["SVC"] == "sklearn.svm" and public_names()["CalibratedClassifierCV"] == "sklearn.calibration"
    assert "StandardScaler" not in classifiers() and not any("SearchCV" in c.expression for c in mined)


CONSTRUCTION = Construction("SVC", "make_pipeline(StandardScaler(), SVC())", ("SVC", "StandardScaler", "make_pipeline"))


def test_body_has_sorted_imports_and_a_fit():
    assert body_of(CONSTRUCTION) == (
        "    from sklearn.pipeline import make_pipeline\n"
        "    from sklearn.preprocessing import StandardScaler\n"
        "    from sklearn.svm import SVC\n"
        "    model = make_pipeline(StandardScaler(), SVC())\n"
        "    model.fit(x_train, y_train)\n"
    )
    assert body_of(CONSTRUCTION, chained=True).endswith("SVC()).fit(x_train, y_train)\n")


def test_classifiers_without_probabilities_are_completed():
    made = candidates([CONSTRUCTION, Construction("LinearSVC", "LinearSVC()", ("LinearSVC",))], random.Random(1))
    texts = {c.expression for c in made}
    assert "make_pipeline(StandardScaler(), SVC(probability=True))" in texts
    assert "CalibratedClassifierCV(LinearSVC())" in texts
    assert all(runs(body_of(c), trial_sets()) for c in made)


GOOD = "    from sklearn.svm import SVC\n    model = SVC(C=2.0, probability=True)\n    model.fit(x_train, y_train)\n"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("    from sklearn.svm import SVC\n", "", "NameError: name 'SVC' is not defined (line 5)"),
        ("x_train, y", "X, y", "NameError: name 'X' is not defined (line 7)"),
        ("C=", "c=", "TypeError: SVC.__init__() got an unexpected keyword argument 'c' (line 6)"),
        (", probability=True", "", "AttributeError: This 'SVC' has no attribute 'predict_proba'"),
        ("True)", "True", "SyntaxError: '(' was never closed (line 6)"),
        ("SVC\n", "SVM\n", "ImportError: cannot import name 'SVM' from 'sklearn.svm'"),
    ],
)
def test_running_a_broken_body_tells_the_true_error(old, new, error):
    x, y = trial_sets()[0]
    assert run_body(GOOD, x, y) is None
    text = run_body(GOOD.replace(old, new, 1), x, y)
    assert text.startswith(error)
    assert sys.prefix not in text and "\n" not in text


def test_errors_do_not_depend_on_the_order_of_a_set():
    x, y = trial_sets()[0]
    body = "    raise ValueError('one of ' + repr({'c', 'a', 'b'}) + ' or ' + repr({'d', 'e', 'f'}))\n"
    assert run_body(body, x, y) == "ValueError: one of {'a', 'b', 'c'} or {'d', 'e', 'f'} (line 5)"


def test_bodies_are_tried_on_one_thread(monkeypatch):
    from threadpoolctl import threadpool_info

    threads = []
    monkeypatch.setattr(corpus, "mine", lambda: [Construction("SVC", "SVC()", ("SVC",))])
    monkeypatch.setattr(corpus, "runs", lambda *_: threads.extend(i["num_threads"] for i in threadpool_info()))
    corpus.good_bodies(0)
    assert threads and set(threads) == {1}


def test_a_body_that_never_ends_is_stopped():
    x, y = trial_sets()[0]
    assert run_body("    while True: pass\n", x, y, seconds=0.2).startswith("TimeoutError")


def test_running_leaves_the_random_state_alone():
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    run_body(GOOD, *trial_sets()[0])
    assert np.random.rand() == expected


@pytest.mark.parametrize("mistake", sorted(set(bodies._MISTAKES), key=lambda f: f.__name__))
def test_every_mistake_makes_some_body_fail(mistake, monkeypatch):
    monkeypatch.setattr(bodies, "_MISTAKES", (mistake,))
    x, y = trial_sets()[0]
    tries = [broken(GOOD, random.Random(seed)) for seed in range(12)]
    assert any(body is not None and run_body(body, x, y) is not None for body in tries)


EXPRESSIONS = ("GaussianNB()", "SVC(C=2.0, probability=True)", "DecisionTreeClassifier(max_depth=3)", "BernoulliNB()")


@pytest.fixture(scope="module")
def small_corpus():
    made = []
    for expression in EXPRESSIONS * 3:
        name = expression.split("(")[0]
        tail = f"    # {len(made)}\n" if len(made) >= len(EXPRESSIONS) else ""
        made.append(Body(body_of(Construction(name, expression, (name,))) + tail, name))
    return Corpus(made, seed=0, failures=12)


def test_corpus_is_a_function_of_its_seed(small_corpus):
    again = Corpus(small_corpus.bodies, seed=0, failures=12)
    assert again.failures == small_corpus.failures and len(again.failures) == 12
    assert again.first_try(3, 4) == small_corpus.first_try(3, 4) != small_corpus.first_try(4, 4)
    assert again.second_try(3) == small_corpus.second_try(3)
    assert Corpus(small_corpus.bodies, seed=1, failures=12).first_try(3, 4) != again.first_try(3, 4)


def test_examples_answer_their_prompt(small_corpus):
    x, y = trial_sets()[0]
    first = small_corpus.first_try(0, 8)
    assert len(set(first.answers)) == 8 and first.prompt.prefix.startswith('"""Classification with a ')
    second = small_corpus.second_try(1)
    assert len(set(second.answers)) == 4 and all(run_body(answer, x, y) is None for answer in second.answers)
    bad = next(bad for bad, error, good in small_corpus.failures if bad in second.prompt.prefix)
    assert run_body(bad, x, y) in second.prompt.prefix


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, small_corpus):
    folder = tmp_path_factory.mktemp("models")
    texts = [body.text for body in small_corpus.bodies] + [task_prompt("Balance Scale", 4, 62).prefix]
    build_tiny(folder / "tiny-base", texts)
    return folder


@pytest.fixture
def tiny(model_folder, monkeypatch):
    monkeypatch.setattr(language_model, "MODELS", model_folder)
    return load_model("tiny-base")


def separate_nll(model, prompt, answer):
    """Reference: the likelihood of one answer behind its prompt, without any packing."""
    ids = torch.tensor([[*prompt, *answer]])
    log_probs = model(ids).logits[0].double().log_softmax(-1)
    at = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return -log_probs[at, torch.tensor(answer)].sum()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_answers_do_not_see_each_other(tiny, attention):
    """Also with the attention of GPUs. A mask of booleans would be right there and wrong, without a word, on CPUs."""
    model, *_ = tiny
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    sequences = [([5, 9, 3, 7], [[8, 2, 6, 1], [4, 4, 1], [11, 1]]), ([2, 8], [[3, 1]])]
    expected = sum(separate_nll(model, prompt, answer) for prompt, answers in sequences for answer in answers)
    batch = [pack(prompt, answers) for prompt, answers in sequences]
    assert loss_sum(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_is_the_same_for_any_number_of_threads():
    """All answers of a prompt begin from one hidden state, into which their gradients add up."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, initializer_range=0.2, **sizes))
    batch = [pack(range(3, 13), [[5 + k] * 20 + [1] for k in range(8)])] * 3
    weight = model.requires_grad_(False).model.norm.weight.requires_grad_()
    before = torch.get_num_threads()

    def gradient(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(loss_sum(model, batch), weight)[0]

    try:
        alone = gradient(1)
        assert all(torch.equal(gradient(2), alone) for _ in range(4))
    finally:
        torch.set_num_threads(before)


def test_only_answers_are_learnt():
    packed = pack([5, 9, 3], [[8, 1], [1]])
    assert packed.targets.tolist() == [8, 1, 1]  # by position: the end token 1 is a target like any other
    assert packed.sources.tolist() == [2, 3, 2]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3]


def test_micro_batches_keep_every_sequence_and_the_limit():
    sequences = [pack(range(n), [[1]]) for n in (3, 50, 5, 6, 4)]
    groups = micro_batches(sequences, 21)
    assert sorted(len(p.ids) for group in groups for p in group) == [4, 5, 6, 7, 51]
    assert [len(group) * max(len(p.ids) for p in group) for group in groups] == [18, 7, 51]


SETTINGS = WarmStartSettings(steps=4, batch=8, learning_rate=3e-3, lora_rank=0, max_tokens=60, seed=0)


def weights_of(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


@pytest.fixture(scope="module", params=[0, 4], ids=["all weights", "adapter"])
def trained(request, model_folder, small_corpus, tmp_path_factory):
    """Settings, and the model, record and checkpoint that a training with them gives, in a precision fast anywhere."""
    settings = replace(SETTINGS, lora_rank=request.param)
    checkpoint = tmp_path_factory.mktemp("whole") / "run.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "MODELS", model_folder)
        patch.setattr(sft, "choose", lambda least_exact: SimpleNamespace(precision="float32"))
        model, record = train(*load_model("tiny-base"), small_corpus, settings, checkpoint)
    return settings, model, record, checkpoint


def test_training_learns(trained):
    settings, model, record, _ = trained
    assert record["loss"][-1] < record["loss"][0] and len(record["loss"]) == settings.steps
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert any("lora" in name for name in model.state_dict()) == (settings.lora_rank > 0)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_training_takes_its_products_in_the_precision_that_the_machine_is_fast_in(
    tiny, small_corpus, tmp_path, monkeypatch, precision
):
    monkeypatch.setattr(sft, "choose", lambda least_exact: SimpleNamespace(precision=precision))
    seen, model = set(), tiny[0]
    model.model.layers[0].mlp.register_forward_hook(lambda *call: seen.add(str(call[-1].dtype)))
    _, record = train(*tiny, small_corpus, replace(SETTINGS, steps=1), tmp_path / "a.pt")
    assert record["precision"] == precision and seen == {f"torch.{precision}"}


def test_a_killed_run_goes_on_to_the_same_weights(trained, tiny, small_corpus, tmp_path, monkeypatch):
    settings, whole, whole_record, _ = trained
    monkeypatch.setattr(sft, "choose", lambda least_exact: SimpleNamespace(precision="float32"))
    monkeypatch.setattr(sft, "CHECKPOINT_EVERY", 2)
    examples = sft._examples
    seen = []

    def killed_at_step_3(corpus_, settings_, step):
        seen.append(step)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return examples(corpus_, settings_, step)

    monkeypatch.setattr(sft, "_examples", killed_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        train(*tiny, small_corpus, settings, tmp_path / "part.pt")
    resumed, record = train(*load_model("tiny-base"), small_corpus, settings, tmp_path / "part.pt")
    assert seen == [0, 1, 2, 3, 2, 3]
    assert record["loss"] == whole_record["loss"]
    assert torch.equal(weights_of(whole), weights_of(resumed))


def test_a_checkpoint_of_other_settings_or_cut_short_is_not_used(trained, tiny, small_corpus, tmp_path):
    settings, _, _, checkpoint = trained
    path = shutil.copy(checkpoint, tmp_path / "run.pt")
    run = sft._fingerprint(settings, tiny[2], small_corpus)
    assert sft._load_checkpoint(path, run)["run"] == run
    assert sft._load_checkpoint(path, sft._fingerprint(replace(settings, seed=1), tiny[2], small_corpus)) is None
    path.write_bytes(path.read_bytes()[:500])
    assert sft._load_checkpoint(path, run) is None


def test_settings_that_make_no_sense_are_told():
    with pytest.raises(UserError, match="batch 12: give at least 1 step and a batch that is a multiple of 8"):
        replace(SETTINGS, batch=12)


class _Executor:
    """Says that a program runs when it asks for GaussianNB, and remembers what it was given."""

    def __init__(self):
        self.calls = []

    def score_many(self, sources, x, y, split_seeds):
        self.calls.append(list(sources))
        good = Outcome(Status.OK, score=0.5)
        bad = Outcome(Status.SNIPPET_ERROR, error_type="NameError", message="name 'X' is not defined", line=7)
        return [good if "GaussianNB" in source else bad for source in sources]


def test_report_counts_what_runs(tiny, monkeypatch):
    naive = "    from sklearn.naive_bayes import GaussianNB\n    model = make_pipeline(PCA(), GaussianNB())\n"
    answers = iter([([naive, "    1\n", "    2\n", "    3\n"], [5, 3, 3, 3], [True, True, True, False])])
    answers2 = iter([([naive, "    4\n", "    5\n"], [5, 3, 3], [True] * 3)])
    prompts = []

    def write(self, given):
        prompts.append(given)
        return next(answers if len(prompts) == 1 else answers2)

    monkeypatch.setattr(report._Writer, "write", write)
    task = SimpleNamespace(x=np.zeros((20, 3)), y=np.arange(20) % 2, spec=SimpleNamespace(name="t", description="T"))
    executor = _Executor()
    found = report.measure(*tiny, [task], executor, samples=4, seed=0, dtype=torch.float32)
    assert found["tasks"]["t"] == found["all"]
    assert found["all"] == {
        "runs_first_try": 0.25,
        "runs_after_one_reflection": 0.5,
        "ends_by_itself": 0.75,
        "mean_tokens": 3.5,
    }
    assert found["errors"] == {"NameError": 3} and found["distinct_bodies"] == 1.0
    assert found["estimators"] == {"GaussianNB": 1, "pipeline": 1}
    assert prompts[0] == [task_prompt("T", 3, 10)] * 4
    error = "NameError: name 'X' is not defined (line 7)"
    assert prompts[1] == [reflection_prompt("T", 3, 10, f"    {k}\n", error) for k in (1, 2, 3)]
    assert executor.calls[0][0] == program(naive) and len(executor.calls[1]) == 3


def test_report_samples_real_bodies(tiny, monkeypatch):
    monkeypatch.setattr(report, "MAX_NEW_TOKENS", 20)
    task = SimpleNamespace(x=np.zeros((20, 3)), y=np.arange(20) % 2, spec=SimpleNamespace(name="t", description="T"))
    found = report.measure(*tiny, [task], _Executor(), samples=3, seed=0, dtype=torch.float32)
    again = report.measure(*tiny, [task], _Executor(), samples=3, seed=0, dtype=torch.float32)
    assert found == again and 1 <= found["all"]["mean_tokens"] <= report.MAX_NEW_TOKENS


def test_only_wanted_bodies_are_tried(monkeypatch):
    constructions = [Construction(n, f"{n}({a})", (n,)) for n, a in (("SVC", "C=1"), ("SVC", "C=-1"), ("SVC", ""))]
    monkeypatch.setattr(corpus, "mine", lambda: constructions)
    tried = []
    monkeypatch.setattr(corpus, "runs", lambda body, tables: tried.append(body) or runs(body, tables))
    kept = corpus.good_bodies(0, lambda body: "C=1" not in body)
    assert tried and not any("C=1" in body for body in tried)
    assert [body.text for body in kept] == [body for body in tried if "C=-1" not in body] and len(kept) < len(tried)


def test_descriptions_include_every_task():
    from etpo_paper.data.tasks import TASKS

    assert {spec.description for spec in TASKS.values()} <= set(corpus.DESCRIPTIONS)
