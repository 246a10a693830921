/**
 * A small classifier: one hidden layer, ReLU, softmax, Adam. Pixels that are 0 are skipped, which most of a digit are.
 */

import { boxMuller, philox } from "./dim/index.js";

const [BETA1, BETA2, EPSILON] = [0.9, 0.999, 1e-8];

export class Classifier {
  /**
   * @param {number} inputs pixels of an image
   * @param {number} hidden units
   * @param {number} classes
   * @param {number} [learningRate]
   */
  constructor(inputs, hidden, classes, learningRate = 1e-3) {
    Object.assign(this, { inputs, hidden, classes, learningRate, steps: 0 });
    this.parameters = [
      normals(inputs * hidden, Math.sqrt(2 / inputs), 0),
      new Float32Array(hidden),
      normals(hidden * classes, Math.sqrt(2 / hidden), 1),
      new Float32Array(classes),
    ];
    const zeros = () => this.parameters.map((values) => new Float32Array(values.length));
    [this.gradients, this.means, this.squares] = [zeros(), zeros(), zeros()];
  }

  /**
   * Take one step of training.
   * @param {Uint8Array} images N * inputs bytes
   * @param {ArrayLike<number>} labels of N images
   * @returns {number} the mean cross-entropy
   */
  train(images, labels) {
    const { inputs, hidden, classes, gradients } = this;
    const [, , weights2] = this.parameters;
    for (const gradient of gradients) gradient.fill(0);
    const [gradient1, gradientBias1, gradient2, gradientBias2] = gradients;
    const back = new Float32Array(hidden);
    let loss = 0;
    for (let n = 0; n < labels.length; n++) {
      const image = images.subarray(n * inputs, (n + 1) * inputs);
      const { active, scores } = this.#forward(image);
      loss -= Math.log(Math.max(scores[labels[n]], 1e-12)) / labels.length;
      scores[labels[n]] -= 1;
      back.fill(0);
      for (let k = 0; k < classes; k++) {
        const error = scores[k] / labels.length;
        gradientBias2[k] += error;
        for (let j = 0; j < hidden; j++) {
          gradient2[k * hidden + j] += error * active[j];
          if (active[j] > 0) back[j] += error * weights2[k * hidden + j];
        }
      }
      for (let j = 0; j < hidden; j++) gradientBias1[j] += back[j];
      for (let p = 0; p < inputs; p++) {
        if (image[p] === 0) continue;
        const value = image[p] / 255;
        for (let j = 0, at = p * hidden; j < hidden; j++) gradient1[at + j] += value * back[j];
      }
    }
    this.#update();
    return loss;
  }

  /**
   * The most likely class of images.
   * @param {Uint8Array} images N * inputs bytes
   * @returns {Int32Array} N labels
   */
  predict(images) {
    const labels = new Int32Array(images.length / this.inputs);
    for (let n = 0; n < labels.length; n++) {
      const { scores } = this.#forward(images.subarray(n * this.inputs, (n + 1) * this.inputs));
      labels[n] = scores.indexOf(Math.max(...scores));
    }
    return labels;
  }

  #forward(image) {
    const { inputs, hidden, classes } = this;
    const [weights1, bias1, weights2, bias2] = this.parameters;
    const active = Float32Array.from(bias1);
    for (let p = 0; p < inputs; p++) {
      if (image[p] === 0) continue;
      const value = image[p] / 255;
      for (let j = 0, at = p * hidden; j < hidden; j++) active[j] += value * weights1[at + j];
    }
    for (let j = 0; j < hidden; j++) if (active[j] < 0) active[j] = 0;
    const scores = Float32Array.from(bias2);
    for (let k = 0; k < classes; k++) {
      for (let j = 0, at = k * hidden; j < hidden; j++) scores[k] += active[j] * weights2[at + j];
    }
    const highest = Math.max(...scores);
    let sum = 0;
    for (let k = 0; k < classes; k++) sum += scores[k] = Math.exp(scores[k] - highest);
    for (let k = 0; k < classes; k++) scores[k] /= sum;
    return { active, scores };
  }

  #update() {
    this.steps += 1;
    const rate = (this.learningRate * Math.sqrt(1 - BETA2 ** this.steps)) / (1 - BETA1 ** this.steps);
    this.parameters.forEach((values, part) => {
      const [gradient, mean, square] = [this.gradients[part], this.means[part], this.squares[part]];
      for (let i = 0; i < values.length; i++) {
        mean[i] += (1 - BETA1) * (gradient[i] - mean[i]);
        square[i] += (1 - BETA2) * (gradient[i] ** 2 - square[i]);
        values[i] -= (rate * mean[i]) / (Math.sqrt(square[i]) + EPSILON);
      }
    });
  }
}

/** Normal numbers from the stream that the sampling contract leaves free, so every start is the same. */
function normals(length, std, layer) {
  const values = new Float32Array(length);
  const words = new Uint32Array(4);
  for (let i = 0; i < length; i += 2) {
    philox([0, 0], [i / 2, 2, layer, 0], words);
    const [first, second] = boxMuller(words[0], words[1]);
    values[i] = first * std;
    if (i + 1 < length) values[i + 1] = second * std;
  }
  return values;
}
