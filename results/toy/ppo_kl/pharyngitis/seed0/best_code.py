import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.neighbors import NearestCentroid
    model = NearestCentroid(shrink_threshold=0.1)
    model.fit(x_train, y_train)
    return model
