"""Honest programs of the kinds that language models write, each as the body of `build_model`.

Each is a name and a body that may use `x`, `y` and what `HEAD` imports, and that returns a model. All randomness is
seeded, so that a program earns the same behind the walls and outside, to the last bit.
"""

HEAD = """
import numpy as np
import pandas as pd
from sklearn import *
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.decomposition import PCA, FastICA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import *
from sklearn.feature_selection import *
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import *
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import (
    FixedThresholdClassifier, GridSearchCV, KFold, RandomizedSearchCV, StratifiedKFold, TunedThresholdClassifierCV,
    cross_val_score, learning_curve, train_test_split, validation_curve,
)
from sklearn.naive_bayes import *
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import *
from sklearn.svm import SVC, LinearSVC, NuSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
"""

CLASSIFIERS = [
    "LogisticRegression()",
    "multiclass.OneVsRestClassifier(LogisticRegression(C=0.1, solver='liblinear', random_state=0))",
    "LogisticRegression(solver='saga', max_iter=50, random_state=0)",
    "LogisticRegressionCV(cv=3, random_state=0)",
    "SGDClassifier(loss='log_loss', random_state=0)",
    "SGDClassifier(loss='modified_huber', early_stopping=True, random_state=0)",
    "RandomForestClassifier(n_estimators=20, random_state=0)",
    "RandomForestClassifier(n_estimators=20, n_jobs=-1, class_weight='balanced', random_state=0)",
    "ExtraTreesClassifier(n_estimators=20, random_state=0)",
    "GradientBoostingClassifier(n_estimators=20, random_state=0)",
    "GradientBoostingClassifier(n_estimators=20, n_iter_no_change=3, random_state=0)",
    "HistGradientBoostingClassifier(max_iter=20, random_state=0)",
    "HistGradientBoostingClassifier(max_iter=20, early_stopping=True, random_state=0)",
    "AdaBoostClassifier(n_estimators=20, random_state=0)",
    "BaggingClassifier(n_estimators=5, random_state=0)",
    "BaggingClassifier(KNeighborsClassifier(), n_estimators=5, max_features=0.5, random_state=0)",
    "DecisionTreeClassifier(max_depth=4, random_state=0)",
    "ExtraTreeClassifier(random_state=0)",
    "KNeighborsClassifier(7, weights='distance')",
    "KNeighborsClassifier(algorithm='kd_tree', p=1)",
    "RadiusNeighborsClassifier(radius=10.0, outlier_label='most_frequent')",
    "GaussianNB()",
    "BernoulliNB()",
    "LinearDiscriminantAnalysis()",
    "LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')",
    "QuadraticDiscriminantAnalysis(reg_param=0.1)",
    "GaussianProcessClassifier(1.0 * RBF(1.0), random_state=0)",
    "MLPClassifier((8,), max_iter=100, random_state=0)",
    "MLPClassifier((8,), early_stopping=True, random_state=0)",
    "dummy.DummyClassifier()",
    "GaussianNB(var_smoothing=1e-3)",
]
BEFORE = [  # what stands before a classifier in a pipeline
    "StandardScaler()", "MinMaxScaler()", "MaxAbsScaler()", "RobustScaler()", "Normalizer()", "Binarizer()",
    "PowerTransformer()", "QuantileTransformer(n_quantiles=20, output_distribution='normal', random_state=0)",
    "PolynomialFeatures(2)", "SplineTransformer()", "KBinsDiscretizer(4, encode='onehot', random_state=0)",
    "PCA(2, random_state=0)", "PCA(0.9, whiten=True)", "TruncatedSVD(2, random_state=0)", "FastICA(2, random_state=0)",
    "SelectKBest(f_classif, k=2)", "SelectKBest(mutual_info_classif, k=2)", "SelectPercentile(percentile=50)",
    "VarianceThreshold()", "SelectFromModel(RandomForestClassifier(10, random_state=0))",
    "RFE(LogisticRegression(), n_features_to_select=2)", "RFECV(LogisticRegression(), cv=3)",
    "SequentialFeatureSelector(LogisticRegression(), n_features_to_select=2, cv=3)", "SimpleImputer()", "KNNImputer()",
    "SimpleImputer(strategy='median', add_indicator=True)", "Nystroem(n_components=20, random_state=0)",
    "RBFSampler(n_components=20, random_state=0)", "FunctionTransformer(np.tanh)",
    "FeatureUnion([('pca', PCA(2, random_state=0)), ('raw', 'passthrough')])",
    "make_union(PCA(2, random_state=0), SelectKBest(k=1))",
    "OneHotEncoder(handle_unknown='ignore')", "OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1)",
    "TargetEncoder(random_state=0)", "StandardScaler().set_output(transform='pandas')",
]  # fmt: skip
COMPOSED = [
    "make_pipeline(SimpleImputer(), StandardScaler(), SVC(probability=True, random_state=0))",
    "Pipeline([('scale', StandardScaler()), ('model', RandomForestClassifier(10, random_state=0))])",
    "Pipeline([('scale', StandardScaler()), ('skip', 'passthrough'), ('model', GaussianNB())])",
    "CalibratedClassifierCV(LinearSVC(random_state=0), cv=3)",
    "CalibratedClassifierCV(RandomForestClassifier(10, random_state=0), method='isotonic', cv=3)",
    "CalibratedClassifierCV(RidgeClassifier(), cv=3, ensemble=False)",
    "VotingClassifier([('a', LogisticRegression()), ('b', GaussianNB())], voting='soft')",
    "VotingClassifier([('a', LogisticRegression()), ('b', GaussianNB())], voting='soft', weights=[2, 1], n_jobs=2)",
    "StackingClassifier([('a', LogisticRegression()), ('b', GaussianNB())])",
    "StackingClassifier([('a', GaussianNB())], RandomForestClassifier(10, random_state=0), cv=3, passthrough=True)",
    "GridSearchCV(LogisticRegression(), {'C': [0.1, 1, 10]}, cv=3)",
    "GridSearchCV(make_pipeline(StandardScaler(), SVC(probability=True, random_state=0)), {'svc__C': [0.1, 1]}, cv=3)",
    "GridSearchCV(LogisticRegression(), {'C': [0.1, 1]}, scoring='roc_auc_ovo', cv=StratifiedKFold(3), n_jobs=-1)",
    "RandomizedSearchCV(RandomForestClassifier(random_state=0), {'max_depth': [2, 4], 'n_estimators': [5, 10]}, "
    "n_iter=3, cv=3, random_state=0)",
    "multiclass.OneVsRestClassifier(LogisticRegression())",
    "multiclass.OneVsRestClassifier(SVC(probability=True, random_state=0), n_jobs=2)",
    "semi_supervised.SelfTrainingClassifier(LogisticRegression())",
    "semi_supervised.LabelSpreading(kernel='knn')",
    "make_pipeline(make_column_transformer((StandardScaler(), [0, 1]), remainder='passthrough'), GaussianNB())",
    "make_pipeline(ColumnTransformer([('s', StandardScaler(), [0, 1]), ('p', PCA(1), [2, 3])]), GaussianNB())",
    "make_pipeline(ColumnTransformer([('s', StandardScaler(), slice(0, 2))], remainder=MinMaxScaler()), GaussianNB())",
    "TunedThresholdClassifierCV(LogisticRegression(), cv=3, random_state=0)",
    "FixedThresholdClassifier(LogisticRegression())",
    "NuSVC(nu=0.3, probability=True, random_state=0)",
]
WHOLE = {
    "print": "print(x.shape, y[:5]); print(pd.DataFrame(x).head()); return GaussianNB().fit(x, y)",
    "warn": "import warnings; warnings.filterwarnings('ignore'); return LogisticRegression(max_iter=2).fit(x, y)",
    "warn loudly": "import warnings; warnings.warn('slow'); return LogisticRegression(max_iter=2).fit(x, y)",
    "log": "import logging; logging.basicConfig(); logging.warning('fit'); return GaussianNB().fit(x, y)",
    "time": "import time; start = time.time(); m = GaussianNB().fit(x, y); print(time.time() - start); return m",
    "fall back": """
try:
    from xgboost import XGBClassifier as Model
except ImportError:
    Model = GradientBoostingClassifier
return Model(n_estimators=10, random_state=0).fit(x, y)""",
    "frame": "return LogisticRegression().fit(pd.DataFrame(x), pd.Series(y))",
    "named frame": "d = pd.DataFrame(x, columns=[f'f{i}' for i in range(x.shape[1])]); return GaussianNB().fit(d, y)",
    "columns by type": """
columns = make_column_transformer((StandardScaler(), make_column_selector(dtype_include=np.number)))
model = make_pipeline(FunctionTransformer(pd.DataFrame), columns, LogisticRegression())
return model.fit(x, y)""",
    "columns by name": """
def name(x):
    return pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
columns = ColumnTransformer([("scale", StandardScaler(), ["f0", "f1"]), ("bin", KBinsDiscretizer(3), ["f2"])])
return make_pipeline(FunctionTransformer(name), columns, GaussianNB()).fit(x, y)""".replace(
        "KBinsDiscretizer(3)", "KBinsDiscretizer(3, encode='ordinal', random_state=0)"
    ),
    "get_dummies": """
def features(x):
    cut = [pd.cut(x[:, i], [-np.inf, -1, 0, 1, np.inf], labels=False) for i in range(x.shape[1])]
    return pd.DataFrame(np.array(cut).T).assign(total=x.sum(axis=1)).to_numpy()
return make_pipeline(FunctionTransformer(features), RandomForestClassifier(10, random_state=0)).fit(x, y)""",
    "groups": """
frame = pd.DataFrame(x).assign(y=y)
means = frame.groupby("y").mean()
print(means, frame.describe(), frame.corr())
return LogisticRegression().fit(frame[means.columns], frame["y"])""",
    "fill": """
frame = pd.DataFrame(x).fillna(0).clip(-3, 3)
return RandomForestClassifier(10, random_state=0).fit(frame.values, y)""",
    "validation": """
a, b, c, d = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
best = max((1, 5, 15), key=lambda k: KNeighborsClassifier(k).fit(a, c).score(b, d))
return KNeighborsClassifier(best).fit(x, y)""",
    "cross validation": """
models = [GaussianNB(), LogisticRegression(), DecisionTreeClassifier(random_state=0)]
scores = [cross_val_score(m, x, y, cv=3).mean() for m in models]
return models[int(np.argmax(scores))].fit(x, y)""",
    "folds": """
model = LogisticRegression()
for train, test in KFold(3, shuffle=True, random_state=0).split(x):
    print(roc_auc_score(y[test] == y.max(), model.fit(x[train], y[train]).predict_proba(x[test])[:, -1]))
return model.fit(x, y)""",
    "halving": """
from sklearn.experimental import enable_halving_search_cv
from sklearn.model_selection import HalvingGridSearchCV
return HalvingGridSearchCV(LogisticRegression(), {"C": [0.1, 1, 10]}, cv=3, random_state=0).fit(x, y)""",
    "iterative": """
from sklearn.experimental import enable_iterative_imputer
from sklearn.impute import IterativeImputer
return make_pipeline(IterativeImputer(random_state=0), LogisticRegression()).fit(x, y)""",
    "own": """
class Centroid(BaseEstimator, ClassifierMixin):
    def __init__(self, power=2.0):
        self.power = power
    def fit(self, x, y):
        self.classes_ = np.unique(y)
        self.centres_ = np.array([x[y == c].mean(axis=0) for c in self.classes_])
        return self
    def predict_proba(self, x):
        near = np.exp(-np.linalg.norm(x[:, None] - self.centres_, axis=2) ** self.power)
        return near / near.sum(axis=1, keepdims=True)
    def predict(self, x):
        return self.classes_[self.predict_proba(x).argmax(axis=1)]
return GridSearchCV(Centroid(), {"power": [1.0, 2.0]}, cv=3).fit(x, y)""",
    "own transformer": """
class Ratios(BaseEstimator, TransformerMixin):
    def fit(self, x, y=None):
        return self
    def transform(self, x):
        return np.c_[x, x[:, :1] / (np.abs(x[:, 1:]) + 1)]
return make_pipeline(Ratios(), StandardScaler(), LogisticRegression()).fit(x, y)""",
    "mean of models": """
class Mean:
    def __init__(self, models):
        self.models, self.classes_ = models, models[0].classes_
    def predict_proba(self, x):
        return np.mean([m.predict_proba(x) for m in self.models], axis=0)
return Mean([LogisticRegression().fit(x, y), RandomForestClassifier(10, random_state=0).fit(x, y)])""",
    "dataclass": """
from dataclasses import dataclass
@dataclass
class Wrapped:
    model: object
    @property
    def classes_(self):
        return self.model.classes_
    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(x)
return Wrapped(GaussianNB().fit(x, y))""",
    "by hand": """
class Softmax:
    def __init__(self, weights, classes):
        self.weights, self.classes_ = weights, classes
    def predict_proba(self, x):
        z = np.c_[x, np.ones(len(x))] @ self.weights
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)
classes, onehot = np.unique(y), np.eye(len(np.unique(y)))[np.searchsorted(np.unique(y), y)]
weights = np.zeros((x.shape[1] + 1, len(classes)))
for _ in range(50):
    weights -= 0.1 * np.c_[x, np.ones(len(x))].T @ (Softmax(weights, classes).predict_proba(x) - onehot) / len(x)
return Softmax(weights, classes)""",
    "scipy": """
from scipy import optimize, special, stats
z = (x - x.mean(axis=0)) / x.std(axis=0)
def loss(w):
    return np.logaddexp(0, -(2.0 * (y == y.max()) - 1) * (z @ w)).mean() + 0.01 * w @ w
w = optimize.minimize(loss, np.zeros(x.shape[1]), method="BFGS").x
class Logit:
    def predict_proba(self, new):
        p = special.expit(((new - x.mean(axis=0)) / x.std(axis=0)) @ w)
        rest = (1 - p)[:, None] / (len(np.unique(y)) - 1)
        return np.c_[np.repeat(rest, len(np.unique(y)) - 1, axis=1), p]
return Logit()""",
    "parallel": """
from joblib import Parallel, delayed
scores = Parallel(n_jobs=2)(delayed(cross_val_score)(GaussianNB(var_smoothing=v), x, y, cv=3) for v in (1e-9, 1e-2))
return GaussianNB(var_smoothing=[1e-9, 1e-2][int(np.argmax([s.mean() for s in scores]))]).fit(x, y)""",
    "threads": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    models = list(pool.map(lambda depth: DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x, y), (2, 4)))
