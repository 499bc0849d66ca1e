"""What is read out of the answers of chat models: the code that the model meant, as the module or body that it is."""

import ast
import textwrap
import time
import types

import numpy as np
import pytest

from etpo_paper.environment.prompts import is_module, program, reflection_prompt, task_prompt
from etpo_paper.model.answers import extract_body
from etpo_paper.report.style import measure

BODY = "    from sklearn.svm import SVC\n    model = SVC(probability=True).fit(x_train, y_train)\n"
PLAIN = "from sklearn.svm import SVC\nmodel = SVC(probability=True).fit(x_train, y_train)\n"
FUNCTION = (
    "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
    '    """Trains.\n\n    A lot.\n    """\n'
    "    # a comment\n"
    "    from sklearn.svm import SVC\n"
    "    model = SVC(probability=True).fit(x_train, y_train)\n"
    "    return model\n"
)


def indented(text: str, by: str) -> str:
    return "".join(by + line for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    "answer",
    {
        "as asked": BODY,
        "no indentation": PLAIN,
        "two spaces": indented(PLAIN, "  "),
        "eight spaces": indented(PLAIN, " " * 8),
        "tabs": indented(PLAIN, "\t"),
        "first line without": PLAIN.replace("\nmodel", "\n    model"),
        "windows line ends": BODY.replace("\n", "\r\n"),
        "no last newline": BODY.rstrip(),
        "blank lines around": "\n\n" + BODY + "\n\n",
        "with return": BODY + "    return model\n",
        "with return, bare": PLAIN + "return model  # done",
        "fenced": f"Here you are:\n\n```python\n{BODY}```\nThis trains a classifier.",
        "fenced, no language": f"```\n{PLAIN}```",
        "fenced with tildes": f"~~~python\n{PLAIN}~~~",
        "fenced, cut short": f"```python\n{BODY}",
        "fenced, indented fence": f"1. Do this:\n   ```python\n{BODY}   ```\n",
        "two blocks": f"First\n```bash\npip install x\n```\nthen\n```python\n{BODY}```",
        "function": FUNCTION,
        "function, indented": indented(FUNCTION, "    "),
        "function, fenced": f"Sure!\n```python\n{FUNCTION}```\nDone.",
        "function, cut short": FUNCTION.replace("    return model\n", ""),
        "function, used below": f"{FUNCTION}\n\nmodel = build_model(x, y)\nprint(model)\n",
        "function with long signature": FUNCTION.replace(
            "(x_train: np.ndarray, y_train: np.ndarray):", "(\n    x_train: np.ndarray,\n    y_train: np.ndarray,\n):"
        ),
        "imports above the function": (
            "from sklearn.svm import SVC\n\n" + FUNCTION.replace("    from sklearn.svm import SVC\n", "")
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_bodies_are_found(answer):
    body = extract_body(answer[1])
    assert [line for line in body.splitlines() if line.strip() and "#" not in line] == BODY.splitlines()
    assert body.endswith("\n") and not body.endswith("\n\n")
    ast.parse(program(body))


def test_nested_blocks_keep_their_shape():
    body = "if len(x_train) > 5:\n    for k in (1, 2):\n        model = k\nelse:\n    model = 0"
    assert extract_body(body) == indented(body, "    ") + "\n"
    inside = "    if a:\n        model = 1\n\n    else:\n        model = 2\n"
    assert extract_body(inside) == inside


def test_a_function_cut_off_in_the_middle_keeps_what_came():
    answer = f"```python\nimport math\n{FUNCTION.split('    return')[0]}    other = SVC("
    body = extract_body(answer)
    assert body.startswith("    import math\n") and body.endswith("    other = SVC(\n")
    assert "def build_model" not in body and BODY.splitlines()[1] in body.splitlines()


def test_one_line_functions():
    assert extract_body("def build_model(x_train, y_train): model = 3; other = 4") == "    model = 3; other = 4\n"


def test_an_inner_return_stays():
    body = "    def f():\n        return model\n    model = f()\n    return f()\n"
    assert extract_body(body) == body


@pytest.mark.parametrize("answer", ["", "\n \n", "```python\n```", "```", "def build_model(x_train, y_train):\n"])
def test_nothing_is_nothing(answer):
    assert extract_body(answer).strip() in ("", "```")


@pytest.mark.parametrize("answer", ["I cannot do that.", "model = (", "def build_model", "\x00", "a\x00b\n  c"])
def test_what_is_no_python_comes_through_for_the_environment_to_refuse(answer):
    body = extract_body(answer)
    assert body.strip()
    with pytest.raises((SyntaxError, ValueError)):
        ast.parse(program(body))


# Which code is meant, and whether it does what it does in a file ---------------------------------------------------

IMPORT = "from sklearn.linear_model import LogisticRegression as LR\n"
RIGHT = f"    {IMPORT}    model = LR(C=3).fit(x_train, y_train)\n"
WHOLE = f"def build_model(x_train, y_train):\n{RIGHT}    return model\n"
WRONG = WHOLE.replace("C=3", "C=1")
OLD = "def build_model(x_train, y_train):\n    model = LogReg(C=1).fit(x_train, y_train)\n    return model\n"
BROKEN = "def build_model(x_train, y_train):\n    model = LR((C=1)\n    return model\n"
USAGE = "import pandas as pd\ndata = pd.read_csv('train.csv')\nX, y = data, data['label']\nmodel = build_model(X, y)\n"
LINES = "print(model.predict(X))\n" * 30
PROMPT = task_prompt("Toy", 2, 8)
AGAIN = reflection_prompt("Toy", 2, 8, "    model = LogReg(\n", "SyntaxError: '(' was never closed")
AFTER_FILE = reflection_prompt("Toy", 2, 8, "import absent\n" + WRONG, "ModuleNotFoundError: absent")


def fenced(code: str, fence: str = "```") -> str:
    return f"{fence}python\n{code.rstrip()}\n{fence}\n"


def built(answer: str) -> object:
    """What `build_model` of an answer returns when its file is run."""
    space = types.ModuleType("snippet").__dict__
    exec(compile(program(extract_body(answer)), "snippet", "exec", dont_inherit=True), space)
    x = np.random.default_rng(0).normal(size=(8, 2))
    return space["build_model"](x, np.array([0, 1] * 4))


CANDIDATES = {
    "a draft in thoughts": f"<think>\n{fenced(WRONG)}</think>\n\n{fenced(RIGHT)}",
    "thoughts without a beginning": f"Let me see.\n{fenced(WRONG)}</think>\n{RIGHT}",
    "thoughts after the answer": f"{fenced(WHOLE)}<thinking>\n{fenced(WRONG)}</thinking>\nDone.",
    "two files, the last is meant": f"First try:\n{fenced(WRONG)}Better:\n{fenced(WHOLE)}",
    "the old function, then a body": f"The problem:\n{fenced(OLD)}Fixed:\n{fenced(RIGHT)}",
    "the old function after the new one": f"{fenced(WHOLE)}It was before:\n{fenced(OLD)}",
    "a longer example below": f"{fenced(WHOLE)}Usage:\n{fenced(USAGE + LINES)}",
    "a longer example below a body": f"{fenced(RIGHT)}Usage:\n{fenced(USAGE + LINES)}",
    "an example in the file": fenced(f"{WHOLE}\n{USAGE}print(model.score(X, y))\n"),
    "a draft that is complete, the last cut short": f"{fenced(WHOLE)}Better:\n```python\n{BROKEN[:70]}",
    "the whole file again": fenced(AGAIN.prefix + RIGHT + AGAIN.suffix),
    "the whole file again, less our comments": fenced(f"{BROKEN}\n\n{WHOLE}"),
    "a broken function, then one of its own": fenced(f"{BROKEN}\n\n{WHOLE}").replace("y_train", "labels"),
    "the whole file again, no fence": AGAIN.prefix + RIGHT + AGAIN.suffix,
    "the whole file after a file": fenced(AFTER_FILE.prefix + RIGHT + AFTER_FILE.suffix),
    "the whole file, imports at its top": fenced(
        AGAIN.prefix.replace("import numpy", f"{IMPORT}import numpy").replace("LogReg(", "LogReg()")
        + "    model = LR(C=3).fit(x_train, y_train)\n"
        + AGAIN.suffix
    ),
    "blocks that belong together": (
        f"{fenced(IMPORT)}{fenced('def _fit(a, b):' + chr(10) + '    return LR(C=3).fit(a, b)')}"
        f"{fenced('def build_model(x_train, y_train):' + chr(10) + '    return _fit(x_train, y_train)')}"
    ),
    "prose around": f"Sure! Here it is (build_model):\n\n{WHOLE}\nNote: it's fine (mostly).\n\n- fast\n- simple\n",
    "prose around a body": f"This fills the gap:\n\n{RIGHT}\nI used logistic regression.",
    "tags around": f"<code>\n{RIGHT}</code>",
    "JSON": f'{{"thought": "short", "code": {WHOLE!r}}}'.replace("'", '"'),
    "JSON in a fence": "```json\n" + f'{{"code": {RIGHT!r}}}'.replace("'", '"') + "\n```",
}

MODULES = {
    "other parameters": """
def build_model(X, y=None):
    return LR(C=3).fit(X, y)
""",
    "other parameters, no return": """
def build_model(X, y):
    model = LR(C=3).fit(X, y)
""",
    "in one line, no return": """
def build_model(X, y): model = LR(C=3); model.fit(X, y)  # é
""",
    "numpy as in the file": """
def build_model(X: np.ndarray, y: np.ndarray):
    return LR(C=3).fit(np.array(X), y)
""",
    "a helper above": """
def f(X, y):
    return LR(C=3).fit(X, y)

def build_model(x_train, y_train):
    return f(x_train, y_train)
""",
    "a helper below": """
def build_model(X, y):
    return f(X, y) if C else None

def f(X, y):
    return LR(C=C).fit(X, y)

C = 3
""",
    "a helper below a body": """
    model = f(x_train, y_train)
    return model


def f(X, y):
    from sklearn.linear_model import LogisticRegression as LR
    return LR(C=3).fit(X, y)
""",
    "a default from above": """
C = 3

def build_model(X, y, c=C):
    return LR(C=c).fit(X, y)
""",
    "global": """
C = 2

def build_model(x_train, y_train):
    global C
    C += 1
    return LR(C=C).fit(x_train, y_train)
""",
    "future": """
from __future__ import annotations

def build_model(X: Frame, y: np.ndarray) -> Any:
    return LR(C=3).fit(X, np.array(y))
""",
    "star": """
from sklearn.linear_model import *

def build_model(x_train, y_train):
    return LogisticRegression(C=3).fit(x_train, y_train)
""",
    "lambda": """
build_model = lambda X, y: LR(C=3).fit(X, y)
""",
    "annotated lambda": """
build_model: object = lambda X, y: LR(C=3).fit(X, y)
""",
    "partial": """
import functools

def f(c, X, y):
    return LR(C=c).fit(X, y)

build_model = functools.partial(f, 3)
""",
    "class": """
class Mine(LR):
    def fit(self, X, y):
        return super().fit(X, y)

def build_model(X, y):
    return Mine(C=3).fit(X, y)
""",
    "another name": """
def train(X, y, *, c=3):
    clf = LR(C=c)
    clf.fit(X, y)
    return clf
""",
    "another name, used below": """
def train(X, y):
    return LR(C=3).fit(X, y)

model = train(data, labels)
print(model)
""",
    "another name with a helper": """
def fit(X, y):
    return LR(C=3).fit(X, y)

def train(X, y):
    return fit(X, y)
""",
    "an example below, and what the function reads": """
def build_model(X, y):
    return LR(C=C).fit(X, y)

C = 3
X, y = load("train.csv")
print(build_model(X, y))
""",
    "a script": """
def train(X, y):
    return LR(C=3).fit(X, y)

model = train(x_train, y_train)
""",
    "a guard below": """
def build_model(X, y):
    return LR(C=3).fit(X, y)

if __name__ == '__main__':
    print(open('train.csv'))
""",
    "replaced, but used": """
def build_model(X, y):
    return LR(C=3).fit(X, y)

first = build_model

def build_model(X, y):
    return first(X, y)
""",
}

STRING = (
    'def build_model(x_train, y_train):\n    """Fits.\n\n    ```\n    build_model(x, y)\n```\n    """\n'
    '    note = """a\nb\t\n    c\n```\n"""\n    assert note == "a\\nb\\t\\n    c\\n```\\n", repr(note)\n' + RIGHT
)
TEXT = '    note = """a\n  b\t\n```\n"""\n    assert note == "a\\n  b\\t\\n```\\n", repr(note)\n' + RIGHT

FENCES = {
    "inside of strings": fenced(STRING),
    "inside of strings, cut short": fenced(STRING).removesuffix("```\n"),
    "inside of strings, a body": fenced(TEXT),
    "inside of strings, no fence": STRING,
    "inside of strings, deeper": fenced(TEXT.replace("\n    ", "\n        ").replace("    note", "        note", 1)),
    "inside of strings, tabs": TEXT.replace("\n    ", "\n\t").replace("    note", "\tnote", 1),
    "four backticks": fenced(WHOLE, "````"),
    "four backticks around three": f"````markdown\n{fenced(WHOLE)}````",
    "twice": f"```\n{fenced(WHOLE)}```",
    "tildes around backticks": f"~~~\n{fenced(WHOLE)}~~~",
    "many tildes": fenced(STRING, "~~~~~"),
    "code on the fence's line": f"```python {RIGHT.lstrip()}```",
    "code on the fence's line, no language": f"```{WHOLE}```",
    "a title on the fence's line": f'```python title="a.py" {{1,3}}\n{RIGHT}```',
    "on one line": f"```python {IMPORT.strip()}; model = LR(C=3).fit(x_train, y_train)```",
    "inline code": f"`{IMPORT.strip()}; model = LR(C=3).fit(x_train, y_train)`",
    "text before": f"Here's the code: ```python\n{RIGHT}```",
    "closing behind code": f"```python\n{RIGHT.rstrip()}```\nDone.",
    "closing only": f"{RIGHT}```\n",
    "closing only, with prose": f"{RIGHT}```\n\nThis trains it.",
    "closing only, behind code": f"{RIGHT.rstrip()}```",
    "in a list": "1. So:\n\n" + textwrap.indent(fenced(STRING).replace("python", "Python3"), "   ") + "2. Done.",
    "byte order mark": f"\ufeff{fenced(chr(0xfeff) + RIGHT)}",
    "blanks that do not break": RIGHT.replace("    model", "\u00a0 \u00a0 model"),
    "curly quotes": fenced(RIGHT.replace("C=3", "C=3, solver=‘lbfgs’")),
    "commands of a notebook": fenced(f"!pip install -q scikit-learn\n%matplotlib inline\n{RIGHT}"),
    "other blocks": f"```bash\npip install sklearn\n```\n{fenced(RIGHT)}```text\naccuracy: 0.9, or so it is said\n```",
}  # fmt: skip


@pytest.mark.parametrize("answer", [*CANDIDATES.values(), *FENCES.values()], ids=[*CANDIDATES, *FENCES])
def test_the_code_that_is_meant_is_found_and_left_as_it_is(answer):
    assert built(answer).C == 3


@pytest.mark.parametrize("code", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("fence", [True, False])
def test_a_module_does_what_it_does_as_a_module(code, fence):
    code = code.removeprefix("\n")
    if "__future__" in code:
        code = code.replace("annotations\n", f"annotations\n{IMPORT}")
    elif not code.startswith(" "):
        code = IMPORT + code
    assert built(fenced(code) if fence else code).C == 3


def test_what_is_a_body_in_other_words_becomes_one():
    """So that the states that follow are those of an agent that writes bodies."""
    assert extract_body(fenced(WHOLE)) == RIGHT
    assert extract_body(fenced(AGAIN.prefix + RIGHT + AGAIN.suffix)) == RIGHT
    assert extract_body(fenced(IMPORT + WHOLE.replace(f"    {IMPORT}", "    # Fits.\n"))) == (
        f"    {IMPORT}    # Fits.\n    model = LR(C=3).fit(x_train, y_train)\n"
    )


def test_line_ends_and_a_byte_order_mark_are_all_that_is_lost():
    text = RIGHT.replace("C=3", "C=3, solver='“\u00a0”'")
    assert extract_body("\ufeff" + text.replace("\n", "\r\n")) == text


def test_a_module_is_left_as_it_is():
    helper = "# A helper.\n@staticmethod\ndef helper(a):\n    return a  # as it is\n"
    code = f'"""A file."""\n{IMPORT}\n\n{helper}\n\n{WRONG}\n\nZ = 5\n'
    assert extract_body(fenced(code)) == code
    other = f"{IMPORT}\ndef train(X, y):\n    return LR().fit(X, y)\n"
    assert extract_body(other) == f"{other}\n\nbuild_model = train\n"


def test_which_function_is_meant_is_not_guessed():
    code = "def a(x, y):\n    return 1\n\ndef b(x, y):\n    return 2\n"
    assert "build_model" not in extract_body(code)


@pytest.mark.parametrize("answer", ["<think>\nI could use", f"<think>{fenced(WHOLE)}", f"{fenced(WHOLE)}</think>\n"])
def test_thoughts_are_no_answer(answer):
    assert extract_body(answer) == ""


@pytest.mark.parametrize(
    "text",
    ["```\n", "```python\n", "~~~\n```\n", "x = [\n", "Sure: `x`\n", "def build_model(\n", "<think>\n", '"""\n', "((("],
)
def test_a_model_that_repeats_itself_costs_no_time(text):
    begin = time.process_time()
    for separator in ("", " "):
        extract_body(separator.join([text] * 300))
        extract_body(text.strip() + separator * 3000)
        extract_body(separator.join([text.strip()] * 300))
    assert time.process_time() - begin < 5


# What a file is to the environment --------------------------------------------------------------------------------


def test_a_body_is_never_taken_for_a_module():
    assert is_module(WHOLE) and is_module("\n" + WHOLE)
    for body in (BODY, "\n" + RIGHT, textwrap.indent(WHOLE, " "), "model = 1\n", "x = build_model(1, 2)\n", BROKEN, ""):
        assert not is_module(body)


def test_numpy_stands_above_a_module_and_below_what_must_be_first():
    assert program(WHOLE) == f"import numpy as np\n\n\n{WHOLE}"
    own = f"import numpy as np\n{WHOLE}"
    assert program(own) == own
    future = f'"""Doc."""\nfrom __future__ import annotations\n{WHOLE}'
    assert program(future) == f'"""Doc."""\nfrom __future__ import annotations\nimport numpy as np\n\n{WHOLE}'


def test_the_state_after_a_file_shows_it_and_begins_anew():
    prefix = reflection_prompt("Toy", 2, 8, WRONG, "ValueError:\n no").prefix
    assert prefix == (
        f"{program(WRONG)}\n\n# The file above fails: ValueError: no\n# The second version below is fixed.\n\n\n"
        f"{PROMPT.prefix}"
    )


def test_the_style_of_a_file_is_that_of_all_its_code():
    found = measure(
        f"{IMPORT}\n\ndef helper(x, y):\n    return LogisticRegression().fit(x, y)\n\n\n"
        + ("def build_model(x, y):\n    return helper(x, y)\n\n\nZ = StandardScaler()\n")
    )
    assert found.parses and found.families == ("linear_model",) and found.preprocessing == ("StandardScaler",)
