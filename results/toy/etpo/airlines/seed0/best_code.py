import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.tree import DecisionTreeClassifier
    model = DecisionTreeClassifier(max_depth=2)
    model.fit(x_train, y_train)
    return model
