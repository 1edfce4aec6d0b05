"""training/models/outputs.py: which outputs of a model are taken, and how they become probabilities."""

import numpy as np
import pytest

from training.errors import WeightsError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global as_probabilities, keras, layers, load_file, small
    import keras
    from keras import layers

    from tests.programs.tiny_model import small
    from training.models.files import load_file
    from training.models.outputs import as_probabilities


def run(model, pixels):
    return np.asarray(model(pixels, training=False))


@pytest.mark.parametrize("as_dict", [True, False])
def test_one_of_several_outputs_is_chosen_by_its_name(tmp_path, inputs, pixels, as_dict):
    """Without --output they are named, in a list by their layers, and in a dict by its keys."""
    flat = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    colour, shape = (layers.Dense(3, activation="softmax", name=f"of_{name}")(flat) for name in ("colour", "shape"))
    names = ("colour", "shape") if as_dict else ("of_colour", "of_shape")
    model = keras.Model(inputs, {"colour": colour, "shape": shape} if as_dict else [colour, shape])
    model.save(tmp_path / "two.keras")
    with pytest.raises(WeightsError, match=rf"--output with .* Received: {names[0]} \(None, 3\), {names[1]} \(N"):
        load_file(tmp_path / "two.keras", None, 3, "none")
    with pytest.raises(WeightsError, match=f"--output of: {', '.join(names)}. Received: size"):
        load_file(tmp_path / "two.keras", None, 3, "none", output="size")
    loaded = load_file(tmp_path / "two.keras", None, 3, "none", output=names[1])
    expected = keras.Model(inputs, shape)
    np.testing.assert_allclose(run(as_probabilities(loaded, 3), pixels), run(expected, pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        (lambda a, b: {"first": [a], "second": {"x": b}}, r"head \(None, 3\), head:1 \(None, 3\)"),
        (lambda a, b: [a, b], r"head \(None, 3\), head:1 \(None, 3\)"),
    ],
)
def test_outputs_of_one_name_are_several(tmp_path, inputs, outputs, named):
    """A layer that is used twice, in a list or nested: neither is released as if it were the only one."""
    head = layers.Dense(3, activation="softmax", name="head")
    model = keras.Model(inputs, outputs(*(head(layers.Flatten()(inputs * factor)) for factor in (1, 2))))
    model.save(tmp_path / "twice.keras")
    with pytest.raises(WeightsError, match=f"model of one output, .* Received: {named}"):
        load_file(tmp_path / "twice.keras", None, 3, "none")


def sigmoid(x):
    """Return what a sigmoid layer makes of a tensor."""
    return layers.Dense(x.shape[-1], activation="sigmoid")(x)


def as_two(yes):
    """Return the probabilities of two classes, given those of the second."""
    return np.concatenate([1 - yes, yes], axis=1)


@pytest.mark.parametrize(
    ("units", "activation", "expect"),
    [
        (3, "linear", lambda outputs: keras.ops.softmax(outputs)),
        (3, "log_softmax", lambda outputs: keras.ops.exp(outputs)),
        (1, "sigmoid", as_two),
        (1, "linear", lambda outputs: as_two(keras.ops.sigmoid(outputs))),
    ],
)
def test_outputs_become_probabilities(pixels, units, activation, expect):
    """Logits get a softmax; one unit, sigmoid or linear, is the probability of the second of two classes."""
    model = small(layers.Dense(units, activation=activation))
    received = run(as_probabilities(model, max(units, 2)), pixels)
    np.testing.assert_allclose(received, expect(run(model, pixels)), atol=1e-6)


