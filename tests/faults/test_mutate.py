"""The mutators and the observer of ``tests.faults.mutate`` themselves."""

import json
import random
import sys
import time

import pytest

from tests.faults.mutate import mutate_bytes, mutate_text, mutate_tree, observe

TREE = {"a": 1, "b": [1, {"c": "text"}], "d": {"e": 0.5}}


def test_mutations_follow_from_the_seed_and_leave_the_input_alone():
    before = json.dumps(TREE)
    for mutate, value in ((mutate_tree, TREE), (mutate_text, before), (mutate_bytes, before.encode())):
        made = [[mutate(value, random.Random(seed)) for seed in range(200)] for _ in range(2)]
        assert repr(made[0]) == repr(made[1])
        assert len({what for what, _ in made[0]}) > 30
    assert json.dumps(TREE) == before


def say(text, code):
    def call():
        print(text, file=sys.stderr)
        sys.exit(code)

    return call


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: None, "accepted"),
        (say("error: a.json: no", 2), "refused"),
        (say("error: a.json:\nno", 2), "lines"),
        (say("error: a.json: no", 1), "lines"),
        (lambda: 1 / 0, "traceback"),
        (lambda: time.sleep(5), "hang"),
    ],
)
def test_endings_are_told_apart(call, kind):
    assert observe(call, seconds=0.3).kind == kind
