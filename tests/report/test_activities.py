from cutlayer.report.activities import COMPUTE, NETWORK, WAIT
from cutlayer.types import Event


def test_every_activity_that_an_event_may_name_has_one_class() -> None:
    named = Event.__doc__ or ""
    assert {WAIT} | COMPUTE | NETWORK == set(named.split("one of: ")[1].rstrip(". \n").split(", "))
    assert not COMPUTE & NETWORK
