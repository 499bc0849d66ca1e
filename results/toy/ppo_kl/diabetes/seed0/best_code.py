import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import LinearSVC
    model = CalibratedClassifierCV(LinearSVC(penalty='l1'))
    model.fit(x_train, y_train)
    return model
