import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.svm import SVC
    model = SVC(max_iter=50000, probability=True)
    model.fit(x_train, y_train)
    return model
