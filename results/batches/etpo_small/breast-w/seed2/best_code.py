import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.neighbors import KNeighborsClassifier
    model = KNeighborsClassifier(n_neighbors=5).fit(x_train, y_train)
    return model
