import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.ensemble import BaggingClassifier
    from sklearn.svm import SVC
    model = BaggingClassifier(SVC(kernel='linear', probability=True))
    model.fit(x_train, y_train)
    return model
