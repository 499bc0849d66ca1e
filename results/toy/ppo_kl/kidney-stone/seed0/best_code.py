import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.linear_model import LogisticRegression
    model = LogisticRegression(C=10.0).fit(x_train, y_train)
    return model