return models[-1]""",
    "cores": "import os; return RandomForestClassifier(10, n_jobs=os.cpu_count() - 1, random_state=0).fit(x, y)",
    "weights": """
from sklearn.utils.class_weight import compute_sample_weight
return GradientBoostingClassifier(n_estimators=10, random_state=0).fit(x, y, compute_sample_weight("balanced", y))""",
    "encoder": "return RandomForestClassifier(10, random_state=0).fit(x, LabelEncoder().fit_transform(y))",
    "text labels": "return LogisticRegression().fit(x, y.astype(str))",
    "shifted labels": "return LogisticRegression().fit(x, y + 10)",
    "partial fit": "return GaussianNB().partial_fit(x, y, classes=np.unique(y))",
    "more classes": "return GaussianNB().partial_fit(x, y, classes=np.arange(8))",
    "warm start": """
model = RandomForestClassifier(5, warm_start=True, random_state=0).fit(x, y)
return model.set_params(n_estimators=10).fit(x, y)""",
    "clone": "from sklearn.base import clone; return clone(LogisticRegression(C=0.5)).fit(x, y)",
    "pickle": "import pickle; return pickle.loads(pickle.dumps(GaussianNB().fit(x, y)))",
    "seeded": """
rng = np.random.default_rng(0)
rows = rng.choice(len(x), len(x))
return LogisticRegression().fit(x[rows], y[rows])""",
    "seeded globally": """
