"""States and actions as text: what the agent reads, and the program that is made of its answer.

A state of the text MDP is a `Prompt`: the beginning of a Python file, up to where the body of `build_model` should
stand (`prefix`), and the line that follows the body (`suffix`). The action is the body and nothing else, so the same
action works for a model that continues text and for one that fills in the middle. `task_prompt` is the first state of
an episode. `reflection_prompt` is the state after a failure: it shows the failed body with its error and asks for a
second version. It begins with the whole task prompt, so that the networks compute the common beginning of all states of
a task only once. `program` makes the program that the executor runs.
"""

import re
from dataclasses import dataclass

SIGNATURE = "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
SUFFIX = "    return model\n"
MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class Prompt:
    """A state: the text before the action (`prefix`) and the text after it (`suffix`)."""

    prefix: str
    suffix: str = SUFFIX


@dataclass(frozen=True)
class Action:
    """The agent's answer to a prompt.

    Attributes:
        body: text of the body of `build_model`.
        token_count: number of tokens of the answer.
        tokens: the sampled token ids, including the end token; empty for a model behind an endpoint.
        log_probs: log mu of each token, where mu is the distribution it was drawn from; empty likewise.
        finished: False if the answer reached the length limit before its end token.
    """

    body: str
    token_count: int
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    finished: bool = True


def task_prompt(description: str, features: int, rows: int) -> Prompt:
    """The first state s_0 of an episode.

    Args:
        description: short name of the data set, e.g. "Balance Scale".
        features: number of columns of x_train.
        rows: number of rows of x_train, which is half the rows of the task.
    """
    return Prompt(
        f'"""Classification with a {description} dataset."""\n\nimport numpy as np\n\n\n'
        + SIGNATURE
        + '    """Import the modules needed, then train a scikit-learn classifier called model\n'
        + f'    with x_train of shape ({rows}, {features}) and the labels y_train.\n    """\n'
    )


def reflection_prompt(description: str, features: int, rows: int, body: str, error: str) -> Prompt:
    """The state after a failure: the failed function, its error, and the head of a second version.

    Args:
        description: see `task_prompt`.
        features: see `task_prompt`.
        rows: see `task_prompt`.
        body: the action that failed.
        error: the executor's error text, e.g. "NameError: name 'X' is not defined (line 3)". It is put on one line
            and cut after 200 characters.
    """
    message = re.sub(r"\s+", " ", error).strip()[:MAX_ERROR_CHARACTERS]
    return Prompt(
        task_prompt(description, features, rows).prefix
        + body.rstrip("\n")
        + "\n"
        + SUFFIX
        + f"\n\n# The function above fails: {message}\n# The second version below is fixed.\n\n\n"
        + SIGNATURE
    )


def program(body: str) -> str:
    """The program that the executor runs for an action: `build_model` with the action as its body."""
    return "import numpy as np\n\n\n" + SIGNATURE + body.rstrip("\n") + "\n" + SUFFIX
