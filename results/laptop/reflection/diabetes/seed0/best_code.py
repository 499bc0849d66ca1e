import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.svm import SVC
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    model = make_pipeline(MinMaxScaler(), SVC(probability=True, gamma=1.0))
    model.fit(x_train, y_train)
    return model
