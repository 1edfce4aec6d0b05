"""training/release/commands.py: options of the commands that release."""

import pytest

from training.__main__ import main

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weights imagenet --architecture efficientnet-lite0 --size 160", "no --size with --weights imagenet"),
        ("--weights none --architecture plain-cnn --filter box --crop 0.9", "no --filter nor --crop with --weights"),
        ("--weights imagenet --architecture VGG16 --classes c.txt", "no --classes with ImageNet weights"),
        ("--run runs/a --architecture VGG16", "no --architecture with a run"),
        ("--run runs/a --int8-drop 0.1", "no --int8-drop without --photos"),
        ("--run runs/a --photos p --margin 0.1", "no --margin without --refuse-if-worse"),
        ("--run runs/a --photos p --refuse-if-worse --replace-classes", "no --replace-classes with --refuse-if-worse"),
    ],
)
def test_options_that_would_change_nothing_are_refused(options, message, capsys):
    """Whoever gives one expects that it does."""
    assert main(["export", "--name", "m", *options.split()]) == 1
    assert f"Expected {message}" in capsys.readouterr().err


@pytest.mark.parametrize("drop", ["0.01", "0"])
def test_a_first_version_has_no_limit_for_int8(capsys, drop):
    """As it has no int8 file; this is said before photos are looked for."""
    assert main(["train", "photos", "--name", "m", "--first-only", "--int8-drop", drop]) == 1
    assert "Expected no --int8-drop with --first-only, which makes no int8 file\n" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--margin=nan", "--margin=1", "--int8-drop=-0.01", "--int8-drop=half"])
def test_a_loss_that_is_none_or_accepts_any_model_is_refused(option, capsys):
    """A typo must not turn the comparison off."""
    with pytest.raises(SystemExit):
        main(["export", "--name", "m", "--run", "r", "--photos", "p", "--refuse-if-worse", option])
    assert f"such as 0.01 for one point. Received: {option.partition('=')[2]!r}." in capsys.readouterr().err
