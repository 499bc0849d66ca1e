"""Size and style of programs, on programs small enough to count by eye."""

import pandas as pd

from etpo_paper.report import style

PIPELINE = (
    "    from sklearn.pipeline import make_pipeline\n"
    "    from sklearn import preprocessing, linear_model\n\n"
    "    # a comment\n"
    "    model = make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())\n"
    "    model.fit(x_train, y_train)\n"
)


def test_pipeline_with_preprocessing():
    found = style.measure(PIPELINE)
    assert found.parses and found.pipeline
    assert found.lines == 4
    assert found.families == ("linear_model",)
    assert found.preprocessing == ("StandardScaler",)
    assert found.construction == "StandardScaler + LogisticRegression"


def test_bare_model():
    found = style.measure("    from sklearn.svm import SVC\n    model = SVC().fit(x_train, y_train)\n")
    assert (found.pipeline, found.preprocessing, found.families) == (False, (), ("svm",))
    assert found.construction == "SVC"


def test_several_families_and_repeats():
    found = style.measure("    model = VotingClassifier([('a', SVC()), ('b', SVC()), ('c', KNeighborsClassifier())])\n")
    assert found.families == ("ensemble", "neighbors", "svm")
    assert found.construction == "VotingClassifier + SVC + KNeighborsClassifier"


def test_names_that_are_only_imported_or_mentioned_do_not_count():
    found = style.measure("    from sklearn.svm import SVC\n    model = 'LogisticRegression()'\n")
    assert found.construction == style.NOTHING and found.families == ()


def test_what_is_not_python():
    found = style.measure("    model = SVC(\n    oh\n")
    assert not found.parses and found.lines == 2 and found.construction == style.NOT_PYTHON
    assert style.measure("").parses  # an empty body parses: `return model` alone
    assert not style.measure("\x00").parses


def test_a_second_function_is_not_taken_for_the_body():
    assert not style.measure("    pass\n\nclass A:\n").parses


def test_fingerprint_ignores_layout_only():
    spaced = PIPELINE.replace("    # a comment\n", "\n").replace("(x_train, y_train)", "( x_train,  y_train )")
    assert style.measure(spaced).fingerprint == style.measure(PIPELINE).fingerprint
    other = PIPELINE.replace("StandardScaler", "MinMaxScaler")
    assert style.measure(other).fingerprint != style.measure(PIPELINE).fingerprint


def test_nodes_count_the_tree():
    # Assign, Name, Store, Constant.
    assert style.measure("    model = 1\n").nodes == 4


def samples():
    svc, tree = "    model = SVC()\n", "    model = DecisionTreeClassifier()\n"
    rows = [(0, tree, "ok"), (0, tree, "ok"), (1, tree, "ok"), (1, svc, "ok"), (9, svc, "ok"), (9, tree, "timeout")]
    return style.measure_samples(pd.DataFrame(rows, columns=["update", "code", "status"]))


def test_the_winner_is_what_runs_late_and_is_followed_from_its_first_update():
    measured = samples()
    assert style.winning_construction(measured) == "SVC"
    share = style.share_of_construction(measured, "SVC")
    assert share.to_dict("list") == {"update": [0, 1, 9], "share": [0.0, 0.5, 0.5]}
    assert style.winning_construction(measured[measured["status"] != "ok"]) is None
    assert style.winning_construction(measured.head(0)) is None


def test_a_sample_without_code_is_measured():
    frame = pd.DataFrame({"update": [0], "code": [None], "status": ["no_result"]})
    assert style.measure_samples(frame)["lines"].tolist() == [0]