import random
np.random.seed(0); random.seed(0)
return RandomForestClassifier(10).fit(x, y)""",
    "show": "m = LogisticRegression().fit(x, y); print(m, repr(m), m.get_params()); m._repr_html_(); return m",
    "limit threads": """
from threadpoolctl import threadpool_limits
with threadpool_limits(1):
    return LogisticRegression().fit(x, y)""",
    "versions": "import sklearn; sklearn.show_versions(); print(np.__version__); return GaussianNB().fit(x, y)",
    "estimators": """
from sklearn.utils import all_estimators
known = dict(all_estimators(type_filter="classifier"))
return known["GaussianNB"]().fit(x, y)""",
    "helper": """
def scaled(data, mean=x.mean(axis=0)):
    return data - mean
return make_pipeline(FunctionTransformer(scaled), LogisticRegression()).fit(x, y)""",
    "lambda": "fit = lambda a, b: GaussianNB().fit(a, b)\nreturn fit(x, y)",
    "nested": """
def tune(values):
    best, score = None, -np.inf
    for value in values:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=value))
        new = cross_val_score(model, x, y, cv=StratifiedKFold(3, shuffle=True, random_state=0)).mean()
        if new > score:
            best, score = model, new
    return best.fit(x, y)
return tune([0.01, 1.0, 100.0])""",
    "binary": """
