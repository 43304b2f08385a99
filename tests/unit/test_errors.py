import pickle

import pytest

from strive import errors


def all_errors() -> list[type[errors.StriveError]]:
    found = [errors.StriveError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return found[1:]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_pickles_and_refines_a_builtin(kind: type[errors.StriveError]) -> None:
    # Errors cross process borders (decode workers, launchers).
    error = pickle.loads(pickle.dumps(kind("kind", "what went wrong")))
    assert type(error) is kind
    assert "what went wrong" in str(error)
    builtins = {base for base in kind.__mro__ if base.__module__ == "builtins"}
    assert builtins - {object, BaseException, Exception}
    assert kind.exit_code in {1, 2, 130}


def test_unknown_name_offers_the_nearest() -> None:
    error = errors.unknown_name("scorer", "siglp2", ["siglip2", "random"])
    assert str(error) == "unknown scorer 'siglp2' (did you mean 'siglip2'?); known: random, siglip2"


def test_unknown_name_without_a_near_one_lists_all() -> None:
    assert str(errors.unknown_name("kind", "zzz", ["b", "a"])) == "unknown kind 'zzz'; known: a, b"
