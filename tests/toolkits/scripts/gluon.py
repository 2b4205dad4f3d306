"""As `generic`, for the MXNet toolkit: its own handlers of a Gluon block read and answer."""

import mxnet as mx


def model_fn(model_dir):
    net = mx.gluon.nn.Dense(2, in_units=3, weight_initializer=mx.init.One())
    net.initialize()
    return net