from sklearn.preprocessing import label_binarize
print(label_binarize(y, classes=np.unique(y))[:3])
return LogisticRegression().fit(x, y)""",
    "calibrated by hand": """
model = RandomForestClassifier(10, random_state=0).fit(x, y)
class Smoothed:
    classes_ = model.classes_
    def predict_proba(self, x):
        p = model.predict_proba(x) + 0.01
        return p / p.sum(axis=1, keepdims=True)
return Smoothed()""",
    "hints": "from typing import Any\nmodel: Any = GaussianNB()\nreturn model.fit(x, y)",
    "assert": "assert x.ndim == 2 and len(x) == len(y)\nreturn GaussianNB().fit(x, y)",
    "try": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print(error)\nreturn GaussianNB().fit(x, y)",
    "in place": "x -= x.mean(axis=0)\nreturn make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)",
    "sparse": "from scipy import sparse; return LogisticRegression().fit(sparse.csr_matrix(x), y)",
    "float32": "return RandomForestClassifier(10, random_state=0).fit(x.astype(np.float32), y)",
    "memory": "return make_pipeline(StandardScaler(), GaussianNB(), memory=None).fit(x, y)",
    "best of a search": "return GridSearchCV(LogisticRegression(), {'C': [1]}, cv=3).fit(x, y).best_estimator_",
    "outliers": """
