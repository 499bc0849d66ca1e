import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    model = make_pipeline(MinMaxScaler(), ExtraTreesClassifier()).fit(x_train, y_train)
    return model
