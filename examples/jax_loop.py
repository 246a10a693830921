"""A JAX training loop on a bundle's stream.

    pip install 'dim-distill[cpu]' jax
    python examples/jax_loop.py [BUNDLE]

On a GPU, `stream(..., output="dlpack")` and `jax.dlpack.from_dlpack(images)` hand every batch over without a copy.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from dim.runtime import open_bundle

Parameters = dict[str, jax.Array]


def initial(pixels: int, hidden: int, num_classes: int) -> Parameters:
    """Make the weights of a network with one hidden layer."""
    keys = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(keys[0], (pixels, hidden)) / np.sqrt(pixels),
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(keys[1], (hidden, num_classes)) / np.sqrt(hidden),
        "b2": jnp.zeros(num_classes),
    }


def loss_of(parameters: Parameters, images_NHWC: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Return the mean cross entropy; the images arrive as uint8 and are scaled on the device."""
    flat = images_NHWC.reshape(len(images_NHWC), -1).astype(jnp.float32) / 255
    logits = jax.nn.relu(flat @ parameters["w1"] + parameters["b1"]) @ parameters["w2"] + parameters["b2"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels_N[:, None], axis=1))


@jax.jit
def step(
    parameters: Parameters, images_NHWC: jax.Array, labels_N: jax.Array, rate: float
) -> tuple[Parameters, jax.Array]:
    """Take one step of gradient descent."""
    loss, gradients = jax.value_and_grad(loss_of)(parameters, images_NHWC, labels_N)
    return jax.tree.map(lambda weight, gradient: weight - rate * gradient, parameters, gradients), loss


def main() -> None:
    """Train on fresh images and print the loss as it falls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="a bundle; the default bundle if left out")
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()

    with open_bundle(arguments.bundle, device="cpu") as bundle:
        m = bundle.manifest
        parameters = initial(m.height * m.width * m.channels, 128, len(m.classes))
        losses = []
        # A batch size that divides the epoch keeps every batch of one shape, so that JAX compiles once.
        for images, labels in bundle.stream(ipc=10, batch_size=10 * len(m.classes), seed=0, epochs=arguments.epochs):
            parameters, loss = step(parameters, jnp.asarray(images), jnp.asarray(labels), 0.2)
            losses.append(float(loss))
            if len(losses) % max(1, arguments.epochs // 5) == 0:
                print(f"step {len(losses):>5}: loss {np.mean(losses[-10:]):.3f}")


if __name__ == "__main__":
    main()