keep = IsolationForest(n_estimators=20, random_state=0).fit_predict(x) == 1
return LogisticRegression().fit(x[keep], y[keep])""",
    "clusters": """
from sklearn.cluster import KMeans
return make_pipeline(KMeans(3, n_init=2, random_state=0), LogisticRegression()).fit(x, y)""",
    "resample": """
from sklearn.utils import resample, shuffle
a, b = resample(x, y, stratify=y, random_state=0)
a, b = shuffle(a, b, random_state=1)
return GaussianNB().fit(a, b)""",
    "permutation": """
from sklearn.inspection import permutation_importance
model = LogisticRegression().fit(x, y)
keep = permutation_importance(model, x, y, n_repeats=2, random_state=0).importances_mean.argsort()[-3:]
return make_pipeline(FunctionTransformer(lambda data: data[:, keep]), LogisticRegression()).fit(x, y)""",
    "learning curve": """
sizes, train, test = learning_curve(GaussianNB(), x, y, cv=3, train_sizes=[0.5, 1.0])
print(sizes, train.mean(), validation_curve(GaussianNB(), x, y, param_name="var_smoothing", param_range=[1e-9], cv=3))
return GaussianNB().fit(x, y)""",
    "regex and json": """
import collections, functools, itertools, json, math, re, string, textwrap
print(json.dumps(dict(collections.Counter(map(int, y)))), re.sub("a", "b", "aa"), math.pi)
return GaussianNB().fit(x, y)""",
}


def programs() -> dict[str, str]:
    """Every program by its name, as a module."""
    bodies = {text: f"return {text}.fit(x, y)" for text in (*CLASSIFIERS, *COMPOSED)}
    bodies |= {text: f"return make_pipeline({text}, LogisticRegression(max_iter=200)).fit(x, y)" for text in BEFORE}
    bodies |= WHOLE
    indented = {name: "\n".join(f"    {line}" for line in body.splitlines()) for name, body in bodies.items()}
    return {name: f"{HEAD}\ndef build_model(x, y):\n{body}\n" for name, body in indented.items()}
