import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.svm import SVC
    model = SVC(kernel='linear', probability=True).fit(x_train, y_train)
    return model
