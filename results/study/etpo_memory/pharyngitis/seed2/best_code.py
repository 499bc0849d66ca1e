import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    model = make_pipeline(MinMaxScaler(), LinearDiscriminantAnalysis(solver='lsqr', shrinkage=0.2))
    model.fit(x_train, y_train)
    return model
