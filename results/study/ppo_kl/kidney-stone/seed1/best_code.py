import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import RobustScaler
    from sklearn.svm import LinearSVC
    model = make_pipeline(RobustScaler(), ExtraTreesClassifier())
    model.fit(x_train, y_train)
    return model
