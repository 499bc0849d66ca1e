import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.tree import ExtraTreeClassifier
    model = GradientBoostingClassifier(n_estimators=100, max_features=2)
    model.fit(x_train, y_train)
    return model
