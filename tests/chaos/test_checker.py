"""The checker of the schedules finds each fault, and nothing else."""

import pytest
from checker import check
from member import END

# The log of topic "t": positions "<offset>-<place>.<publisher>.<number>", and the end.
END_PLACE = 99


def at(place, nonce=1):
    return f"{place:x}-{place:x}.{nonce:x}.{place:x}"


def text(number, publisher="p", time=0.0):
    return f"{publisher}.{number} {time:.6f}"


def sent(number, topic="t", **options):
    return ["sent", topic, text(number, **options)]


def ack(number, *, nonce=1, time=1.0, position=None, topic="t", **options):
    return ["ack", topic, text(number, **options), at(number, nonce) if position is None else position, time]


def begin(since=None, recovered=None, position="0-0.1", time=0.0, topic="t"):
    return ["begin", "r", topic, since, recovered, position, time]


def got(number, *, nonce=1, time=1.0, place=None, **options):
    return ["got", "r", "t", text(number, **options), at(place or number, nonce), time]


def told(time=1.0, topic="t"):
    return ["told", "r", topic, time]


def end(time=9.0):
    return ["got", "r", "t", END, at(END_PLACE), time]


def plain(number, time=0.0):
    return ["got", "r", "plain", END if number is None else text(number, time=time), None, 1.0]


LEAVE = ["end", "r", "t"]
PUBLISHED = [record for number in (1, 2, 3) for record in (sent(number), ack(number))]
PLAIN = [
    record for number in (1, 2, 3)
    for record in (sent(number, topic="plain", time=number), ["ack", "plain", text(number, time=number), None, 1.0])
]  # fmt: skip
PLAIN_BEGIN = begin(position=None, topic="plain")

RIGHT = {
    "all": [begin(), got(1), got(2), got(3), end()],
    "a hole with a mark": [begin(), got(1), told(), got(3), end()],
    "resumed": [begin(), got(1), LEAVE, begin(at(1), True, at(3)), got(2), got(3), end()],
    "not resumed, and told": [begin(), got(1), LEAVE, begin(at(1), False, at(2)), got(3), end()],
}  # fmt: skip
WRONG = {
    "misses": [begin(), got(1), got(3), end()],
    "misses 1 before 'the end": [begin(), got(1), got(2), end()],
    "twice": [begin(), got(1), got(1), got(2), got(3), end()],
    "out of order": [begin(), told(), got(2), got(1), got(3), end()],
    "not got to the end": [begin(), got(1), got(2), got(3)],
    "misses 1": [begin(), got(1), LEAVE, begin(at(1), True, at(3)), got(3), end()],
    "two messages at": [begin(), got(1), got(2), ["got", "r", "t", text(4), at(3), 1.0], end()],
    "twice in the log": [begin(), got(1), got(2), got(3), got(3, place=4), end()],
    "at one place": [begin(), got(1), got(2), got(3), got(4, nonce=2, place=3), end()],
}  # fmt: skip
# Messages 2 and 3 were lost after 2 s; 4 and 5 took their places, and 3 was published again.
SECOND = [sent(4), sent(5), *PUBLISHED]
AGAIN = [got(4, nonce=2, place=2, time=3), got(3, nonce=2, place=3, time=3), end()]
RIGHT_ERAS = {
    "told": [begin(), got(1), got(2), got(3), told(2.5), *AGAIN],
    "had not got what was lost": [begin(), got(1), *AGAIN],
    "came back before it": [begin(), LEAVE, begin(at(1), True, at(1), 3.0), *AGAIN],
    "came back to an empty log": [begin(), got(1), LEAVE, begin(at(1), False, "0-0.2", 3.0), *AGAIN],
}
WRONG_ERAS = {
    "not told": [begin(), got(1), got(2), got(3), *AGAIN],
    "recovered from what was lost": [begin(), got(1), got(2), LEAVE, begin(at(2), True, at(3), 3.0), *AGAIN],
    "misses one of the second": [begin(), got(1), *AGAIN[1:]],
}  # fmt: skip
RIGHT_PLAIN = {
    "all": [PLAIN_BEGIN, plain(1, 1), plain(2, 2), plain(3, 3), plain(None)],
    "a mark after the loss": [PLAIN_BEGIN, plain(1, 1), told(2.5, "plain"), plain(3, 3), plain(None)],
}
WRONG_PLAIN = {
    "misses": [PLAIN_BEGIN, plain(1, 1), plain(3, 3), plain(None)],
    "misses .3.": [PLAIN_BEGIN, plain(1, 1), plain(2, 2), plain(None)],
    "misses .2.": [PLAIN_BEGIN, plain(1, 1), told(1.5, "plain"), plain(3, 3), plain(None)],
    "twice": [PLAIN_BEGIN, plain(1, 1), plain(1, 1), plain(2, 2), plain(3, 3), plain(None)],
    "out of order": [PLAIN_BEGIN, told(9, "plain"), plain(2, 2), plain(1, 1), plain(3, 3), plain(None)],
    "not got to the end": [PLAIN_BEGIN, plain(1, 1), plain(2, 2), plain(3, 3)],
}


