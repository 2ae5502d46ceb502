"""The transition table: every step that a connection can take, and every misuse told how to do it right."""

from itertools import product

import pytest

from microws.state import Action, State, step

ALLOWED = {
    (State.CONNECTING, Action.ACCEPT): State.OPEN,
    (State.CONNECTING, Action.REJECT): State.CLOSING,
    (State.CONNECTING, Action.CLOSE): State.CLOSING,
    (State.OPEN, Action.CLOSE): State.CLOSING,
    (State.CLOSING, Action.CLOSE): State.CLOSING,
    (State.CLOSED, Action.CLOSE): State.CLOSED,
    **{(state, Action.DISCONNECT): State.CLOSED for state in State},
}


@pytest.mark.parametrize(("state", "action"), list(product(State, Action)))
def test_each_step_leads_where_the_table_says_or_says_what_to_do_instead(state, action):
    if (state, action) in ALLOWED:
        assert step(state, action) is ALLOWED[state, action]
    else:
        with pytest.raises(RuntimeError, match=r"this WebSocket (is|has)"):
            step(state, action)


@pytest.mark.parametrize("action", Action)
def test_nothing_leads_out_of_the_end(action):
    reached, before = {State.CLOSED}, set()
    while reached != before:
        before = set(reached)
        reached |= {ALLOWED[state, action] for state in before if (state, action) in ALLOWED}
    assert reached == {State.CLOSED}
