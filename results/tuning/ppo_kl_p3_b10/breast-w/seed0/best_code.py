import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import RobustScaler
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    model = make_pipeline(RobustScaler(), LinearDiscriminantAnalysis(solver='eigen', shrinkage='auto'))
    model.fit(x_train, y_train)
    return model
