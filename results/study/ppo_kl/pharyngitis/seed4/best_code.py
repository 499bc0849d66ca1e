import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import RobustScaler
    model = make_pipeline(RobustScaler(), NearestCentroid())
    model.fit(x_train, y_train)
    return model
