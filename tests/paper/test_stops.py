"""Where a program ends that goes on without an end token."""

import ast

import pytest

from etpo_paper.environment.prompts import program
from etpo_paper.model.stops import end_of_answer, end_of_body

BODY = "    from sklearn.svm import SVC\n\n    model = SVC(probability=True)\n    model.fit(x_train, y_train)\n"
AT = "@"  # where it ends in the texts below; none where it goes on


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY + "    return",
        BODY + "    return model",  # `return modelling` is still possible
        BODY + "    return model\n@",
        BODY + "    return model\n@    model = None\n",
        BODY + "    return model.fit(\n        x_train, y_train\n    )\n@\n",
        BODY + "    return model.fit(\n",
        BODY + "    returned = 1\n",
        BODY + "@d",
        BODY + "\n\n@def main():\n    return 1\n",
        BODY + "@# Example:\n",
        BODY + "@```\n",
        BODY + "\n\n  \n",
        BODY + "  # less deep, and no dedent of the function\n",
        "\n\n" + BODY + "\n@x",
        "    if x:\n        return model\n    else:\n        return None\n",
        "    if x:\n        return model\n    return None\n@",
        "    def f():\n        return 1\n    model = f()\n@f",
        '    """A text.\nreturn to column 0, (\n    return model\n    """\n    model = 1\n@f',
        "    model = [\n1,\n(2),\n]\n    model = {\n}\n@f",
        "    model = 1 + \\\n2\n@f",
        "    # a comment alone\n@f",
        "    this is no Python at all (\n    or is it\n",
        "    this is no Python at all\n@f",
        "\tmodel = 1\n@f",
        "import numpy as np\n\n\ndef build_model(x_train, y_train):\n    return model\n@\n\nbuild_model(x, y)\n",
        "import numpy as np\n\n\ndef build_model(\n    x,\n    y,\n):\n    model = 1\n\n\n@build_model(x, y)\n",
        "def f():\n    return 1\n\n\ndef build_model(x, y):\n    if x:\n        return 1\n    model = 2\n@def f():\n",
        "def build_model(x_train, y_train):\n",
        "def helper():\n    return 1\n\n\nprint(helper())\n",
        "model = SVC()\nreturn model\n@model = 1\n",
        "    s = '\0'\n@f",
        "",
        " ",
    ],
)
def test_a_body_ends_at_its_return_or_in_column_0(text):
    text, end = text.replace(AT, ""), text.find(AT)
    assert end_of_body(text) == (None if end < 0 else end)


def test_letter_by_letter_the_end_is_seen_once_and_stays():
    text = BODY + "\n\ndef main():\n    return 1\n"
    seen = [end_of_body(text[:length]) for length in range(len(text) + 1)]
    first = text.index("def main") + 1
    assert seen[:first] == [None] * first and set(seen[first:]) == {first - 1}
    assert ast.parse(program(text[: first - 1]))


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{BODY}```\n@It fits a classifier.",
        f"Here it is:\n\n```\n{BODY}```",
        f"Here it is:\n\n```\n{BODY}```\n@",
        f"~~~~ python\n```\n{BODY}~~~\n~~~~\n@",
        f"- so:\n  ```python\n  {BODY}  ```\n@",
        f"```\n\n```\n{BODY}```\n@",
        f"```python\nimport numpy as np\n\n\ndef build_model(x, y):\n{BODY}    return model\n\n\nbuild_model(1, 2)\n",
        f"{BODY}@This fits a classifier.",
        f"{BODY}    return model\n@",
        "Here it is:\n\n    model = 1\n\nIt fits.\n",
        "```python\n",
    ],
)
def test_an_answer_ends_with_its_first_block_of_code(text):
    text, end = text.replace(AT, ""), text.find(AT)
    assert end_of_answer(text) == (None if end < 0 else end)
