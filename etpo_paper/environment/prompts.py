"""What the agent reads and what becomes of its answer.

A state of the text MDP is a `Prompt`: a Python file that breaks off where the body of `build_model` should stand
(`prefix`) and the line that follows the body (`suffix`). The agent's action is that body and nothing else, so the
same action works for a model that continues text and for one that fills in the middle. `program` puts prefix-less
code together again for the executor; `reflection_prompt` shows a failed body and its error and asks for a second one.
It begins with the whole task prompt: what all states of a task begin with, the networks compute once.
"""

import re
from dataclasses import dataclass

SIGNATURE = "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
SUFFIX = "    return model\n"
MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class Prompt:
    """A state: the text before the action and the text after it."""

    prefix: str
    suffix: str = SUFFIX


@dataclass(frozen=True)
class Action:
    """An answer to a prompt.

    Attributes:
        body: text of the body of `build_model`.
        token_count: tokens it took.
        tokens: the token ids as sampled, end token included; empty for a model behind an endpoint.
        log_probs: log-probability of each under the distribution it was drawn from; empty likewise.
        finished: False when it was cut off at the length limit.
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
        rows: number of rows of x_train (half of the task's rows).
    """
    return Prompt(
        f'"""Classification with a {description} dataset."""\n\nimport numpy as np\n\n\n'
        + SIGNATURE
        + '    """Import the modules needed, then train a scikit-learn classifier called model\n'
        + f'    with x_train of shape ({rows}, {features}) and the labels y_train.\n    """\n'
    )


def reflection_prompt(description: str, features: int, rows: int, body: str, error: str) -> Prompt:
    """The state after a failure: the failed function, its error, and the head of a second try.

    Args:
        description: as in `task_prompt`.
        features: as in `task_prompt`.
        rows: as in `task_prompt`.
        body: the action that failed.
        error: what the executor says of it, e.g. "NameError: name 'X' is not defined (line 3)".
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
    """The source that is executed for an action: `build_model` with the action as its body."""
    return "import numpy as np\n\n\n" + SIGNATURE + body.rstrip("\n") + "\n" + SUFFIX
