"""What the warm start trains on: task prompts with good bodies, and reflection prompts with repaired bodies.

`good_bodies` turns the mined constructions into bodies that run. A classifier without probabilities is completed
(`SVC(probability=True)`, `CalibratedClassifierCV(LinearSVC())`), and some bare classifiers also appear behind a
preprocessing step. `Corpus` draws examples from the bodies; an `Example` is one state with the actions that answer it.
The names and shapes in the prompts vary independently of the bodies, so the corpus teaches how to write a body, but not
which body suits a task. Everything is a function of the seed and of the installed scikit-learn.
"""

import ast
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from etpo_paper.data.tasks import TASKS
from etpo_paper.environment.prompts import Prompt, reflection_prompt, task_prompt
from etpo_paper.warm_start.bodies import body_of, broken, run_body, runs, trial_sets
from etpo_paper.warm_start.mining import Construction, mine, public_names

# The names of the fourteen tasks and of other well-known tables.
DESCRIPTIONS = (
    *(spec.description for spec in TASKS.values()),
    "Iris",
    "Wine Quality",
    "Adult Income",
    "Heart Disease",
    "Bank Marketing",
    "Car Evaluation",
    "Mushroom",
    "Ionosphere",
    "Sonar",
    "Glass Identification",
    "Vehicle Silhouettes",
    "Yeast",
    "Abalone",
    "Hepatitis",
    "Soybean Disease",
    "Congressional Voting",
    "Spambase",
    "Wholesale Customers",
    "Credit Approval",
    "Seeds",
    "Banknote Authentication",
    "Customer Churn",
    "Employee Attrition",
    "Loan Default",
    "Penguins",
    "Stroke Prediction",
)
BODIES_PER_CLASSIFIER = 12
NEW_STARTS = 3  # answers to a reflection prompt beside the repaired body
# Preprocessing steps that stand before a classifier in scikit-learn's own pipelines.
_PREPROCESSING = ("StandardScaler()", "MinMaxScaler()", "SimpleImputer()", "PCA(n_components=3)", "RobustScaler()")
_WITH_PROBABILITY = {"SVC", "NuSVC"}  # give probabilities on request
_CALIBRATED = {"LinearSVC", "RidgeClassifier", "SGDClassifier", "Perceptron"}  # give them only when calibrated
# The libraries that do the fits use one thread each. Small fits are faster that way, and on a busy machine a fit that
# waits for a second core could exceed its time limit, which would change the corpus.
_THREADS = 1


@dataclass(frozen=True)
class Body:
    """A body that runs.

    Attributes:
        text: the action.
        classifier: name of the class that classifies.
    """

    text: str
    classifier: str


class Failure(NamedTuple):
    """A body that fails.

    Attributes:
        body: the broken body.
        error: the error that it raises.
        repair: the body that it was made from, which runs.
    """

    body: str
    error: str
    repair: str


@dataclass(frozen=True)
class Example:
    """One state and one or more actions that answer it."""

    prompt: Prompt
    answers: tuple[str, ...]


def candidates(constructions: Iterable[Construction], rng: random.Random) -> list[Construction]:
    """Chooses the constructions to try: the 12 shortest of each classifier, completed to give probabilities.

    Bare classifiers and pipelines count separately. A third of the bare classifiers are added once more behind a
    preprocessing step, because the tests of scikit-learn hold few pipelines that give probabilities.
    """
    by_class: dict[tuple[str, bool], list[Construction]] = {}
    for construction in map(_completed, constructions):
        by_class.setdefault((construction.classifier, construction.is_pipeline), []).append(construction)
    chosen = []
    for key in sorted(by_class):
        same = sorted(set(by_class[key]), key=lambda c: (len(c.expression), c.expression))
        chosen += same[:BODIES_PER_CLASSIFIER]
    for construction in list(chosen):
        if not construction.is_pipeline and rng.random() < 1 / 3:
            chosen.append(_behind_preprocessing(construction, rng.choice(_PREPROCESSING)))
    return chosen


def _completed(construction: Construction) -> Construction:
    call = ast.parse(construction.expression, mode="eval").body
    names = set(construction.names)
    for node in ast.walk(call):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in _WITH_PROBABILITY and all(k.arg != "probability" for k in node.keywords):
            node.keywords.append(ast.keyword("probability", ast.Constant(True)))
    expression = ast.unparse(call)
    if construction.classifier in _CALIBRATED and not construction.is_pipeline:
        expression = f"CalibratedClassifierCV({expression})"
        names.add("CalibratedClassifierCV")
    return Construction(construction.classifier, expression, tuple(sorted(names)))


def _behind_preprocessing(construction: Construction, step: str) -> Construction:
    names = {*construction.names, "make_pipeline", step.split("(")[0]}
    expression = f"make_pipeline({step}, {construction.expression})"
    return Construction(construction.classifier, expression, tuple(sorted(names)))


