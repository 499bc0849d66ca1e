import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.neural_network import MLPClassifier
    model = MLPClassifier(solver='lbfgs')
    model.fit(x_train, y_train)
    return model
