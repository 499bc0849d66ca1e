import numpy as np


def build_model(x_train: np.ndarray, y_train: np.ndarray):
    from sklearn.naive_bayes import BernoulliNB
    model = BernoulliNB(alpha=0, force_alpha=False)
    model.fit(x_train, y_train)
    return model
