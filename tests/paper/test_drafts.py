from etpo_paper.model.drafts import LEAST, LONGEST, REMEMBERED, Drafts


def test_without_a_memory_there_is_no_guess():
    assert Drafts().guess([], 5) == []


def test_what_followed_last_time_is_guessed_as_long_as_it_is_likely():
    drafts = Drafts()
    drafts.observe([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5)])
    # After (1, 2, 3) four was seen twice in three times: 3/3.5 for each of the first tokens, then 2/3.5 for the last.
    assert (3 / 3.5) ** 3 * 2 / 3.5 < LEAST < (3 / 3.5) ** 3
    assert drafts.guess([], 9) == [1, 2, 3] and drafts.guess([1, 2, 3], 9) == [4]
    assert drafts.guess([], 2) == [1, 2] and drafts.guess([], 0) == drafts.guess([], -1) == []


def test_the_longest_context_that_was_seen_decides():
    drafts = Drafts()
    drafts.observe([(1, 2, 3, 4, 5, 6), (9, 2, 3, 4, 7, 8), (9, 2, 3, 4, 7, 8)])
    assert drafts.guess([1, 2, 3, 4], 1) == [5]  # from its beginning, though after 2 3 4 came 7 more often
    assert drafts.guess([0, 0, 0, 0, 0, 2, 3, 4], 1) == [7]


def test_a_guess_is_no_longer_than_it_pays():
    drafts = Drafts()
    drafts.observe([tuple(range(100))] * REMEMBERED)
    assert drafts.guess([], 1000) == list(range(LONGEST))


def test_the_oldest_actions_are_forgotten_and_the_state_is_all_that_counts():
    drafts, other = Drafts(), Drafts()
    drafts.observe([(5, 6, 7)])
    assert drafts.guess([5], 1) == [6]
    drafts.observe([(1, 2, 3)] * REMEMBERED)
    assert drafts.guess([5, 6, 7], 1) == [] and drafts.guess([], 1) == [1]
    other.set_state(drafts.get_state())
    assert other.get_state() == drafts.get_state() and other.guess([], 3) == drafts.guess([], 3) == [1, 2, 3]