@pytest.mark.parametrize(
    "logits",
    [
        lambda x: keras.ops.log(keras.ops.softmax(x) + 1e-9),
        lambda x: 30 * layers.ReLU()(x),
        lambda x: x * sigmoid(x),
        lambda x: layers.Dense(3, activation="relu")(x) * sigmoid(x),
    ],
)
def test_what_is_made_of_others_gets_a_softmax(inputs, pixels, logits):
    """Such as logarithms of probabilities, which become these again, and logits with a limit or a gate."""
    model = keras.Model(inputs, logits(layers.Dense(3)(layers.Flatten()(inputs / 255))))
    expected = keras.ops.softmax(run(model, pixels))
    np.testing.assert_allclose(run(as_probabilities(model, 3), pixels), expected, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        *("Dense", "Activation", "Softmax", "operation", "nested", "reshaped", "weighted"),
        *("two", "normalized", "first or others"),
    ],
)
def test_probabilities_stay_as_they_are(inputs, pixels, kind):
    """A model that ends in probabilities gets no second softmax, however it says so."""
    logits = small(layers.Dense(3))(inputs)
    softmax = small(layers.Dense(3, activation="softmax"))(inputs)
    yes, several = (layers.Dense(units, activation="sigmoid")(logits) for units in (1, 3))
    outputs = {
        "Dense": lambda: layers.Dense(3, activation="softmax")(logits),
        "Activation": lambda: layers.Activation("softmax")(logits),
        "Softmax": lambda: layers.Softmax()(logits),
        "operation": lambda: keras.ops.softmax(logits),
        "nested": lambda: softmax,
        "reshaped": lambda: layers.Reshape((3,))(softmax),
        "weighted": lambda: 0.25 * softmax + 0.75 * layers.Softmax()(logits),
        "two": lambda: layers.Concatenate()([1 - yes, yes]),
        "normalized": lambda: several / keras.ops.sum(several, axis=-1, keepdims=True),
        "first or others": lambda: layers.Concatenate()([1 - yes, yes * softmax]),
    }[kind]()
    model = keras.Model(inputs, outputs)
    received = run(as_probabilities(model, outputs.shape[-1]), pixels)
    np.testing.assert_allclose(received, run(model, pixels), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kind", ["layer", "Reshape", "float32", "Average", "pooled", "wrapped", "within", "nested", "behind"]
)
def test_a_sigmoid_is_found_behind_what_changes_no_probability(inputs, pixels, kind):
    """One unit gets no second sigmoid, and several get no softmax, however deep the sigmoid is in models of models."""

    def build(units):
        yes = layers.Dense(units, activation="sigmoid")(features := layers.Flatten()(inputs / 255))
        within = [keras.Input(features.shape[1:]), layers.Dense(units, "sigmoid"), layers.Dropout(0.5)]
        outputs = {
            "layer": lambda: layers.Dense(units, layers.Activation("sigmoid"))(features),
            "Reshape": lambda: layers.Reshape((units,))(yes),
            "float32": lambda: layers.Activation("linear", dtype="float32")(yes),
            "Average": lambda: layers.Average()([yes, layers.Dense(units, "sigmoid")(features)]),
            "pooled": lambda: layers.GlobalAveragePooling2D()(layers.Conv2D(units, 1, activation="sigmoid")(inputs)),
            "wrapped": lambda: layers.Flatten()(layers.TimeDistributed(within[1])(layers.Reshape((1, -1))(features))),
            "within": lambda: keras.Sequential(within)(features),
            "nested": lambda: keras.Sequential([keras.Sequential(within), layers.Flatten()])(features),
            "behind": lambda: keras.Sequential([keras.Input((units,)), layers.Dropout(0.5)])(yes),
        }[kind]()
        return keras.Model(inputs, outputs)

    one = build(1)
    np.testing.assert_allclose(run(as_probabilities(one, 2), pixels), as_two(run(one, pixels)), rtol=1e-6, atol=1e-7)
    with pytest.raises(WeightsError, match="Received: sigmoid with 3 units"):
        as_probabilities(build(3), 3)


@pytest.mark.parametrize(
    ("units", "activation", "made", "message"),
    [
        (1, "sigmoid", lambda x: 1 - x, "Received: subtract of sigmoid"),
        (3, "sigmoid", lambda x: 1 - x, "Received: subtract of sigmoid"),
        (3, "softmax", lambda x: -keras.ops.log(x), "Received: negative of log of softmax with 3 units"),
        (3, "softmax", lambda x: 100 * x, "Received: multiply of softmax with 3 units"),
        (3, "softmax", lambda x: layers.Concatenate()([x, x]), "Received: softmax with 6 units, which do not sum to 1"),
        (3, "softmax", lambda x: layers.Concatenate()([x, sigmoid(x)]), "sigmoid and softmax in one concatenate"),
        (3, "relu", lambda x: layers.Concatenate()([x, sigmoid(x)]), "relu and sigmoid in one concatenate with 6"),
        (3, "linear", lambda x: layers.Average()([x, sigmoid(x)]), "linear and sigmoid in one average with 3"),
        (3, "softmax", lambda x: x * sigmoid(x), "sigmoid and softmax in one multiply with 3"),
        (3, "softmax", lambda x: (x + sigmoid(x)) / 2, "truedivide of sigmoid and softmax in one add with 3"),
        (3, "softmax", lambda x: layers.Average()([layers.Dense(3)(x), 2 * x * sigmoid(x)]), "linear and multiply of"),
    ],
)
def test_what_is_made_of_probabilities_is_refused(inputs, units, activation, made, message):
    """Nothing tells whether they are probabilities still, such as one less a sigmoid, or no more."""
    outputs = made(layers.Dense(units, activation=activation)(layers.Flatten()(inputs / 255)))
    with pytest.raises(WeightsError, match=message):
        as_probabilities(keras.Model(inputs, outputs), max(outputs.shape[-1], 2))


@pytest.mark.parametrize(
    ("units", "activation", "classes", "message"),
    [
        (3, "sigmoid", 3, "one class an image. Received: sigmoid with 3 units"),
        (3, "relu", 3, "Received: relu with 3 units"),
        (1, "tanh", 2, "Received: tanh"),
        (3, "softmax", 4, "as many classes as the model has outputs, 3. Received: 4"),
        (1, "sigmoid", 1, "as many classes as the model has outputs, 2. Received: 1"),
    ],
)
def test_outputs_that_are_no_choice_among_the_classes_are_refused(units, activation, classes, message):
    """Several independent answers, other activations, and another number of classes."""
    with pytest.raises(WeightsError, match=message):
        as_probabilities(small(layers.Dense(units, activation=activation)), classes)


@pytest.mark.parametrize("name", ["pixels", "rescale", "probabilities"])
def test_a_model_may_have_the_name_of_a_layer_around_it(inputs, pixels, name):
    """Which has a name of its own; the model keeps its name for the contract."""
    from training.models.catalogue import with_preprocessing

    model = with_preprocessing(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)), name=name), "0-1")
    np.testing.assert_allclose(run(as_probabilities(model, 3), pixels).sum(axis=1), 1, rtol=1e-6)
    assert model.name == name


def test_outputs_that_are_no_classes_are_refused(inputs):
    """A feature map is not an answer."""
    with pytest.raises(WeightsError, match=r"class outputs \(n, 3\). Received: \(None, 14, 14, 3\)"):
        as_probabilities(keras.Model(inputs, layers.Conv2D(3, 3)(inputs)), 3)
