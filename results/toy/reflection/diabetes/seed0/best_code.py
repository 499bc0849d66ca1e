import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import RidgeClassifier
    model = CalibratedClassifierCV(RidgeClassifier(class_weight='balanced'))
    model.fit(x_train, y_train)
    return model
