import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from sklearn.pipeline import make_pipeline
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001))
    model.fit(x_train, y_train)
    return model
