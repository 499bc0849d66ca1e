import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.naive_bayes import BernoulliNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    model = make_pipeline(StandardScaler(), BernoulliNB(alpha=0.0, force_alpha=False)).fit(x_train, y_train)
    return model
