import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis())
    model.fit(x_train, y_train)
    return model
