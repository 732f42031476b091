"""Headers that a problem carries besides its body."""

import msgspec

from overlayd.model.errors import LimitReached, Rate
from overlayd.net.problem import plain_answer, problem_body, problem_headers


def test_a_rate_is_told_in_headers_only() -> None:
    """A rate gives quota, window, what is left and when it begins anew; the body has no members for it."""
    error = LimitReached("600 a minute", retry_after_s=16.2).with_rate(Rate("auto_create_per_minute", 600, 60, 0, 16.2))
    headers = dict(problem_headers(error))
    assert headers["retry-after"] == "17"
    assert headers["ratelimit-policy"] == '"auto_create_per_minute";q=600;w=60'
    assert headers["ratelimit"] == '"auto_create_per_minute";r=0;t=17'
    bare = msgspec.json.decode(problem_body(LimitReached("600 a minute"), "r-1"))
    assert msgspec.json.decode(problem_body(error, "r-1")) == bare
    assert b'\r\nratelimit: "auto_create_per_minute";r=0;t=17\r\n' in plain_answer(error, "r-1")


def test_a_cap_has_no_rate() -> None:
    """What only has a bound says when to come back, and nothing of a window."""
    headers = dict(problem_headers(LimitReached("10000 sessions are open", subject="sessions_max", retry_after_s=5)))
    assert headers["retry-after"] == "5"
    assert not [name for name in headers if name.startswith("ratelimit")]