def good_bodies(seed: int, is_wanted: Callable[[str], bool] = lambda body: True) -> list[Body]:
    """The bodies of all candidates that are wanted and that run.

    Args:
        seed: decides which candidates there are and how the body of each is laid out.
        is_wanted: called with the text of a body before it is run. A model wants bodies that are short in its tokens.
    """
    rng = random.Random(seed)
    tables = trial_sets()
    bodies = []
    with threadpool_limits(_THREADS):
        for construction in tqdm(candidates(mine(), rng), desc="trying bodies", unit="body"):
            body = body_of(construction, chained=rng.random() < 0.25)
            if is_wanted(body) and runs(body, tables):
                bodies.append(Body(body, construction.classifier))
    return bodies


class Corpus:
    """Draws training examples from a list of bodies.

    Args:
        bodies: the bodies that may be an answer.
        seed: seed of all draws.
        failures: how many failures to make by breaking bodies and running them.
    """

    def __init__(self, bodies: Sequence[Body], seed: int, failures: int = 300):
        self.bodies = list(bodies)
        count = Counter(body.classifier for body in self.bodies)
        # A classifier with many bodies is drawn more often, but only by the square root of their number: scikit-learn's
        # tests call some classifiers rarely, and the model should learn those as well.
        self._weights = [count[body.classifier] ** -0.5 for body in self.bodies]
        with threadpool_limits(_THREADS):
            self.failures = self._make_failures(random.Random(f"failures {seed}"), failures)
        self._seed = seed

    def _make_failures(self, rng: random.Random, wanted: int) -> list[Failure]:
        (x, y), *_ = trial_sets()
        made: list[Failure] = []
        for _ in range(4 * wanted):
            if len(made) == wanted:
                break
            (body,) = rng.choices(self.bodies, self._weights)
            bad = broken(body.text, rng)
            if bad is not None and (error := run_body(bad, x, y)) is not None:
                made.append(Failure(bad, error, body.text))
        return made

    def first_try(self, index: int, answers: int) -> Example:
        """Example `index` of the first kind: the first prompt of a task, answered by several different bodies."""
        rng = random.Random(f"first {self._seed} {index}")
        return Example(task_prompt(**_setting(rng)), tuple(self._different(rng, answers, [])))

    def second_try(self, index: int) -> Example:
        """Example `index` of the second kind: a reflection prompt, answered by the repaired body and by other bodies.

        A model that has only seen repairs learns to copy the failed body together with its mistake. A second version
        may just as well be another program.
        """
        rng = random.Random(f"second {self._seed} {index}")
        failure = rng.choice(self.failures)
        texts = self._different(rng, NEW_STARTS + 1, [failure.repair])
        prompt = reflection_prompt(**_setting(rng), body=failure.body, error=failure.error)
        return Example(prompt, tuple(texts))

    def _different(self, rng: random.Random, wanted: int, texts: list[str]) -> list[str]:
        """Fills `texts` up to `wanted` bodies, which differ from each other as far as there are enough bodies."""
        while len(texts) < wanted:
            (body,) = rng.choices(self.bodies, self._weights)
            if body.text not in texts or len(texts) >= len(self.bodies):
                texts.append(body.text)
        return texts


def _setting(rng: random.Random) -> dict[str, Any]:
    return {
        "description": rng.choice(DESCRIPTIONS),
        "features": rng.randint(4, 30),
        "rows": round(10 ** rng.uniform(1.5, 3.1)),
    }


def tokenizer_texts(seed: int) -> list[str]:
    """The texts on which the tokenizer of the tiny model is trained.

    They are all bodies, whether they run or not, the names of scikit-learn, and prompts of both kinds.
    """
    rng = random.Random(seed)
    bodies = [body_of(construction) for construction in candidates(mine(), rng)]
    texts = list(bodies) + sorted(public_names())
    for description in DESCRIPTIONS:
        setting = _setting(rng) | {"description": description}
        texts.append(task_prompt(**setting).prefix)
        for error in _COMMON_ERRORS:
            bad = broken(rng.choice(bodies), rng) or rng.choice(bodies)
            texts.append(reflection_prompt(**setting, body=bad, error=error).prefix)
    return texts


_COMMON_ERRORS = (
    "NameError: name 'X' is not defined (line 6)",
    "NameError: name 'model' is not defined. Did you mean: 'mode'? (line 8)",
    "TypeError: SVC.__init__() got an unexpected keyword argument 'seed' (line 6)",
    "ImportError: cannot import name 'StandardScale' from 'sklearn.svm' (sklearn/svm/__init__.py) (line 5)",
    "ModuleNotFoundError: No module named 'sklearn.models' (line 5)",
    "AttributeError: This 'SVC' has no attribute 'predict_proba'",
    "AttributeError: 'SVC' object has no attribute 'train' (line 7)",
    "NotFittedError: This SVC instance is not fitted yet. Call 'fit' with appropriate arguments before using this.",
    "InvalidParameterError: The 'C' parameter of SVC must be a float in the range (0.0, inf]. Got -1 instead. (line 6)",
    "SyntaxError: '(' was never closed (line 6)",
    "IndentationError: unexpected indent (line 6)",
)
