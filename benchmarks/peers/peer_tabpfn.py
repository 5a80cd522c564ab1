"""TabPFN on timm's pooled features, as its README has it. Its weights are no part of its package: it fetches them."""

from __future__ import annotations

from tabpfn import TabPFNClassifier

from peers.contract import given
from peers.lite0 import features

task = given()
classifier = TabPFNClassifier(random_state=task.seed, ignore_pretraining_limits=True)
classifier.fit(features(task.weights, task.train), task.labels)
task.write(classifier.predict_proba(features(task.weights, task.test)), classifier.classes_)
