"""Stages `tune` and `train`: tries regularisations by cross-validation, each try an execution, then trains the clinic's model."""

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cmf_agent as cmf

PIPELINE = "tumour-screening"


def load(path):
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def model(strength):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))


data, labels = load("data/train.csv")
scores = {}
folds = list(StratifiedKFold(5, shuffle=True, random_state=1).split(data, labels))
for strength in np.geomspace(0.001, 10, 60).round(5):
    for number, (inside, outside) in enumerate(folds):
        with cmf.run(PIPELINE, "tune", params={"C": float(strength), "fold": number}) as run:
            run.input("data/train.csv")
            tried = model(strength).fit(data[inside], labels[inside])
            run.metric("auc", roc_auc_score(labels[outside], tried.decision_function(data[outside])))
            run.metric("accuracy", tried.score(data[outside], labels[outside]))
            scores.setdefault(float(strength), []).append(tried.score(data[outside], labels[outside]))

best = max(scores, key=lambda strength: np.mean(scores[strength]))
with cmf.run(PIPELINE, "train", params={"C": best, "rows": len(data)}) as run:
    run.input("data/train.csv")
    run.input("data/test.csv")
    trained = model(best).fit(data, labels)
    test, truth = load("data/test.csv")
    run.metric("auc", roc_auc_score(truth, trained.decision_function(test)))
    run.metric("accuracy", trained.score(test, truth))
    joblib.dump({"pipeline": trained, "rows": len(data)}, "model.joblib")
    run.output("model.joblib", kind="model")
print(f"trained with C={best} after {len(scores)} regularisations on {len(folds)} folds")