def checked(records, published, eras=()):
    return check({"p": published, "m": records}, {"m"}, eras)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name):
    found = checked(RIGHT[name], PUBLISHED)
    assert found.sent == found.acknowledged == 3
    assert found.told == name.startswith("a hole")
    assert found.resumed == name.endswith(("resumed", "and told"))
    assert found.recovered == (name == "resumed")


@pytest.mark.parametrize("expected", WRONG)
def test_each_fault_is_found(expected):
    with pytest.raises(AssertionError, match=expected):
        checked(WRONG[expected], [*PUBLISHED, sent(4)])


def test_a_refused_message_is_delivered_to_nobody():
    refused = [*PUBLISHED[:-1], ["failed", "t", text(3), "HubUnavailable", 0.1]]
    assert checked([*RIGHT["all"][:-2], end()], refused).failures == [("HubUnavailable", 0.1)]
    with pytest.raises(AssertionError):
        checked(RIGHT["all"], refused)


def test_an_acknowledged_message_is_in_the_log():
    with pytest.raises(AssertionError):
        checked(RIGHT["all"], [*PUBLISHED, sent(4), ["ack", "t", text(4), None, 1.0]])


@pytest.mark.parametrize("name", RIGHT_ERAS)
def test_a_log_may_lose_its_end(name):
    assert checked(RIGHT_ERAS[name], SECOND, [2.0]).repeated == (name == "told")


@pytest.mark.parametrize("name", WRONG_ERAS)
def test_a_reader_that_is_not_told_of_a_lost_end_is_found(name):
    with pytest.raises(AssertionError, match="misses"):
        checked(WRONG_ERAS[name], SECOND, [2.0])


@pytest.mark.parametrize("name", RIGHT_PLAIN)
def test_a_topic_without_history_is_right(name):
    assert checked(RIGHT_PLAIN[name], PLAIN).delivered == len(RIGHT_PLAIN[name]) - 1 - (name != "all")


def test_a_message_without_history_comes_again_only_after_a_lost_end():
    begin, first, second, third, last = RIGHT_PLAIN["all"]
    records = [begin, first, second, told(2.5, "plain"), second, third, last]
    assert checked(records, PLAIN, [2.0]).repeated == 1
    with pytest.raises(AssertionError, match="twice"):
        checked(records, PLAIN)
    with pytest.raises(AssertionError, match="was not told"):
        checked([record for record in records if record[0] != "told"], PLAIN, [2.0])


@pytest.mark.parametrize("expected", WRONG_PLAIN)
def test_a_fault_of_a_topic_without_history_is_found(expected):
    with pytest.raises(AssertionError, match=expected):
        checked(WRONG_PLAIN[expected], PLAIN)


def test_two_orders_of_a_topic_without_history_are_found():
    other = sent(1, publisher="q", topic="plain")
    first = [
        PLAIN_BEGIN,
        plain(1, 1),
        ["got", "r", "plain", other[2], None, 1.0],
        plain(2, 2),
        plain(3, 3),
        plain(None),
    ]
    second = [first[0], first[2], first[1], *first[3:]]
    records = {"p": [*PLAIN, other], "m": first, "n": first}
    assert check(records, {"m", "n"}).delivered == 10
    with pytest.raises(AssertionError):
        check(records | {"n": second}, {"m", "n"})
