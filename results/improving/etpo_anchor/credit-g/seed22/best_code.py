import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    model = LinearDiscriminantAnalysis(solver='svd')
    model.fit(x_train, y_train)
    return model
