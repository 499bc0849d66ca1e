import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import SVC
    model = OneVsRestClassifier(SVC(probability=True))
    model.fit(x_train, y_train)
    return model
