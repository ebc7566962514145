"""What the package exports is what it says it exports."""

from __future__ import annotations

import inspect

import sinch_conv_async


def test_all_is_sorted_and_has_no_name_twice():
    names = sinch_conv_async.__all__
    assert names == sorted(set(names))


def test_every_name_in_all_is_there():
    for name in sinch_conv_async.__all__:
        assert getattr(sinch_conv_async, name) is not None


def test_every_public_name_is_in_all():
    public = {
        name
        for name, value in vars(sinch_conv_async).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(sinch_conv_async.__all__) - {"__version__"}


def test_every_public_class_and_function_says_what_it_is():
    for name in sinch_conv_async.__all__:
        value = getattr(sinch_conv_async, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_every_error_belongs_to_the_one_tree():
    for name in sinch_conv_async.__all__:
        value = getattr(sinch_conv_async, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, sinch_conv_async.SinchError)
