"""Keras 3 on torch, by its guide to transfer learning: 20 epochs of the head, then 10 of the whole network at 1e-5.

Keras fetches the weights of its own networks. This one is timm's with the given weights, as a Keras layer
(`TorchModuleWrapper`), so that all peers start from the same; with the guide's flips, rotations, dropout and batches.
"""

from __future__ import annotations

import os

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; timm imports it)

os.environ["KERAS_BACKEND"] = "torch"

import keras
from torch.utils.data import DataLoader

from peers.contract import given
from peers.lite0 import Images, network, squashed

task = given()
keras.utils.set_random_seed(task.seed)
keras.config.set_image_data_format("channels_first")
backbone = network(task.weights)
base = keras.layers.TorchModuleWrapper(backbone, output_shape=(None, backbone.num_features))
base.trainable = False
inputs = keras.Input((3, 224, 224))
changed = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip("horizontal")(inputs))
kept = keras.layers.Dropout(0.2)(base(changed, training=False))
model = keras.Model(inputs, keras.layers.Dense(len(task.classes))(kept))
loader = DataLoader(Images(task.train, task.targets, squashed(backbone)), 32, shuffle=True, num_workers=2)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
for trainable, rate, epochs in ((False, 1e-3, 20), (True, 1e-5, 10)):
    base.trainable = trainable
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss)
    model.fit(loader, epochs=epochs, verbose=2)
logits = model.predict(DataLoader(Images(task.test, (), squashed(backbone)), 32, num_workers=2), verbose=2)
task.write(keras.ops.convert_to_numpy(keras.ops.softmax(logits)))
